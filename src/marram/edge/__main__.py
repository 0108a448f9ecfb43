"""`python -m marram.edge FOLDER SECONDS [BROKER…]`: the agent as `marram edge run` starts it, in a lean process."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from marram.edge import _lean as _lean  # before anything that imports nats
from marram.edge.agent import Agent, Settings
from marram.edge.state import Folder
from marram.schema.errors import MarramError


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or SIGINT; exit status 2 where a message on stderr says what is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("marram").setLevel(logging.INFO)
    folder, every_s, *brokers = arguments
    try:
        asyncio.run(_run(Folder(Path(folder)), float(every_s), brokers))
    except MarramError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


async def _run(folder: Folder, every_s: float, brokers: list[str]) -> None:
    credentials = folder.credentials()
    if brokers:
        credentials = credentials.model_copy(update={"brokers": brokers})
    with folder.lock():
        await Agent(folder, credentials, Settings(report_every_s=every_s)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
