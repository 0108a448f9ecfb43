"""`python -m marram.edge.serving PLAN`: an app's own models answer other programs on its device, beside the app.

A process of its own, started by the app's worker and within that worker's sandbox and memory limit: its Python threads
take no turn from the pipeline's, what crashes here ends here, and a device whose app has no `serve:` loads none of it.
It steps behind the pipeline for the scheduler, computes on one core and lets few wait. It says `ready` on standard
output; a line that begins with `fault ` says why it ends. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from pathlib import Path

from marram.edge import _unplugged as _unplugged  # before anything that imports pydantic

# isort: split
from marram.edge.served import FAULT, READY, Plan
from marram.last_resort import ended
from marram.runtime.bundle import Bundle
from marram.serving.host import Host, Limits
from marram.serving.oip.server import Place, Server
from marram.serving.process import run, set_up

# Behind the pipeline, which is itself behind the agent.
_NICE = 8
# More than so many had better come again: the core is the pipeline's first.
_WAITING = 8


def main(arguments: list[str]) -> int:
    """The exit status."""
    threading.Thread(target=_end_with_worker, name="worker", daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    set_up()
    plan = Plan.of(arguments[0])

    def live() -> int:
        run(_serve(plan))
        return 0

    return ended(live, tell=lambda message: print(f"{FAULT} {message}", flush=True), details=Path("serving.fault.log"))


async def _serve(plan: Plan) -> None:
    host = Host(Limits(waiting=_WAITING, cores=1))
    async with Server(host, Place(http=plan.http, grpc=plan.grpc, host=plan.host)).running():
        for folder, variant in plan.models:
            await host.put(_chosen(Bundle.open(Path(folder), partial=True), variant))
        print(READY, flush=True)
        await asyncio.Event().wait()


def _chosen(bundle: Bundle, variant: str | None) -> Bundle:
    """The bundle with the variant alone that the app names, if it names one."""
    if variant is None:
        return bundle
    card = bundle.card.model_copy(update={"variants": [bundle.variant(variant)]})
    return Bundle(bundle.folder, card, bundle.labels)


def _end_with_worker() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
