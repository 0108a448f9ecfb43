"""The schema's history; `Database` runs it at start."""
