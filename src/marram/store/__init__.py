"""SQL and objects: the only places where the cloud remembers anything."""
