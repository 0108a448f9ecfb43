"""The trustee's question before each deployment: is this signed? Its process loads no more than that takes.

The other questions (`trustee_inside`) load X.509, HTTP and the schema of what the cloud says: several times as much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marram.edge.answering import Fetch, serve
from marram.edge.identity import IdentityFiles
from marram.schema.errors import Missing, Retryable
from marram.schema.words import file_fault
from marram.trust.clock import Clock, Sources
from marram.trust.verifier import Verifier


def verify(folder: Path, question: dict[str, Any], fetch: Fetch, time_sources: Sources | None = None) -> dict[str, Any]:
    """`Trustee.verify` over the device's `folder`. Blocking. Raises what that does; Missing where it never joined."""
    first = IdentityFiles(folder / "identity").root
    try:
        root = first.read_bytes()
    except FileNotFoundError as error:
        raise Missing(
            "this device was never told whose signatures it should trust",
            where=str(first),
            hint="Join it again: marram edge join",
        ) from error
    except OSError as error:
        raise Retryable(f"cannot be read: {file_fault(error)}", where=str(first)) from error
    clock = Clock(folder / "trust" / "clock.json", time_sources)
    Verifier(folder / "trust", root, clock).verify(question["documents"], fetch)
    return {}


if __name__ == "__main__":
    serve(verify)
