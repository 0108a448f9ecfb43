"""Attacks that must be refused, each with the name of the check that holds: for tests and for `make prove`.

None is simulated by calling the check that should stop it: it is a repository with the wrong keys, a file with a byte
changed, a cloud that goes back, and a victim that meets it.
"""
