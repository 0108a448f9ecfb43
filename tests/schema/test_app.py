"""App files: what is right parses to the right thing; what is wrong names file, line, field, fault and next step."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.schema.app import (
    SINKS,
    SOURCES,
    STEPS,
    App,
    ClassifyStep,
    FunctionStep,
    KeepStep,
    app_json_schema,
    model_uses,
    parse_app,
    running_steps,
)
from marram.schema.errors import Invalid
from marram.schema.page import field

GATE = """
app: gate-camera
source: {camera: 0}
steps:
  - classify: efficientnet-lite0
    cloud: efficientnet-lite2
    place: soonest
    deadline: 200 ms
  - keep: result.confidence < 0.4
    budget: 50 MB/day
  - alert: result.label == "person" && frame.hour >= 22
send: changes
raw: redacted
limits: {memory: 300 MB, power: 6 W}
"""


def test_the_page_of_yaml_becomes_an_app() -> None:
    app = parse_app(GATE)
    classify, keep, alert = app.steps
    assert isinstance(classify, ClassifyStep) and isinstance(keep, KeepStep)
    assert (classify.model, classify.cloud, classify.deadline) == ("efficientnet-lite0", "efficientnet-lite2", 0.2)
    assert keep.budget == pytest.approx(50e6 / 86400)
    assert (app.send, app.raw, app.limits.memory, app.limits.power) == ("changes", "redacted", 300_000_000, 6.0)
    assert app.inferences == [classify] and alert.verb == "alert"


def test_a_function_with_a_broker_is_a_function_not_a_source() -> None:
    app = parse_app(
        "app: legacy\nsource: {mqtt: sensors/raw}\n"
        "steps:\n  - mqtt: localhost:1883\n    function: handler.py:function_handler\n"
    )
    (step,) = app.functions
    assert isinstance(step, FunctionStep) and step.file == "handler.py" and step.mqtt == "localhost:1883"


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("camera: 0", "camra: 0"), 3, 'source: no source "camra"; did you mean "camera"?'),
        (("- classify:", "- clasify:"), 5, 'steps[0]: no step "clasify"; did you mean "classify"?'),
        (("200 ms", "200"), 8, 'steps[0].deadline: "200" has no unit; write 200 ms or 0.2 s'),
        (("200 ms", "200 parsecs"), 8, '"parsecs" is not a unit here'),
        (("deadline:", "deadlin:"), 8, 'steps[0].deadlin: no such option; did you mean "deadline"?'),
        (("50 MB/day", "50 MB"), 10, "is not a budget; write for example 50 MB/day"),
        (("send: changes", "send: everything"), 12, "send: input should be"),
        (("300 MB", "300"), 14, 'limits.memory: "300" has no unit; write 300 MB'),
        (("app: gate-camera", "app: Gate Camera"), 2, '"Gate Camera" is not a name'),
        (("camera: 0", "camera: -1"), 3, "source.camera: input should be greater than or equal to 0"),
    ],
)
def test_a_fault_names_line_field_and_next_step(change: tuple[str, str], line: int, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_app(GATE.replace(*change), "gate.yaml")
    assert f"gate.yaml:{line}  " in str(caught.value)
    assert says in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        parse_app(GATE.replace("200 ms", "200").replace("camera: 0", "camra: 0").replace("300 MB", "300"), "gate.yaml")
    assert [line.split("  ")[0] for line in str(caught.value).splitlines()] == [
        "gate.yaml:3",
        "gate.yaml:8",
        "gate.yaml:14",
    ]


@pytest.mark.parametrize(
    "text", ["", "- 1", "app: [", "7", "app: x", "\x00", "a: &a [*a]", "app: x\nsource: 3\nsteps: x"]
)
def test_what_is_not_an_app_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        parse_app(text)


@given(st.text(max_size=200))
def test_no_text_raises_anything_but_invalid(text: str) -> None:
    try:
        parse_app(text)
    except Invalid as error:
        assert str(error)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(
                st.sampled_from([*STEPS, *SOURCES, *SINKS, "app", "source", "steps", "x"]), children, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_no_document_raises_anything_but_invalid(document: object) -> None:
    try:
        parse_app(json.dumps(document))
    except Invalid as error:
        assert str(error)


def test_a_key_that_stands_twice_is_a_fault() -> None:
    with pytest.raises(Invalid) as caught:
        parse_app(GATE + "raw: allowed\n", "gate.yaml")
    assert str(caught.value) == 'gate.yaml:15: "raw" stands here twice, on line 13 too. Keep one.'


def test_a_page_that_would_be_gigabytes_written_out_is_told_in_a_line() -> None:
    laughs = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(Invalid) as caught:
        parse_app("\n".join(laughs) + "\napp: x\nsource: {camera: 0, every: *a11}\nsteps: [{classify: m}]\n")
    assert str(caught.value) == "app.yaml: its aliases make it too large, or endless. Write it out."


STEP = {"cloud": "{classify: m, cloud: big}", "plain": "{classify: m}", "keep": "{keep: 'true'}",
        "redact": "{redact: faces, model: mine}", "covered": "{redact: detections}",
        "function": "{function: f.py:f}", "filter": "{filter: 'true'}"}  # fmt: skip


def written(raw: str, steps: str, source: str = "camera: 0") -> App:
    listed = ", ".join(STEP[step] for step in steps.split())
    return parse_app(f"app: x\nsource: {{{source}}}\nsteps: [{listed}]\nraw: {raw}\n")


@pytest.mark.parametrize(
    ("raw", "steps", "runs"),
    [
        ("redacted", "cloud keep", "redact classify keep"),
        ("redacted", "plain keep", "redact classify keep"),
        ("redacted", "filter cloud", "redact filter classify"),
        ("redacted", "cloud function", "redact classify function"),
        # Nothing would leave; a step that redacts is written; a function may redact in its own way.
        ("redacted", "plain filter", "classify filter"),
        ("redacted", "redact cloud keep", "redact classify keep"),
        ("redacted", "cloud covered keep", "classify redact keep"),
        ("redacted", "function keep", "function keep"),
        ("never", "cloud filter", "classify filter"),
        ("allowed", "cloud keep", "classify keep"),
    ],
)
def test_raw_redacted_redacts_where_the_page_does_not(raw: str, steps: str, runs: str) -> None:
    assert " ".join(step.verb for _, step in running_steps(written(raw, steps))) == runs


def test_readings_are_never_redacted() -> None:
    app = written("redacted", "cloud keep", "series: a.csv")
    assert [step for _, step in running_steps(app)] == app.steps


def test_every_model_an_app_needs_is_known_with_its_field() -> None:
    uses = [(field(use.place), use.reference, use.cloud) for use in model_uses(written("redacted", "cloud keep"))]
    assert uses == [
        ("raw", "blazeface", False), ("steps[0].classify", "m", False), ("steps[0].cloud", "big", True),
    ]  # fmt: skip
    (first, *_) = model_uses(written("redacted", "redact covered"))
    assert (field(first.place), first.reference) == ("steps[0].model", "mine")
    assert [u.reference for u in model_uses(written("redacted", "covered"))] == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../b", "a\\b", "./x", ""])
def test_shipped_files_stay_beside_the_app(path: str) -> None:
    with pytest.raises(Invalid, match="files"):
        parse_app(GATE + f"files: [{json.dumps(path)}]\n")


@pytest.mark.parametrize(
    "function", ["../handler.py:f", "/abs/handler.py:f", "handler.py", "handler:f", "handler.py:9x"]
)
def test_a_function_stays_beside_the_app(function: str) -> None:
    with pytest.raises(Invalid, match="function"):
        parse_app(f"app: x\nsource: {{mqtt: t}}\nsteps: [{{function: '{function}'}}]\n")


def test_half_a_character_is_named_with_its_line() -> None:
    with pytest.raises(Invalid, match=r"app\.yaml:2: .*half a character"):
        parse_app('source: {camera: 0}\napp: "\\ud800\\udc00"\nsteps: [{classify: m}]\n')


def test_cloud_placement_needs_a_cloud_model() -> None:
    with pytest.raises(Invalid, match="needs a cloud model"):
        parse_app("app: x\nsource: {camera: 0}\nsteps: [{classify: m, place: cloud}]\n")


def test_the_json_schema_knows_every_verb() -> None:
    text = json.dumps(app_json_schema())
    for verb in (*STEPS, *SOURCES, *SINKS):
        assert f'"{verb}"' in text
