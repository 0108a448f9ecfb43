"""Attacks that must be refused, each with the name of the check that holds: made here, tried by tests and `make prove`."""
