"""What there is to ask, as the protocol's documents: server, model, configuration, statistics, repository.

Plain types that are REST's JSON as they stand; gRPC's messages are made of the same.
"""

from __future__ import annotations

from typing import Any

from marram import __version__
from marram.serving.oip.inference import Counted, Described, Inference, inputs, outputs
from marram.serving.oip.tensors import BYTES

NAME = "marram"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]


def server() -> dict[str, Any]:
    """ServerMetadata."""
    return {"name": NAME, "version": __version__, "extensions": EXTENSIONS}


def metadata(inference: Inference, name: str, version: int | None) -> dict[str, Any]:
    """ModelMetadata. Raises Missing."""
    model = inference.find(name, version)
    return {
        "name": name,
        "versions": [str(each) for each in inference.versions(name)],
        "platform": f"{NAME}_{model.engine}" if model.engine else NAME,
        "inputs": [_tensor(each) for each in inputs(model)],
        "outputs": [_tensor(each) for each in outputs(model)],
    }


def config(inference: Inference, name: str, version: int | None) -> dict[str, Any]:
    """ModelConfig. `max_batch_size` 0: the shapes say where any number of items is taken. Raises Missing."""
    model = inference.find(name, version)
    return {
        "name": name,
        "platform": f"{NAME}_{model.engine}" if model.engine else NAME,
        "backend": NAME,
        "max_batch_size": 0,
        "input": [_configured(each) | ({"optional": True} if each.optional else {}) for each in inputs(model)],
        "output": [_configured(each) for each in outputs(model)],
    }


def statistics(inference: Inference, name: str, version: int | None) -> dict[str, Any]:
    """ModelStatistics of one version, of a model's, or with "" of all. Raises Missing."""
    if name:
        inference.find(name, version)
    return {
        "model_stats": [
            _statistics(each.card.model, each.card.version, inference.counted(each))
            for each in inference.models()
            if name in ("", each.card.model) and version in (None, each.card.version)
        ]
    }


def index(inference: Inference, *, only_ready: bool) -> list[dict[str, Any]]:
    """RepositoryIndex: every version and its state."""
    return [
        {
            "name": each.card.model,
            "version": str(each.card.version),
            "state": "READY" if each.ready else "UNAVAILABLE",
            "reason": each.reason,
        }
        for each in inference.models()
        if each.ready or not only_ready
    ]


def _tensor(described: Described) -> dict[str, Any]:
    return {"name": described.name, "datatype": described.datatype, "shape": list(described.shape)}


def _configured(described: Described) -> dict[str, Any]:
    kind = "STRING" if described.datatype == BYTES else described.datatype
    return {"name": described.name, "data_type": f"TYPE_{kind}", "dims": list(described.shape)}


def _statistics(name: str, version: int, counted: Counted) -> dict[str, Any]:
    return {
        "name": name,
        "version": str(version),
        "last_inference": round(counted.last_s * 1e3),
        "inference_count": counted.executed,
        "execution_count": counted.executed,
        "inference_stats": {
            "success": _duration(counted.succeeded, counted.took_s),
            "fail": _duration(counted.failed, counted.failing_s),
            "queue": _duration(counted.executed, counted.queue_s),
            "compute_infer": _duration(counted.executed, counted.service_s),
        },
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
