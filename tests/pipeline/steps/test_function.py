"""function: both styles of calling, and everything that user code can do wrong."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.pipeline import functions
from marram.pipeline.contract import Frame, Step
from marram.pipeline.steps import function as step_module
from marram.schema.errors import Invalid, Missing, NotReady, Permanent
from marram.schema.model import Task
from marram.schema.result import Result

CAT = Result(task=Task.CLASSIFICATION, model="m", label="cat", confidence=0.9)


Make = Callable[..., Step]
pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def make(tmp_path: Path, last_step: Callable[[str], Step]) -> Iterator[Make]:
    """A function step for a handler of this text."""
    made: list[Any] = []

    def build(code: str, name: str = "f", more: str = "", file: str = "handler.py") -> Step:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(code)
        made.append(last_step(f"source: {{camera: 0}}\nsteps: [{{function: '{file}:{name}'{more}}}]"))
        return made[-1]  # type: ignore[no-any-return]

    yield build
    for step in made:
        step.close()


def frame(reading: Any = None, result: Result | None = None, **fields: Any) -> Frame:
    return Frame(5, 12.5, 0.0, reading=reading, name="plant/pump7", result=result, **fields)


def only(frames: Any) -> Frame:
    (found,) = frames
    return found  # type: ignore[no-any-return]


# ---------------------------------------------------------------- how it is called


def test_greengrass_style(make: Make, heard: Any) -> None:
    step = make(
        "def f(event, context):\n"
        "    return {'label': event['kind'], 'confidence': 0.75, 'seen': context.client_context.custom['subject'],\n"
        "            'ids': [context.aws_request_id, context.function_name, context.invoked_function_arn],\n"
        "            'left': context.get_remaining_time_in_millis(), 'log': context.log_stream_name,\n"
        "            'memory': context.memory_limit_in_mb, 'version': context.function_version}\n",
        more="",
    )
    result = only(step(frame({"kind": "hot"}))).result
    assert result is not None
    assert (result.task, result.label, result.confidence) == (Task.CLASSIFICATION, "hot", 0.75)
    assert result.extra["seen"] == "plant/pump7"
    assert result.extra["ids"][1] == "f"
    assert "dev-1-f" in result.extra["ids"][2]
    assert result.extra["left"] > 60_000
    assert result.model == "handler.py:f"
    again = only(step(frame({"kind": "hot"}))).result
    assert again is not None
    assert again.extra["ids"][0] != result.extra["ids"][0]
    assert heard.errors == []


@pytest.mark.parametrize("answer", ["None", "True", "'ok'", "200", "['a', 'b']"])
def test_what_a_greengrass_handler_returned_for_nobody_is_nothing(make: Make, answer: str) -> None:
    assert only(make(f"def f(event, context):\n    return {answer}\n")(frame(1, CAT))).result == CAT


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("result.with_(people=3)", CAT.with_(people=3)),
        ("{'people': 3, 'confidence': 0.5}", Result(Task.CLASSIFICATION, "m", "cat", 0.5, extra={"people": 3})),
        ("None", CAT),
        ("'dog'", Result(Task.CLASSIFICATION, "m", "dog", 0.9)),
        ("4", Result(Task.CLASSIFICATION, "m", "cat", 0.9, value=4.0)),
    ],
)
def test_frame_style(make: Make, answer: str, wanted: Result) -> None:
    assert only(make(f"def f(frame, result):\n    return {answer}\n")(frame(result=CAT))).result == wanted


def test_frame_style_may_end_change_and_multiply_frames(make: Make) -> None:
    step = make(
        "from dataclasses import replace\n"
        "def f(frame, result):\n"
        "    if frame.reading == 'end': return False\n"
        "    if frame.reading == 'two': return [frame, replace(frame, name='other')]\n"
        "    if frame.reading == 'none': return []\n"
        "    return replace(frame, image=frame.image[::-1])\n"
    )
    assert list(step(frame("end"))) == []
    assert list(step(frame("none"))) == []
    assert [f.name for f in step(frame("two"))] == ["plant/pump7", "other"]
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(only(step(frame(image=image))).image, image[::-1])


def test_one_argument_is_enough(make: Make) -> None:
    assert only(make("def f(frame):\n    return frame.index\n")(frame())).result.value == 5.0
    assert only(make("def f(event):\n    return {'value': event}\n")(frame(2.5))).result.value == 2.5


def test_a_picture_is_given_to_a_greengrass_handler_too(make: Make) -> None:
    step = make("def f(event, context):\n    return {'value': event['image'].mean(), 'of': event['result']['label']}\n")
    result = only(step(frame(image=np.full((4, 4, 3), 7, np.uint8), result=CAT))).result
    assert (result.value, result.extra) == (7.0, {"of": "cat"})


def test_a_class_a_lambda_and_a_method_are_functions_too(make: Make) -> None:
    code = "class A:\n    def g(self, frame, result):\n        return 1\nf = A().g\nh = lambda frame, result: 2\n"
    assert only(make(code)(frame())).result.value == 1
    assert only(make(code, "h")(frame())).result.value == 2


def test_files_beside_it_are_importable(make: Make, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def twice(n):\n    return 2 * n\n")
    assert (
        only(make("import helper\ndef f(frame):\n    return helper.twice(frame.index)\n")(frame())).result.value == 10
    )
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "helper2.py").write_text("N = 4\n")
    step = make("import helper2\ndef f(frame):\n    return helper2.N\n", file="inner/handler2.py")
    assert only(step(frame())).result.value == 4


def test_a_file_named_like_a_module_of_python_does_not_replace_it(make: Make) -> None:
    import json

    step = make("import json\ndef f(frame):\n    return json.loads('3')\n", file="json.py")
    sys.path.pop(0)
    assert only(step(frame())).result.value == 3
    assert sys.modules["json"] is json


# ---------------------------------------------------------------- what it returns


def test_odd_values_become_plain_ones(make: Make) -> None:
    step = make(
        "import numpy as np, datetime\n"
        "def f(event, context):\n"
        "    return {'score': np.float32(0.5), 'threshold': 0, 'values': np.arange(3), 'nan': float('nan'),\n"
        "            'day': datetime.date(2026, 11, 22), 'pair': (1, 2),\n"
        "            'value': 'warm', 'label': 3, 'model': 'mine'}\n"
    )
    result = only(step(frame())).result
    assert (result.task, result.score, result.threshold, result.anomaly) == (Task.ANOMALY, 0.5, 0.0, True)
    assert (result.value, result.label, result.model) == (None, None, "handler.py:f")
    assert result.extra == {
        "values": [0, 1, 2], "day": "2026-11-22", "pair": [1, 2],
        "returned_value": "warm", "returned_label": 3, "returned_model": "mine",
    }  # fmt: skip
    assert Result.from_dict(result.to_dict()) == result


def test_detections_are_detections(make: Make) -> None:
    step = make("def f(event, context):\n    return {'detections': event}\n")
    result = only(step(frame([{"label": "bolt", "confidence": 0.5, "box": [1, 2, 3, 4]}]))).result
    assert (result.task, result.detections[0].box) == (Task.DETECTION, (1.0, 2.0, 3.0, 4.0))
    wrong = only(step(frame("nonsense"))).result
    assert (wrong.detections, wrong.extra) == ((), {"returned_detections": "nonsense"})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{'a': object()}", "return value.a is a object"),
        ("[1, 2]", "not frames"),
        ("loop", "nested deeper"),
        ("{'a': b'\\xff'}", "not UTF-8"),
    ],
)
def test_a_return_value_that_means_nothing_ends_that_frame(make: Make, answer: str, says: str) -> None:
    step = make(f"loop = {{}}\nloop['a'] = loop\ndef f(frame, result):\n    return {answer}\n")
    with pytest.raises(Permanent, match=re.escape(says)):
        step(frame(result=CAT))


# ---------------------------------------------------------------- what it does wrong


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("1 / 0", "handler.py:3  ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "handler.py:3  sys.exit(3) is not obeyed here"),
        ("quit()", "handler.py:3  sys.exit() is not obeyed here"),
        ("f(event, context)", "handler.py:3  RecursionError"),
        ("import json; json.loads('{')", "handler.py:3  JSONDecodeError"),
        ("raise BaseException('all of it')", "handler.py:3  BaseException: all of it"),
        ("raise GeneratorExit", "handler.py:3  GeneratorExit"),
        ("raise Silent", "handler.py:3  Silent"),
        ("event['missing']", "handler.py:3  KeyError: 'missing'"),
        ("import nowhere_at_all", "no module nowhere_at_all; `requires: [nowhere_at_all]`"),
    ],
)
def test_what_it_raises_ends_that_frame_only(make: Make, body: str, says: str) -> None:
    silent = "class Silent(Exception):\n    def __str__(self): raise RuntimeError\n"
    code = f"\ndef f(event, context):\n    {body}\n{silent}def g(event, context):\n    return {{'value': 1}}\n"
    step = make(code)
    for _ in range(2):
        with pytest.raises(Permanent, match=re.escape(says)):
            step(frame({}))
    assert only(make(code, "g")(frame({}))).result.value == 1


def test_ctrl_c_is_not_an_error_of_the_handler(make: Make) -> None:
    step = make("def f(event, context):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        step(frame({}))


def test_a_handler_that_fails_at_every_frame_does_not_fill_the_log(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    step = make("def f(event, context):\n    raise ValueError('same')\n")
    for _ in range(150):
        with pytest.raises(Permanent):
            step(frame({}))
    lines = [record.message for record in caplog.records if record.name == "marram.function"]
    assert [line.rpartition("same")[2] for line in lines] == ["", " (10 times)", " (100 times)"]


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [
        ("def f(event, context:\n    pass\n", "f", "handler.py:1  SyntaxError"),
        ("def f(event, context):\npass\n", "f", "handler.py:2  IndentationError"),
        ("x = 1\nraise RuntimeError('no sensor')\n", "f", "handler.py:2  RuntimeError: no sensor"),
        ("import sys\nsys.exit()\n", "f", "handler.py:2  sys.exit() is not obeyed here"),
        ("import nowhere_at_all\n", "f", "handler.py:1  no module nowhere_at_all"),
        ("def g(event, context): pass\n", "f", 'no function "f"; it has g'),
        ("def function_handler(event, context): pass\n", "function_handle", 'did you mean "function_handler"?'),
        ("f = 3\n", "f", "not a function"),
        ("def f(a, b, c): pass\n", "f", "takes (a, b, c)"),
        ("def f(): pass\n", "f", "takes ()"),
        ("\0", "f", "handler.py"),
    ],
)
def test_a_file_that_is_wrong_is_said_at_the_start(make: Make, code: str, name: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        make(code, name)
    assert "steps[0].function" in str(refused.value)
    assert says in str(refused.value)


def test_a_file_in_another_encoding_is_said_at_the_start(tmp_path: Path, last_step: Callable[[str], Step]) -> None:
    (tmp_path / "handler.py").write_bytes(b"def f(event, context):\n    return '\xe9'\n")
    with pytest.raises(Invalid, match=r"SyntaxError|UnicodeDecodeError"):
        last_step("source: {camera: 0}\nsteps: [{function: 'handler.py:f'}]")


def test_a_file_that_is_absent_is_said_at_the_start(tmp_path: Path, last_step: Callable[[str], Step]) -> None:
    (tmp_path / "handler.py").write_text("")
    with pytest.raises(Missing, match=r"handlr\.py.*") as refused:
        last_step("source: {camera: 0}\nsteps: [{function: 'handlr.py:f'}]")
    assert 'Did you mean "handler.py"?' in str(refused.value)


@pytest.mark.parametrize(
    ("requires", "says"),
    [
        ("[surely-not-installed]", "needs the package surely-not-installed, which is not installed here"),
        ("[numpy, 'numpy>=99']", "needs numpy>=99, and numpy"),
        ("['numpy<1']", "pip install 'numpy<1'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command(make: Make, requires: str, says: str) -> None:
    with pytest.raises(NotReady) as missing:
        make("import surely_not_installed\ndef f(a, b): pass\n", more=f", requires: {requires}")
    assert says in str(missing.value)
    assert "pip install" in str(missing.value)


@pytest.mark.parametrize("requires", ["[numpy]", "['numpy>=1.20,<99']", "['numpy~=1.0', ]", "[PyYAML]", "['json']"])
def test_packages_that_are_there_are_enough(make: Make, requires: str) -> None:
    if "~=" in requires:
        requires = f"['numpy~={np.__version__.split('.')[0]}.0']"
    make("def f(a, b): pass\n", more=f", requires: {requires}")


def test_requires_that_name_nothing_are_refused(make: Make) -> None:
    with pytest.raises(Invalid, match="names no package"):
        make("def f(a, b): pass\n", more=", requires: ['>=3']")


# ---------------------------------------------------------------- code that runs on its own


def test_a_file_that_never_ends_is_let_be(make: Make, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned function that loops at its top level, with its dummy handler after the loop, as DeepLens samples do."""
    monkeypatch.setattr(step_module, "_LOAD_S", 0.2)
    code = "import threading\ngo = threading.Event()\ngo.wait()\ndef f(event, context):\n    return {'value': 1}\n"
    step = make(code)
    assert only(step(frame({}))).result is None
    assert "is not there yet" in heard.errors[0]
    loading = next(t for t in threading.enumerate() if t.name == "function-handler.py")
    sys.modules["handler"].go.set()
    loading.join(30)
    assert only(step(frame({}))).result.value == 1
    assert len(heard.errors) == 1


def test_threads_of_the_handler_never_keep_the_process_alive(make: Make) -> None:
    code = (
        "import threading\n"
        "made = []\n"
        "def beat():\n"
        "    made.append(threading.Timer(3600, beat))\n"
        "    made[-1].start()\n"
        "threading.Thread(target=beat).start()\n"
        "def f(event, context): pass\n"
    )
    make(code)
    handler = sys.modules["handler"]
    while not handler.made:
        pass
    assert handler.made[0].daemon
    handler.made[0].cancel()


def test_what_a_thread_of_the_handler_raises_is_counted(make: Make, heard: Any) -> None:
    make(
        "import threading\ndef beat():\n    raise OSError('no bus')\n"
        "threading.Timer(0, beat).start()\ndef f(a, b): pass\n"
    )
    assert heard.until(lambda: heard.errors)
    assert "a thread of handler.py:f ended: handler.py:3  OSError: no bus" in heard.errors[0]


def test_a_fault_of_the_step_is_not_hidden_as_the_users(
    make: Make, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    make("def f(a, b): pass\n")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert len(told) == 1
    assert heard.errors == []


def test_explain_names_the_users_line_not_the_librarys(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json\ndef g():\n    json.loads('[')\n")
    loading = functions.Loading(tmp_path / "mine.py", "steps[0].function", lambda: threading.Lock())
    called = loading.function("g", 30)
    assert called is not None
    try:
        called()
    except ValueError as error:
        assert functions.explain(error, tmp_path).startswith("mine.py:3  JSONDecodeError")
