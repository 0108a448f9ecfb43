"""Whoever is measured, behind one face: started, loaded for a window, halted, weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bench.peers import _environment
from bench.peers._classifier import LABELS_VARIABLE, MODEL_VARIABLE, PORT_VARIABLE
from bench.peers._client import Load, Window
from bench.peers._material import Material
from bench.peers._over_bus import OverBus
from bench.peers._peers import MARRAM, PEERS, Peer
from bench.peers._server import STARTS, Served, Server
from marram.system.ports import free_port


class Contender(Protocol):
    """One that is measured. `ready_s`: of each start, from the process's to the first answer."""

    name: str
    ready_s: list[float]

    def start(self) -> None:
        """Raises NotReady, Permanent."""
        ...

    def window(self, in_flight: int, settle_s: float, seconds: float) -> Window:
        """Raises Broken, OSError."""
        ...

    def told(self, body: bytes) -> list[str]:
        """The labels in an answer, likeliest first; none where there is no answer in it."""
        ...

    def halt(self) -> None: ...

    def resume(self) -> None: ...

    def weight_mb(self) -> float: ...

    def cpu_s(self) -> float: ...

    def stop(self) -> None: ...


def contenders(material: Material, only: Sequence[str], install: bool) -> tuple[list[Contender], dict[str, str]]:
    """Those wanted (all, where none is named) that can be measured here; why the others cannot."""
    chosen: list[Contender] = []
    missing: dict[str, str] = {}
    for name in only or ("marram", "marram-nats", *(peer.name for peer in PEERS)):
        if name == "marram":
            chosen.append(OverHttp(MARRAM, material, starts=STARTS))
        elif name == "marram-nats":
            chosen.append(OverBus(material))
        elif (peer := next((peer for peer in PEERS if peer.name == name), None)) is None:
            missing[name] = "nobody knows it"
        elif why := _lacking(name, install):
            missing[name] = why
        else:
            chosen.append(OverHttp(peer, material))
    return chosen, missing


def _lacking(name: str, install: bool) -> str:
    if _environment.present(name):
        return ""
    if not install:
        return "it is not installed: python -m bench.serving --install"
    print(f"installing {name} (once)", flush=True)
    return _environment.install(name)


class OverHttp(Served):
    """A server that speaks HTTP. See `Contender`."""

    def __init__(self, peer: Peer, material: Material, starts: int = 1) -> None:
        super().__init__(peer.name)
        self._peer = peer
        self._starts = starts
        self._log = material.folder / f"{peer.name}.log"
        self._requests = [peer.ask(jpeg) for jpeg in material.jpegs()]
        self._material = material

    def start(self) -> None:
        while len(self.ready_s) < self._starts:
            self.stop()
            port = free_port()
            environment = {
                MODEL_VARIABLE: str(self._material.model),
                LABELS_VARIABLE: str(self._material.labels),
                PORT_VARIABLE: str(port),
                "PYTHONPATH": str(_environment.ROOT),
                **self._peer.environment,
            }
            command = self._peer.command(port, self._material.bundle)
            self._server = Server(self.name, command, port, self._log, environment)
            self.ready_s.append(self._server.await_ready(self._requests[0]))

    def window(self, in_flight: int, settle_s: float, seconds: float) -> Window:
        load = Load(self._running.port, self._requests, in_flight)
        try:
            return load.window(settle_s, seconds)
        finally:
            load.close()

    def told(self, body: bytes) -> list[str]:
        return self._peer.told(body)

    def halt(self) -> None:
        self._running.halt()

    def resume(self) -> None:
        self._running.resume()
