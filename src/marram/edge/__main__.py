"""`python -m marram.edge FOLDER SECONDS [BROKER…]`: the agent as `marram edge run` starts it, in a lean process."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from marram.edge import _unplugged as _unplugged  # before anything that imports pydantic

# isort: split
from marram.edge.agent import Agent, Around, Settings
from marram.edge.cgroups import Groups
from marram.edge.notify import Notifier
from marram.edge.platform import described
from marram.edge.process import give_back_memory
from marram.edge.sandbox import seal_agent
from marram.edge.state import Folder
from marram.last_resort import OneLine, ended

# When what starting up took and no longer needs goes back to the system.
_STARTED_S = 2.0


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or SIGINT; the exit status, see `last_resort.ended`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("marram").setLevel(logging.INFO)
    seal_agent()
    place, every_s, *brokers = arguments
    folder = Folder(Path(place))

    def live() -> int:
        asyncio.run(_run(folder, float(every_s), brokers))
        return 0

    # Whatever starts it again and again (an init system) must not fill the disk with its last words.
    return ended(live, details=folder.path / "fault.log")


async def _run(folder: Folder, every_s: float, brokers: list[str]) -> None:
    credentials = folder.credentials()
    if brokers:
        credentials = credentials.model_copy(update={"brokers": brokers})
    with folder.lock():
        around = Around(status=True, about=described, groups=Groups.open())
        agent = Agent(folder, credentials, Settings(report_every_s=every_s), around)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        loop.call_later(_STARTED_S, give_back_memory)
        manager = Notifier()
        living = asyncio.create_task(manager.live())
        manager.ready()
        try:
            await agent.run()
        finally:
            manager.stopping()
            living.cancel()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
