"""How each server is started, asked and understood: one row a server."""

from __future__ import annotations

import base64
import json
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers import _environment
from bench.peers._client import request

_PATH = "/classify"


@dataclass(frozen=True, slots=True)
class Peer:
    """`ask`: a JPEG to the bytes of a request; `told`: the body of an answer to its labels, likeliest first.

    `arguments` follow the interpreter; "PORT" in them becomes the port, "BUNDLE" the model's folder. `own`: it runs
    in Marram's environment.
    """

    name: str
    ask: Callable[[bytes], bytes]
    told: Callable[[bytes], list[str]]
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    own: bool = False

    def command(self, port: int, bundle: Path) -> list[str]:
        """The command line of the server."""
        interpreter = sys.executable if self.own else str(_environment.python(self.name))
        filled = {"PORT": str(port), "BUNDLE": str(bundle)}
        return [interpreter, *(filled.get(argument, argument) for argument in self.arguments)]


def raw(jpeg: bytes) -> bytes:
    """The JPEG is the body."""
    return request(_PATH, jpeg, "image/jpeg")


def listed(jpeg: bytes) -> bytes:
    """The JPEG in base64, in a list of one, in JSON."""
    return request(_PATH, json.dumps({"jpegs": [base64.b64encode(jpeg).decode()]}).encode(), "application/json")


def open_inference(model: str, jpeg: bytes, shape: Sequence[int], wanted: str) -> bytes:
    """The Open Inference Protocol's binary form: `image`, a BYTES tensor of one JPEG; `wanted` is answered, in JSON."""
    path = f"/v2/models/{model}/infer"
    element = len(jpeg).to_bytes(4, "little") + jpeg
    size = {"binary_data_size": len(element)}
    tensor = {"name": "image", "shape": list(shape), "datatype": "BYTES", "parameters": size}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": wanted}]}).encode()
    headers = [("Inference-Header-Content-Length", str(len(head)))]
    return request(path, head + element, "application/octet-stream", headers)


def _labels(body: bytes) -> list[str]:
    labels: list[str] = json.loads(body)["labels"]
    return labels


def _first_labels(body: bytes) -> list[str]:
    labels: list[str] = json.loads(body)[0]["labels"]
    return labels


def tensor(body: bytes, name: str) -> list[str]:
    """The values of the tensor `name` in an answer of the Open Inference Protocol."""
    (found,) = (output for output in json.loads(body)["outputs"] if output["name"] == name)
    values: list[str] = found["data"]
    return values


def _module(name: str) -> tuple[str, ...]:
    return ("-m", f"bench.peers.{name}")


MARRAM = Peer(
    "marram",
    lambda jpeg: open_inference("efficientnet-lite0", jpeg, [1], "result"),
    lambda body: [label for label, _ in json.loads(tensor(body, "result")[0])["top"]],
    ("-m", "marram", "serve", "BUNDLE", "--http", "PORT", "--grpc", "0"),
    own=True,
)

PEERS = (
    Peer("fastapi", raw, _labels, _module("fastapi")),
    Peer("litserve", raw, _labels, _module("litserve")),
    Peer(
        "pytriton",
        lambda jpeg: open_inference("classify", jpeg, [1, 1], "labels"),
        lambda body: tensor(body, "labels"),
        _module("pytriton"),
        # Triton's Python stub is linked to libpython: that of this interpreter, not of the system.
        {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))},
    ),
    Peer(
        "bentoml",
        listed,
        _first_labels,
        ("-m", "bentoml", "serve", "bench.peers.bentoml:Classify", "--host", "127.0.0.1", "--port", "PORT"),
        {"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "ray",
        raw,
        _labels,
        _module("ray"),
        # Halted while others are measured, its parts must not give each other up.
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_initial_delay_ms": "3600000",
            "RAY_health_check_period_ms": "3600000",
            "RAY_health_check_timeout_ms": "3600000",
        },
    ),
)
