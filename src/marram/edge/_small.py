"""Imported first of all in a worker: gives it `secrets` without OpenSSL, whose library is 4 MB of a small device.

All that a worker wants of it are random bytes; behind them stand `hmac` and `hashlib`, which load OpenSSL wherever it
is there. Here they come up with Python's own hash functions and are forgotten again, so that the user's code, which may
want any of OpenSSL's, imports the full ones. Never import this anywhere but in the worker's own module.
"""

from __future__ import annotations

import importlib.util
import sys

# Some systems build Python without hash functions of its own: there is nothing to be gained there.
if "hashlib" not in sys.modules and importlib.util.find_spec("_md5") is not None:
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # an import of it fails now, which hashlib expects
    import secrets as secrets

    for name in ("_hashlib", "hashlib", "hmac"):
        sys.modules.pop(name, None)
