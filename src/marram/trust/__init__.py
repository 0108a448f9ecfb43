"""Tokens and device credentials: what proves who speaks. No network here."""
