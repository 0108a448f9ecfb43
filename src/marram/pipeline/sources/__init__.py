"""Where frames come from: one file a verb, with `open_source(spec, base)`."""
