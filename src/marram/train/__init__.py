"""Samples → candidate model → compared → registered."""
