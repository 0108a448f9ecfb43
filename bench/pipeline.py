"""Marram's pipeline against the textbook's loop, and what Marram itself costs a frame. `python -m bench.pipeline`

- The loop: cv2 read → resize → normalise → invoke → argmax, one after another, as books and tutorials have it.
- Ours: the same model and video through `Pipeline`, decoding in its own thread, two engine instances, answers in order.
- Own time: frames that are there already through a model that computes nothing; all that is left is Marram.

Windows of each alternate, so that a busy machine slows both; medians are compared, on two cores of those there are.
`ratio` is ours over the loop's.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from bench._verdict import conclude, skip
from marram.pipeline import opencv
from marram.pipeline.build import Around, NoOutlet, Pipeline
from marram.pipeline.contract import Frame
from marram.pipeline.edge_pool import Seat
from marram.pipeline.events import result_sender
from marram.pipeline.infer import Infer
from marram.pipeline.runner import Runner, Stage
from marram.pipeline.stats import Stats
from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.app import parse_app
from marram.schema.model import Task
from marram.schema.result import Result

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WINDOWS = 5
NO_OP_FRAMES = 5000
GOAL_RATIO = 1.6
GOAL_OWN_MS = 0.15

CARD = """
model: mobilenet-v2
task: classification
input: {size: [224, 224], mean: [127.5], std: [127.5]}
output: {form: softmax}
variants: [{name: litert-int8, engine: litert, file: model.tflite, precision: int8}]
labels: labels.txt
licence: Apache-2.0
source: google-coral/test_data
"""


def textbook_frames_per_s(video: Path, model: Path) -> float:
    """The loop as it is written everywhere, with the interpreter's own defaults."""
    from ai_edge_litert.interpreter import Interpreter

    cv2 = opencv.load("bench")
    interpreter = Interpreter(model_path=str(model))
    interpreter.allocate_tensors()
    entry, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = entry["quantization"]
    capture = cv2.VideoCapture(str(video))
    frames, classes = 0, []
    begun_s = time.perf_counter()
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        picture = cv2.cvtColor(cv2.resize(frame, (224, 224)), cv2.COLOR_BGR2RGB)
        real = (picture.astype(np.float32) - 127.5) / 127.5
        tensor = np.round(real / scale + zero_point).astype(np.uint8)[None]
        interpreter.set_tensor(entry["index"], tensor)
        interpreter.invoke()
        classes.append(int(np.argmax(interpreter.get_tensor(out["index"])[0])))
        frames += 1
    return frames / (time.perf_counter() - begun_s)


def marram_frames_per_s(video: Path, bundle: Path) -> float:
    """The same through an app. Counts from the first call to the last result, closing included."""
    text = f"app: bench\nsource: {{video: {video}}}\nsteps: [{{classify: {bundle}, parallel: 2, top: 1}}]\n"
    pipeline = Pipeline.build(parse_app(text), bundle, Around())
    begun_s = time.perf_counter()
    pipeline.run()
    return int(pipeline.stats()["frames"]) / (time.perf_counter() - begun_s)


class Still:
    """A source of `count` frames that show one picture, which costs nothing to get. See `contract.Source`."""

    live = False
    skipped = 0
    errors = 0
    last_error = ""

    def __init__(self, count: int) -> None:
        self._count = count
        self._image = np.zeros((576, 768, 3), np.uint8)

    def frames(self) -> Iterator[Frame]:
        for index in range(self._count):
            yield Frame(index, time.time(), time.monotonic(), image=self._image, name="still")

    def close(self) -> None:
        pass


class NoOp:
    """Stands where a `Model` does and computes nothing: what is left is Marram's own time."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.card, self.variant = bundle, bundle.card, bundle.card.variants[0]
        self._result = Result(Task.CLASSIFICATION, "no-op", "nothing", 1.0, (("nothing", 1.0),))

    def predict(self, *anything: object) -> Result:
        return self._result

    def close(self) -> None:
        pass


def own_ms(bundle: Bundle) -> float:
    """Milliseconds of wall time a frame takes through source, window, pool, order, statistics and event."""
    app = parse_app("app: bench\nsource: {images: .}\nsteps: [{classify: no-op, parallel: 2}]\n")
    stats = Stats()
    seats = [Seat(cast(Model, NoOp(bundle))) for _ in range(2)]
    asker = Infer(app.inferences[0], app, seats, stats)
    runner = Runner(Still(NO_OP_FRAMES), [], [Stage(asker, [])], [], result_sender(app, NoOutlet()), stats)
    begun_s = time.perf_counter()
    runner.run()
    return (time.perf_counter() - begun_s) / NO_OP_FRAMES * 1e3


def two_cores() -> int:
    """Keep this process, engines included, to two cores, where the system can; how many it has now."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    return len(os.sched_getaffinity(0))


def main() -> None:
    model, video = SHARED / "models/tf2_mobilenet_v2_1.0_224_ptq.tflite", SHARED / "video/vtest.avi"
    if not (model.is_file() and video.is_file()):
        skip("pipeline", GOAL_RATIO, f"it needs the data folder {SHARED}, which is absent here")
        return
    cores = two_cores()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder)
        (bundle / "model.tflite").write_bytes(model.read_bytes())
        (bundle / "labels.txt").write_bytes((SHARED / "models/imagenet_labels.txt").read_bytes())
        (bundle / "model.yaml").write_text(CARD)
        opened = Bundle.open(bundle)
        textbook: list[float] = []
        marram: list[float] = []
        own: list[float] = []
        for window in range(WINDOWS):
            textbook.append(textbook_frames_per_s(video, model))
            marram.append(marram_frames_per_s(video, bundle))
            own.append(own_ms(opened))
            print(
                f"window {window + 1}   textbook {textbook[-1]:6.1f} frames/s   marram {marram[-1]:6.1f} frames/s"
                f"   own {own[-1]:.3f} ms a frame"
            )
    ratio = statistics.median(marram) / statistics.median(textbook)
    own_median = statistics.median(own)
    figures = {
        "textbook_frames_per_s": round(statistics.median(textbook), 1),
        "marram_frames_per_s": round(statistics.median(marram), 1),
        "own_ms": round(own_median, 4),
        "goal_own_ms": GOAL_OWN_MS,
        "cores": cores,
    }
    conclude("pipeline", ratio, GOAL_RATIO, figures, also=own_median <= GOAL_OWN_MS)


if __name__ == "__main__":
    main()
