"""`marram serve MODEL…`: models answer right here, with no cloud, for every client of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from pathlib import Path
from typing import Annotated

import typer

from marram.cli._options import parsed
from marram.last_resort import OneLine
from marram.runtime import library
from marram.runtime.bundle import Bundle
from marram.schema.addresses import is_loopback
from marram.schema.errors import Invalid, Missing
from marram.schema.units import parse_size

try:
    from marram.serving.engine import EngineProcess
    from marram.serving.host import Host, Limits
    from marram.serving.oip.server import Place, Server, Tls
    from marram.serving.process import run, set_up
except ModuleNotFoundError as error:
    # A device's plain install has no web server.
    raise Missing(
        f"this needs {error.name}, which is not installed here", hint="pip install 'marram[serve]'"
    ) from error

app = typer.Typer(add_completion=False, help="Let models answer other programs right here, with no cloud.")


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(help="Models of the library, NAME or NAME@VERSION, or bundle folders.", metavar="MODEL..."),
    ],
    http: Annotated[int, typer.Option(help="Port of HTTP; 0: any free one.", min=0, max=65535)] = 8000,
    grpc: Annotated[int, typer.Option(help="Port of gRPC; 0: any free one.", min=0, max=65535)] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MARRAM_SERVE_TOKEN",
            help="What askers must know. Default: nothing on this machine alone; for others one is made and printed.",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="A certificate (PEM), with --key: both ways over TLS.", metavar="FILE")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key (PEM).", metavar="FILE")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Cores to compute on. Default: all there are.", min=1, show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="What all models together may take, such as 500 MB: the least worth waits on disk. Default: no bound.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Let models answer other programs right here: Open Inference Protocol v2, HTTP and gRPC. Ctrl-C stops it."""
    logs = logging.StreamHandler()
    logs.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[logs])
    if (certificate is None) != (key is None):
        raise Invalid("--certificate and --key belong together", hint="Name both files.")
    made = token is None and not is_loopback(host)
    place = Place(
        http=http,
        grpc=grpc,
        host=host,
        token=secrets.token_urlsafe(24) if made else token,
        tls=None if certificate is None or key is None else Tls(certificate, key),
    )
    set_up()
    room = None if memory is None else parsed(parse_size, memory, "--memory")
    bundles = [_found(reference) for reference in models]
    run(_serve(bundles, Limits(memory_bytes=room, cores=threads), place, told=made))


def _found(reference: str) -> Bundle:
    """The bundle that was named. Raises Missing, Invalid."""
    if "/" not in reference and not reference.startswith(".") and Path(reference).is_dir() and "@" not in reference:
        with contextlib.suppress(Missing):
            return library.get(reference)
        return Bundle.open(Path(reference))
    return library.resolve(reference, Path.cwd())


async def _serve(bundles: list[Bundle], limits: Limits, place: Place, *, told: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    engines: Host | EngineProcess
    if is_loopback(place.host):
        engines = Host(limits)
    else:
        # What strangers send may fell an engine: then only that process, which comes back, and the ports stay open.
        engines = EngineProcess(limits)
        await engines.start()
    try:
        # The ports first: the commonest fault, one that is taken, is told before any model is loaded.
        async with Server(engines, place).running() as server:
            loading = asyncio.ensure_future(_put(engines, bundles))
            stopping = asyncio.ensure_future(stopped.wait())
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                _say(engines, server, place, told=told)
                await stopping
            else:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
    finally:
        await engines.close()


async def _put(engines: Host | EngineProcess, bundles: list[Bundle]) -> None:
    for bundle in bundles:
        await engines.put(bundle.folder)


def _say(engines: Host | EngineProcess, server: Server, place: Place, *, told: bool) -> None:
    """What a person needs next."""
    for served in engines.models():
        print(f"serving  {served.card.reference}   {served.engine}")
    print(f"http     {server.url}/v2")
    print(f"grpc     {server.grpc_address}")
    if told:
        print(f"token    {place.token}   (of this run; --token or MARRAM_SERVE_TOKEN chooses one)")
    if place.tls is None and not is_loopback(place.host):
        print("tls      none: who listens on the way reads all of it; see --certificate and --key")
    card = engines.models()[0].card
    bearer = " -H 'Authorization: Bearer TOKEN'" if place.token is not None else ""
    sent = "photo.jpg" if card.input.kind == "image" else "readings.f32"
    print(
        f"try      curl{bearer} -H 'Inference-Header-Content-Length: 0' --data-binary @{sent} "
        f"{server.url}/v2/models/{card.model}/infer"
    )
    print("Ctrl-C stops it.", flush=True)
