"""The cloud's roles: API, ingest, fleet, replicas, in one process tree or each alone."""
