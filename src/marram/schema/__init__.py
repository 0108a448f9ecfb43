"""Floor 0: the nouns (App, ModelCard, Device, Event, Result), ids, states and errors. No I/O, no numpy, no network."""
