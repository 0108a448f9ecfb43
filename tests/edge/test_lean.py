"""What an idle agent loads: it stays for months, and each of these would stay with it."""

from __future__ import annotations

import subprocess
import sys

_UNWANTED = ("aiohttp", "cryptography", "email", "httpx", "importlib.metadata", "numpy", "tuf", "urllib3", "zipfile")


def test_an_agent_loads_no_more_than_it_needs_and_leaves_the_rest_to_be_had() -> None:
    program = f"""
import sys
import marram.edge.__main__
print([name for name in {_UNWANTED} if name in sys.modules])
import importlib.metadata
assert importlib.metadata.version("pydantic") and list(importlib.metadata.entry_points())
import nats.js.client, nats.js.manager
assert nats.js.client.JetStreamContext.publish and nats.js.manager.JetStreamManager.add_stream
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
