"""What is done to each frame: one file a verb, with `make_step(spec, context)`."""
