"""Attacks that must be refused, each with the name of the check that holds: for tests and for `make prove`."""
