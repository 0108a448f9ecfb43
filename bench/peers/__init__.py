"""What `bench.serving` measures Marram beside: one short server for each peer, and what they share.

A peer (`fastapi.py`, `litserve.py`, `ray.py`, `bentoml.py`, `pytriton.py`) is what a careful user of that framework
would write on two cores: its documented batching, one engine thread for each core, no spinning. Each runs in a virtual
environment of its own (`NAME.txt` pins it), so nothing but `_classifier.py` is shared by the processes that answer.
Which model, labels and port: the environment variables of `_classifier.py`.
"""
