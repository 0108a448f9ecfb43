"""`marram cloud`: every role in one process tree, with its own broker, database and objects; or some roles alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console as Terminal

from marram.cli._options import parsed
from marram.last_resort import OneLine
from marram.schema import paths
from marram.schema.api import TokenAsk
from marram.schema.errors import Invalid, Missing
from marram.schema.units import format_duration, parse_size

try:
    from marram.cli import _root
    from marram.cloud.broker import OWN_SERVER_LIFE_S, write_configuration
    from marram.cloud.listeners import reachable
    from marram.cloud.provision import check_kept, provision
    from marram.cloud.server import Cloud
    from marram.cloud.settings import Role, Settings
    from marram.cloud.signing import make_keys
    from marram.console import Console, mount
    from marram.store import open_store
    from marram.trust.authority import Authority
    from marram.trust.keys import Keys
except ModuleNotFoundError as error:
    # A device's install has neither SQL nor a web server.
    raise Missing(
        f"a cloud needs {error.name}, which is not installed here", hint="pip install 'marram[cloud]'"
    ) from error

app = typer.Typer(add_completion=False, help="Start the cloud. Ctrl-C stops it; nothing is lost.")
app.add_typer(_root.app, name="root")

# In the cloud's folder.
LOG, LOG_BYTES = "cloud.log", 2_000_000
# How long the line it prints at its start lets a device join.
JOIN_S = 3600.0
# Open files that a cloud asks the system for, where that lets it.
FILES = 65_536


KeysOption = Annotated[
    Path | None, typer.Option(help="Where its keys are. Default: keys/ in the folder, made where there are none.")
]


@app.callback(invoke_without_command=True)
def cloud(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Option(help="Where it keeps everything. Default: $MARRAM_HOME/cloud")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port of API and console on this machine (HTTP); 0: any free one.", min=0, max=65535)
    ] = 8080,
    tls_port: Annotated[
        int | None,
        typer.Option(
            help="Port of API and console for other machines (HTTPS); 0: any free one. Default: 8443; 0 with --port 0.",
            min=0,
            max=65535,
            show_default=False,
        ),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            help="Port of the Open Inference Protocol over gRPC, on --host; 0: any free one. Default: none.",
            min=0,
            max=65535,
            show_default=False,
        ),
    ] = None,
    broker_port: Annotated[
        int,
        typer.Option(
            help="Port of the embedded broker; 0: the one it had last time, else a free one.", min=0, max=65535
        ),
    ] = 0,
    role: Annotated[list[str] | None, typer.Option(help="all, or one or more of api, ingest, fleet, replica.")] = None,
    nats: Annotated[
        str | None, typer.Option(envvar="MARRAM_NATS", help="A broker of your own: tls://HOST:4222")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="MARRAM_DATABASE", help="postgresql://USER:PASSWORD@HOST/NAME; default: SQLite in the folder."
        ),
    ] = None,
    objects: Annotated[
        str | None, typer.Option(envvar="MARRAM_OBJECTS", help="s3://BUCKET/PREFIX or a folder.")
    ] = None,
    serve: Annotated[
        list[str] | None, typer.Option(help="A model to serve whether or not an app asks for it: NAME or NAME@VERSION.")
    ] = None,
    replicas: Annotated[
        int, typer.Option(help="How many processes here answer inferences, each for every model.", min=1, max=64)
    ] = 1,
    replica_memory: Annotated[
        str | None,
        typer.Option(
            help="What the models of one replica may take together, such as 2 GB: the least worth waits on disk. "
            "Default: no bound.",
            show_default=False,
        ),
    ] = None,
    broker: Annotated[
        list[str] | None,
        typer.Option(help="The broker's address as devices see it, where that differs: nats://HOST:PORT"),
    ] = None,
    keys: KeysOption = None,
    wheel_index: Annotated[
        str | None,
        typer.Option(
            envvar="MARRAM_WHEEL_INDEX",
            help="Where wheels of functions come from: an index's URL, or a folder of wheels. Default: as pip is set.",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Start the cloud. Ctrl-C stops it; nothing is lost."""
    if context.invoked_subcommand is not None:
        return
    place = (folder or paths.cloud()).absolute()
    _more_files()
    _log(place / LOG, verbose)
    settings = Settings(
        folder=place,
        host=host,
        port=port,
        tls_port=tls_port if tls_port is not None else (8443 if port else 0),
        grpc_port=grpc_port,
        broker_port=broker_port,
        roles=_roles(role or ["all"]),
        nats=nats,
        database=database,
        objects=objects,
        serve=tuple(serve or ()),
        replicas=replicas,
        replica_memory_bytes=None if replica_memory is None else parsed(parse_size, replica_memory, "--replica-memory"),
        brokers=tuple(broker or ()),
        keys=None if keys is None else keys.absolute(),
        wheel_index=wheel_index,
    )
    asyncio.run(_run(settings))


@app.command()
def init(
    folder: Annotated[Path | None, typer.Option(help="The cloud's folder. Default: $MARRAM_HOME/cloud")] = None,
    keys: KeysOption = None,
    root_keys: Annotated[int, typer.Option(help="How many root keys of updates.", min=1, max=16)] = 1,
    threshold: Annotated[int, typer.Option(help="How many of them must sign.", min=1, max=16)] = 1,
    offline: Annotated[
        Path | None,
        typer.Option(help="Where the keys go that no running cloud needs. Default: offline/ beside the keys."),
    ] = None,
) -> None:
    """Make the cloud's keys, once; a cloud that keeps everything in its folder does it itself."""
    settings = Settings(folder=(folder or paths.cloud()).absolute(), keys=None if keys is None else keys.absolute())
    place = Keys(settings.keys_folder)
    database = Path(settings.database_url)
    if keys is None and database.exists():
        # Fresh keys beside a database that relies on lost ones would turn every device away.
        with contextlib.closing(open_store(database)) as store:
            check_kept(place, store)
    place.make()
    signing = make_keys(place, time.time(), root_keys=root_keys, threshold=threshold, offline=offline)
    made = provision(place, time.time())
    print(f"{'made' if made else 'there already:'} keys of the cloud {Authority.open(place).fingerprint}")
    print(f"kept in {place.folder}: copy it to a safe place; whoever has it can be this cloud")
    if signing:
        print(f"keys of root and targets in {offline or place.offline}: move them to a safe place of their own")


@app.command("broker-config")
def broker_config(
    out: Annotated[Path, typer.Argument(help="The folder to make; it goes to the broker's machine as a whole.")],
    name: Annotated[list[str], typer.Option(help="A host name or address of the broker; any number of times.")],
    port: Annotated[int, typer.Option(help="The broker listens there.", min=1, max=65535)] = 4222,
    folder: Annotated[Path | None, typer.Option(help="The cloud's folder. Default: $MARRAM_HOME/cloud")] = None,
    keys: KeysOption = None,
) -> None:
    """Write the configuration of a broker of your own (nats-server), with its certificate, from the cloud's keys."""
    settings = Settings(folder=(folder or paths.cloud()).absolute(), keys=None if keys is None else keys.absolute())
    place = Keys(settings.keys_folder)
    written = write_configuration(place, out.absolute(), name, port)
    print(
        f"on the broker's machine: cd {out.name} && nats-server -c {written.name}   (it holds passwords: keep it there)"
    )
    print(f"each role: marram cloud --role ROLE --nats tls://{name[0]}:{port} --keys {place.folder}")
    days = OWN_SERVER_LIFE_S / 86_400
    print(f"its certificate is good for {days:.0f} days: make it again before, and reload the server")


def _more_files() -> None:
    """A connection takes a file, and the usual limit is one for a person's programs: as many as we may have here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log(file: Path, verbose: bool) -> None:
    """A line for each fault on the terminal; more of it, with its traceback, in a file that never grows for ever."""
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.INFO if verbose else logging.WARNING)
    terminal.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    # Opened with its first line: whether the folder can be used at all is said by who uses it.
    kept = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=3, encoding="utf-8", delay=True)
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[terminal, kept])
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _roles(names: list[str]) -> frozenset[Role]:
    if "all" in names:
        return frozenset(Role)
    try:
        return frozenset(Role(name) for name in names)
    except ValueError as error:
        known = ", ".join(role.value for role in Role)
        raise Invalid(f"{error.args[0].split(' ')[0]} is not a role", hint=f"Use all, or some of {known}.") from error


async def _run(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    consoles: list[Console] = []
    async with Cloud(settings, lambda api, state: consoles.append(mount(api, state))).running() as cloud:
        if consoles:
            token = await asyncio.to_thread(cloud.state.create_token, TokenAsk(ttl_s=JOIN_S))
            _say(cloud, consoles[0].link(cloud.url), token.join)
        else:
            _say(cloud)
        failing = asyncio.create_task(cloud.wait())
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if failing.done():
            failing.result()
        failing.cancel()


def _say(cloud: Cloud, sign_in: str = "", join: str = "") -> None:
    """What a person needs next."""
    if sign_in:
        lines = [
            f"console  {cloud.url}   sign in on this machine, once: {sign_in}",
            f"         {cloud.tls_url}   for other machines",
            f"join     {join}   (once, within {format_duration(JOIN_S)}; more: marram token create)",
            f"signed in on this machine: {paths.context()}",
        ]
        if cloud.grpc_port is not None:
            lines.insert(2, f"grpc     {reachable(cloud.settings.host)}:{cloud.grpc_port}   Open Inference Protocol")
        if not cloud.state.people.everybody():
            lines.insert(2, "people   first sign-in: marram user add NAME --role admin")
    else:
        lines = [f"running  {', '.join(sorted(cloud.settings.roles))}"]
    lines.append(f"data     {cloud.settings.folder}   Ctrl-C stops; nothing is lost")
    out = Terminal(highlight=False, soft_wrap=True)
    for line in lines:
        out.print(line, markup=False)
