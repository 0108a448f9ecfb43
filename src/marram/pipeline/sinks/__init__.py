"""Where frames with results go: one file a verb, with `open_sink(spec, base)`."""
