"""The trustee's question before each start of a worker that has secrets: what are they? Its process loads no more.

The other questions (`trustee_inside`) load X.509's makers, HTTP, TUF and the schema: several times as much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marram.edge.answering import Fetch, serve
from marram.edge.identity import IdentityFiles
from marram.edge.vault import Vault
from marram.schema.errors import Missing
from marram.schema.words import file_fault
from marram.trust import pki


def secrets(folder: Path, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
    """`Trustee.secrets` over the device's `folder`. Blocking. Raises what that does; Missing where it never joined."""
    identity = IdentityFiles(folder / "identity").own
    try:
        own = identity.read_bytes()
    except OSError as error:
        raise Missing(f"cannot be read: {file_fault(error)}", where=str(identity)) from error
    vault = Vault(folder)
    if question["sealed"] is not None:
        vault.take(own, pki.common_name(pki.load_certificate(own)), question["sealed"])
    return {"values": vault.read(own, question["names"])}


if __name__ == "__main__":
    serve(secrets)
