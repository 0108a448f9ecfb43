"""Parting an ONNX model at one tensor: which tensors there are, the two files, and what crosses, measured.

A model can be parted where all that comes later depends on one tensor alone. In a file that is quantised already, only
its integer tensors count: they cross exactly as they are. What crosses from a float file is rounded to bytes over the
range that it had on some inputs (minimum and maximum); on other inputs the answers are compared with the whole's.
Devices never do this: they only load the front that comes out (`runtime/cut.py`).
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marram.runtime.bundle import Bundle
from marram.runtime.codecs import encode_cut
from marram.runtime.contract import Session, Tensor
from marram.runtime.cut import Back, Front
from marram.runtime.engines import PLUGINS
from marram.runtime.engines.onnx import QUANTISATION_KEY
from marram.runtime.image import Image
from marram.runtime.model import Model
from marram.runtime.postprocess.contract import Options
from marram.schema.agreement import given_up
from marram.schema.errors import Invalid, Missing, NotReady, Permanent
from marram.schema.model import MAX_CUT_BYTES, Cut, Engine, Variant

# Names the cut before the last linear layer, where a tensor without height and width is what the classes are told by.
EMBEDDING = "embedding"
_QUANTISED = "_QuantizeLinear_Output"
# Operators that compute nothing: a front of these alone would send the input, a back of these alone the answer.
_FREE = {"Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
         "Unsqueeze"}  # fmt: skip
_LINEAR = {"Gemm", "MatMul"}
# Front and back together may differ from the whole by so much of its largest output: engines fuse operators otherwise
# on both sides of a cut. A quantised file may come out one of its 256 levels apart.
_TOLERANCE, _QUANTISED_TOLERANCE = 1e-3, 2e-2
_TIMED_RUNS = 15
# What answers are compared by: see `schema/agreement.py`, `given_up`.
EVERY_CLASS = Options(top=100_000)


@dataclass(frozen=True, slots=True)
class Point:
    """A tensor at which the model can be parted. `shape` without the batch; `scale` where it is quantised."""

    tensor: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    embedding: bool = False

    @property
    def size(self) -> int:
        """Numbers that cross, and bytes before they are compressed."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """A name for the card: the tensor's, in the letters that names have."""
        if self.embedding:
            return EMBEDDING
        plain = self.tensor.removesuffix(_QUANTISED).lower()
        name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in plain).strip("-")
        return name[:60] or "cut"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a cut is made and judged by: inputs of the model, pictures or readings. The two never share one."""

    calibration: Sequence[Image | Tensor]
    judging: Sequence[Image | Tensor]

    @classmethod
    def of(cls, given: Sequence[Image | Tensor]) -> Inputs:
        """Every other one for each. Raises Invalid where there are not two."""
        if len(given) < 2:
            raise Invalid("one input is not enough: some set the range of what crosses, others judge it")
        return cls(given[::2], given[1::2])


def variant_of(bundle: Bundle, name: str | None) -> Variant:
    """The variant to part: the one called `name`, or the first in ONNX. Raises Missing, Invalid."""
    if name is not None:
        variant = bundle.variant(name)
        if variant.engine is not Engine.ONNX:
            raise Invalid(f'variant "{name}" is for {variant.engine.value}; only ONNX files can be parted')
        return variant
    for variant in bundle.card.variants:
        if variant.engine is Engine.ONNX:
            return variant
    raise Invalid("has no variant in ONNX, and only ONNX files can be parted", where=bundle.reference)


def points(file: Path) -> list[Point]:
    """Where the model in `file` can be parted, in the order in which it computes. Raises Invalid, NotReady."""
    onnx = _onnx()
    model = _read(onnx, file)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    entries = {value.name for value in graph.input} - constants
    nodes, fixed = _reaching(graph, entries)
    last_use = {name: at for at, node in enumerate(nodes) for name in _reads(node)}
    outputs = {value.name for value in graph.output}
    known = _shapes(onnx, model)
    scales = _scales(onnx, graph)
    last_work = max((at for at, node in enumerate(nodes) if node.op_type not in _FREE), default=0)
    alive, worked, found = set(entries), False, list[Point]()
    for at, node in enumerate(nodes[:last_work]):
        alive |= {name for name in node.output if name in last_use or name in outputs}
        alive -= {name for name in alive if last_use.get(name, -1) <= at and name not in outputs}
        worked = worked or node.op_type not in _FREE
        (tensor, *others) = alive or {""}
        if others or not worked or tensor in outputs or tensor in fixed or tensor not in known:
            continue
        if tensor in scales:
            found.append(Point(tensor, known[tensor], *scales[tensor]))
        elif not scales:
            found.append(Point(tensor, known[tensor]))
    return _with_embedding(found, nodes)


def part(file: Path, point: Point, front: Path, back: Path) -> None:
    """Write the two parts of the model in `file`. Raises Invalid, NotReady, Permanent where ONNX cannot part it."""
    onnx = _onnx()
    model = _read(onnx, file)
    constants = {tensor.name for tensor in model.graph.initializer}
    entries = [value.name for value in model.graph.input if value.name not in constants]
    outputs = [value.name for value in model.graph.output]
    scales = json.loads({entry.key: entry.value for entry in model.metadata_props}.get(QUANTISATION_KEY, "{}"))
    if point.scale is not None:
        scales[point.tensor] = [point.scale, point.zero_point - _shift(onnx, model, point.tensor)]
    for target, takes, gives in ((front, entries, [point.tensor]), (back, [point.tensor], outputs)):
        try:
            onnx.utils.extract_model(str(file), str(target), takes, gives)
            cut = onnx.load(str(target))
            spoken = {name: scale for name, scale in scales.items() if name in (*takes, *gives)}
            if spoken:
                onnx.helper.set_model_props(cut, {QUANTISATION_KEY: json.dumps(spoken)})
            onnx.checker.check_model(cut)
            onnx.save(cut, str(target))
        except (onnx.checker.ValidationError, ValueError, KeyError, RuntimeError, OSError) as error:
            raise Permanent(f"cannot be parted at {point.tensor}: {error}", where=str(file)) from error


class Cutter:
    """Makes and measures cuts of one variant; keeps the whole model, and what it answered, for all of them.

    `inputs`: see `Inputs`. Milliseconds are with one thread, as `timed` measures them; the two parts take turns.
    """

    def __init__(self, bundle: Bundle, variant: Variant, inputs: Inputs) -> None:
        self.bundle, self.variant, self._inputs = bundle, variant, inputs
        self._whole = Model.load(bundle, variant=variant.name)
        self._answers = [self._whole.predict(data, None, EVERY_CLASS) for data in inputs.judging]
        self._first = self._whole.prepare(inputs.judging[0])

    def close(self) -> None:
        """Free the engine's memory."""
        self._whole.close()

    def make(self, point: Point, folder: Path, *, name: str | None = None) -> Cut:
        """Part the variant at `point` into two files in `folder`, and measure it.

        Raises Invalid where both parts together do not do what the whole does, and what `part` raises.
        """
        name = name or point.name
        front, back = folder / f"{name}-front.onnx", folder / f"{name}-back.onnx"
        part(self.bundle.file(self.variant), point, front, back)
        sessions = [PLUGINS[Engine.ONNX].load(file) for file in (front, back)]
        try:
            return self._measured(point, name, (front, back), (sessions[0], sessions[1]))
        finally:
            for session in sessions:
                session.close()

    def _measured(self, point: Point, name: str, files: tuple[Path, Path], sessions: tuple[Session, Session]) -> Cut:
        front, back = sessions
        (crossing,) = front.run(self._first.tensors)
        self._verify(point, back, crossing)
        scale, zero_point = (point.scale, point.zero_point) if point.scale is not None else self._range(front)
        front_ms, back_ms = timed(lambda: front.run(self._first.tensors), lambda: back.run([crossing]))
        cut = Cut(
            name=name,
            variant=self.variant.name,
            tensor=point.tensor,
            front=files[0].name,
            back=files[1].name,
            shape=list(point.shape),
            scale=scale,
            zero_point=zero_point,
            bytes=1,
            loss=0.0,
            front_ms=front_ms,
            back_ms=back_ms,
        )
        sizes, lost = [], 0.0
        first, second = Front(self.bundle, cut, front), Back(self.bundle, cut, back)
        for data, answer in zip(self._inputs.judging, self._answers, strict=True):
            crossed = first.run(data)
            size = _frame_size(data) if self.bundle.card.input.kind == "image" else None
            sizes.append(len(encode_cut(cut, crossed, size).body))
            lost += given_up(second.predict(crossed, size), answer)
        return cut.model_copy(
            update={"bytes": round(statistics.fmean(sizes)), "loss": round(lost / len(self._answers), 4)}
        )

    def _verify(self, point: Point, back: Session, crossing: Tensor) -> None:
        outputs = back.run([crossing])
        names = [info.name for info in back.outputs]
        wanted = {info.name for info in self._whole.session.outputs}
        if not wanted.issubset(names):
            raise Invalid(f"the back of {point.tensor} lacks an output of the whole model")
        ours = self._whole.session.run(self._first.tensors)
        share = _TOLERANCE if point.scale is None else _QUANTISED_TOLERANCE
        for info, whole in zip(self._whole.session.outputs, ours, strict=True):
            apart = float(np.abs(whole - outputs[names.index(info.name)]).max())  # type: ignore[operator]
            if not apart <= share * float(np.abs(whole).max()):
                raise Invalid(
                    f"front and back of {point.tensor} give {info.name} up to {apart:.3g} from the whole model's",
                    where=str(self.bundle.file(self.variant)),
                )

    def _range(self, front: Session) -> tuple[float, int]:
        """Scale and zero-point that take in all that crossed for the calibration inputs, and zero."""
        least, most = 0.0, 0.0
        for data in self._inputs.calibration:
            (real,) = front.run(self._whole.prepare(data).tensors)
            least, most = min(least, float(np.min(real))), max(most, float(np.max(real)))
        if not (math.isfinite(least) and math.isfinite(most)) or most == least:
            raise Invalid("nothing that differs crosses there: the tensor is constant, or no number")
        scale = float(f"{(most - least) / 255:.8g}")
        return scale, min(255, max(0, round(-least / scale)))


def timed(*works: Callable[[], object], runs: int = _TIMED_RUNS) -> list[float]:
    """Milliseconds of each: the least of `runs`, in turns, after one that warms up. Of this thread's processor time.

    Engines with one thread compute in the caller's. By the clock, on a machine with other work, what is long would seem
    longer than it is beside what is short: only the short fits between two turns of somebody else's.
    """
    least = [math.inf] * len(works)
    for run in range(runs + 1):
        for number, work in enumerate(works):
            begin_s = time.thread_time()
            work()
            if run:
                least[number] = min(least[number], time.thread_time() - begin_s)
    return [round(took * 1e3, 3) for took in least]


def find(found: Sequence[Point], wanted: str) -> Point:
    """The point that a person means: a tensor's name, a cut's, or `embedding`. Raises Missing."""
    for point in found:
        if wanted in (point.tensor, point.name, point.tensor.removesuffix(_QUANTISED)):
            return point
    if not found:
        raise Missing("the model can be parted nowhere: no tensor is all that the rest depends on")
    names = ", ".join(point.name for point in found[:40])
    raise Missing(f'cannot be parted at "{wanted}"', hint=f"It can at {names}.")


# ---------------------------------------------------------------- reading the graph


def _onnx() -> Any:
    try:
        import onnx  # of the cloud and torch extras; a device never parts a model
        import onnx.checker
        import onnx.numpy_helper
        import onnx.shape_inference
        import onnx.utils
    except ImportError as error:
        raise NotReady("parting a model needs the onnx package", hint="`pip install marram[cloud]`") from error
    return onnx


def _read(onnx: Any, file: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(file))
    except (DecodeError, ValueError, OSError) as error:
        raise Invalid("not an ONNX model", where=str(file), hint="Is the file complete?") from error


def _reads(node: Any) -> set[str]:
    """The tensors a node reads, those of the graphs inside it (branches, loops) too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            made = {name for inner in graph.node for name in inner.output}
            names |= {name for inner in graph.node for name in _reads(inner)} - made
    return names


def _reaching(graph: Any, entries: set[str]) -> tuple[list[Any], set[str]]:
    """The nodes that depend on an input, and the tensors that do not: weights, and what is computed of them alone."""
    moving, nodes, fixed = set(entries), list[Any](), {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if _reads(node) & moving:
            moving |= set(node.output)
            nodes.append(node)
        else:
            fixed |= set(node.output)
    return nodes, fixed


def _shapes(onnx: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """The shape without the batch of every tensor that has one, with a batch of one or any."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    found: dict[str, tuple[int, ...]] = {}
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        numbers = kind.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
        if numbers and 2 <= len(shape) <= 8 and shape[0] in (1, -1) and all(n > 0 for n in shape[1:]):
            found[value.name] = tuple(shape[1:])
    return {name: shape for name, shape in found.items() if math.prod(shape) <= MAX_CUT_BYTES}


def _scales(onnx: Any, graph: Any) -> dict[str, tuple[float, int]]:
    """Scale and zero-point, as of unsigned bytes, of every tensor that comes out of a QuantizeLinear."""
    constants = {t.name: t for t in graph.initializer}
    found: dict[str, tuple[float, int]] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or any(name not in constants for name in node.input[1:3]):
            continue
        scale, *zero = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        if scale.size == 1 and all(z.size == 1 and z.dtype in (np.uint8, np.int8) for z in zero):
            shift = 128 if zero and zero[0].dtype == np.int8 else 0
            found[node.output[0]] = (float(scale.reshape(())), int(zero[0].reshape(())) + shift if zero else 0)
    return found


def _shift(onnx: Any, model: Any, tensor: str) -> int:
    """128 where the file keeps the tensor in signed bytes: they cross as unsigned ones."""
    for node in model.graph.node:
        if tensor in node.output and len(node.input) > 2:
            zero = next(t for t in model.graph.initializer if t.name == node.input[2])
            return 128 if zero.data_type == onnx.TensorProto.INT8 else 0
    return 0


def _with_embedding(found: list[Point], nodes: list[Any]) -> list[Point]:
    """`found`, with the last vector before the last linear layer marked as the embedding."""
    made_at = {name: at for at, node in enumerate(nodes) for name in node.output}
    linear = [at for at, node in enumerate(nodes) if node.op_type in _LINEAR]
    vectors = [p for p in found if linear and made_at[p.tensor] < linear[-1] and p.size == max(p.shape)]
    return [
        Point(p.tensor, p.shape, p.scale, p.zero_point, embedding=bool(vectors) and p is vectors[-1]) for p in found
    ]


def _frame_size(data: Image | Tensor) -> tuple[int, int]:
    height, width = data.shape[:2]
    return int(height), int(width)
