"""Names, cards, manifests, results, events, states, errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from marram.schema.device import TRANSITIONS, AppState, Desired, DesiredApp
from marram.schema.errors import Invalid, MarramError, NotReady, Permanent, Retryable
from marram.schema.event import EventKind
from marram.schema.ids import check_name, matches, new_id, parse_labels
from marram.schema.model import File, Manifest, ModelCard, Task
from marram.schema.result import Detection, Result

unit = st.floats(min_value=0, max_value=1)
pixels = st.floats(min_value=0, max_value=4096)
detections = st.builds(
    Detection,
    st.text(max_size=9),
    unit,
    st.tuples(pixels, pixels, pixels, pixels),
    st.lists(st.tuples(pixels, pixels), max_size=3).map(tuple),
)
results = st.one_of(
    st.builds(
        Result,
        st.just(Task.CLASSIFICATION),
        st.just("m"),
        label=st.text(max_size=9),
        confidence=unit,
        top=st.lists(st.tuples(st.text(max_size=9), unit), max_size=5).map(tuple),
    ),
    st.builds(Result, st.just(Task.DETECTION), st.just("m"), detections=st.lists(detections, max_size=3).map(tuple)),
    st.builds(Result, st.just(Task.REGRESSION), st.just("m"), value=pixels, unit=st.just("mm")),
    st.builds(Result, st.just(Task.ANOMALY), st.just("m"), score=unit, threshold=unit, extra=st.just({"people": 3})),
)


@given(results)
def test_a_result_survives_the_wire(result: Result) -> None:
    assert Result.from_dict(result.to_dict()) == result


def test_what_functions_add_cannot_pose_as_the_model() -> None:
    result = Result(Task.CLASSIFICATION, "m", label="cat", confidence=0.9).with_(label="dog", people=2)
    assert result.to_dict()["label"] == "cat" and result.to_dict()["people"] == 2


def test_anomaly_needs_both_score_and_threshold() -> None:
    assert Result(Task.ANOMALY, "m", score=2.0, threshold=1.0).anomaly is True
    assert Result(Task.ANOMALY, "m", score=0.5, threshold=1.0).anomaly is False
    assert Result(Task.ANOMALY, "m", score=2.0).anomaly is None


def test_the_worth_of_events() -> None:
    order = sorted(EventKind, key=lambda kind: kind.worth)
    assert (
        order.index(EventKind.ALERT)
        < order.index(EventKind.SAMPLE)
        < order.index(EventKind.RESULT)
        < order.index(EventKind.METRIC)
    )


@pytest.mark.parametrize("name", ["a", "gate-wifi", "pump_7", "x" * 63])
def test_names(name: str) -> None:
    assert check_name(name) == name


def test_a_new_id_is_a_name_of_its_own() -> None:
    made = {check_name(new_id("pi")) for _ in range(20)}
    assert len(made) == 20 and all(name.startswith("pi-") for name in made)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a*", "a>", "a b", "x" * 64, "../a", "a\n", "é"])
def test_names_that_could_escape_a_subject_or_a_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        check_name(name)


def test_labels() -> None:
    assert parse_labels("site=shanghai, line=3") == {"site": "shanghai", "line": "3"}
    assert parse_labels("all") == {}
    assert matches({}, {"site": "x"}) and matches({"site": "x"}, {"site": "x", "line": "1"})
    assert not matches({"site": "x"}, {"site": "y"}) and not matches({"site": "x"}, {})
    with pytest.raises(ValueError, match="key=value"):
        parse_labels("shanghai")


def test_every_state_has_its_transitions_and_nothing_unverified_runs() -> None:
    assert set(TRANSITIONS) == set(AppState)
    reaches_running = {state for state, after in TRANSITIONS.items() if AppState.PROVISIONAL in after}
    assert reaches_running == {AppState.VERIFIED}
    assert {state for state, after in TRANSITIONS.items() if AppState.COMMITTED in after} == {AppState.PROVISIONAL}


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../b", "a//b", "./a", "a\\b", ""])
def test_a_bundle_holds_only_plain_inside_paths(path: str) -> None:
    with pytest.raises(ValidationError):
        File(path=path, sha256="0" * 64, size_bytes=1)


def test_a_card_refuses_what_it_does_not_know() -> None:
    card = {
        "model": "m",
        "task": "classification",
        "input": {"size": [224, 224]},
        "output": {"form": "softmax"},
        "variants": [{"name": "litert-int8", "engine": "litert", "file": "m.tflite"}],
        "licence": "Apache-2.0",
        "source": "here",
    }
    assert ModelCard.model_validate(card).variants[0].file == "m.tflite"
    for change in ({"tsk": "x"}, {"task": "divination"}, {"variants": []}, {"version": 0}, {"model": "M!"}):
        with pytest.raises(ValidationError):
            ModelCard.model_validate(card | change)


def test_desired_state_survives_json() -> None:
    files = Manifest(files=[File(path="app.yaml", sha256="a" * 64, size_bytes=3)])
    desired = Desired(version=4, apps=[DesiredApp(name="gate", version=2, files=files)])
    assert Desired.model_validate_json(desired.model_dump_json()) == desired
    assert files.size_bytes == 3


def test_an_error_reads_as_where_what_hint() -> None:
    assert str(Invalid("is wrong", where="a.yaml:3", hint="Mend it.")) == "a.yaml:3: is wrong. Mend it."
    assert str(Invalid("Is it on?", hint="Try x.")) == "Is it on? Try x."
    assert issubclass(NotReady, Retryable) and issubclass(Invalid, Permanent) and issubclass(Permanent, MarramError)
