"""Where frames come from: one file a verb, with ."""
