"""Marram runs AI across cloud and edge: where it answers soonest, and on when the link does not."""

__version__ = "0.1.0"
