"""Rehearsal: shaped links, slowed devices, fault injection, the demo."""
