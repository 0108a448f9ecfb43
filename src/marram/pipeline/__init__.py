"""Sources → steps → sinks: one app running in one process, on a device or right here."""
