"""The web page: the fleet at a glance."""
