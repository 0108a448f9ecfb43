"""What travels on the bus: everything comes back as it was, and garbage is Invalid, never another error."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from marram.bus import codec, inferences
from marram.bus.packing import MAX_MESSAGE_BYTES
from marram.schema.device import Reported
from marram.schema.errors import Invalid
from marram.schema.event import Event, EventKind, Recorded

# No clock decides here: a busy machine is no fault.
patient = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
events = st.builds(
    Event,
    st.sampled_from(EventKind),
    st.text("abc-", max_size=10),
    st.floats(0, 4e9),
    st.dictionaries(st.text("abc"), plain, max_size=4),
    st.none() | st.binary(max_size=50),
    st.none() | st.just("image/jpeg"),
)


@patient
@given(event=events)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    assert codec.decode_event(codec.encode_event(event)) == event


@patient
@given(st.lists(st.tuples(st.integers(1, 2**63 - 1), events), max_size=6))
def test_a_batch_comes_back_as_it_was(pairs: list[tuple[int, Event]]) -> None:
    records = [Recorded("stream-0123", sequence, event) for sequence, event in pairs]
    assert codec.unpack_batch(codec.pack_batch("stream-0123", records)) == records


@settings(patient, max_examples=200)
@given(st.binary(max_size=200))
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 5000)
@example(msgpack.packb({1: 2}))
@example(msgpack.packb(msgpack.ExtType(5, b"x")))
def test_garbage_is_invalid_and_nothing_else(garbage: bytes) -> None:
    for decode in (
        codec.unpack_batch,
        codec.decode_event,
        codec.unpack_ack,
        inferences.InferRequest.unpack,
        inferences.InferReply.unpack,
        inferences.unpack_tensors,
        inferences.unpack_load,
    ):
        with pytest.raises(Invalid):
            decode(garbage)


@pytest.mark.parametrize(
    "message",
    [
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb([msgpack.ExtType(5, b"x")]),
        msgpack.packb({1: 2}),
        b"\x91" * 5000,
        codec.pack(b"x" * (2 * MAX_MESSAGE_BYTES)),
    ],
    ids=["extension", "extension inside", "key that is no text", "deep", "large"],
)
def test_what_is_no_message_of_ours_is_not_unpacked(message: bytes) -> None:
    with pytest.raises(Invalid, match="not a message of ours"):
        codec.unpack(message)


@patient
@given(document=plain)
def test_well_formed_messages_of_the_wrong_shape_are_invalid(document: object) -> None:
    for decode in (codec.unpack_batch, codec.decode_event, codec.unpack_ack):
        with pytest.raises(Invalid):
            decode(codec.pack(document))


@pytest.mark.parametrize(
    "row",
    [
        [0, "result", "app", 1.0, {}, None, None],
        [1, "nonsense", "app", 1.0, {}, None, None],
        [1, "result", 5, 1.0, {}, None, None],
        [1, "result", "app", "now", {}, None, None],
        [1, "result", "app", math.nan, {}, None, None],
        [1, "result", "app", 1.0, [], None, None],
        [1, "result", "app", 1.0, {}, "text", None],
        [1, "result", "app", 1.0, {}, None],
        "row",
        5,
    ],
)
def test_a_batch_is_taken_whole_or_not_at_all(row: object) -> None:
    good = [1, "result", "app", 1.0, {}, None, None]
    assert len(codec.unpack_batch(codec.pack({"stream": "stream-0123", "events": [good]}))) == 1
    with pytest.raises(Invalid):
        codec.unpack_batch(codec.pack({"stream": "stream-0123", "events": [good, row]}))


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        ({"score": math.nan}, {"score": None}),
        ({"top": [math.inf, (1, -math.inf, 2.5)]}, {"top": [None, [1, None, 2.5]]}),
        ({"by": {7: "seven"}}, {"by": {"7": "seven"}}),
    ],
)
def test_what_json_does_not_have_becomes_null_and_keys_become_text(data: dict[str, object], kept: object) -> None:
    assert codec.decode_event(codec.encode_event(Event(EventKind.RESULT, "app", 1.0, data))).data == kept


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, 2**70, "\ud800"])
def test_what_is_not_plain_data_is_invalid_and_names_the_app(value: object) -> None:
    with pytest.raises(Invalid, match="plain data") as caught:
        codec.encode_event(Event(EventKind.RESULT, "gate", 1.0, {"value": value}))
    assert caught.value.where == "gate"


def test_data_that_holds_itself_is_invalid() -> None:
    endless: dict[str, object] = {}
    endless["again"] = endless
    with pytest.raises(Invalid):
        codec.encode_event(Event(EventKind.RESULT, "gate", 1.0, endless))


def _nested(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(levels - 1):
        data = {"in": data}
    return data


def test_what_nests_too_deep_to_be_shown_is_invalid_on_both_ends() -> None:
    deepest = Event(EventKind.RESULT, "gate", 1.0, _nested(codec.MAX_DEPTH))
    assert codec.decode_event(codec.encode_event(deepest)) == deepest
    for data in (_nested(codec.MAX_DEPTH + 1), {"list": [[_nested(codec.MAX_DEPTH - 2)]]}):
        with pytest.raises(Invalid, match="deep"):
            codec.encode_event(Event(EventKind.RESULT, "gate", 1.0, data))
        row = [1, "result", "gate", 1.0, data, None, None]
        with pytest.raises(Invalid, match="deep"):
            codec.unpack_batch(codec.pack({"stream": "stream-0123", "events": [row]}))


def _report(stats: dict[str, Any]) -> bytes:
    return codec.pack({"apps": [{"name": "gate", "version": 1, "state": "committed", "stats": stats}]})


@pytest.mark.parametrize("stats", [_nested(codec.MAX_DEPTH + 1), {"fps": b"\xff"}])
def test_a_report_that_could_be_shown_to_nobody_is_invalid(stats: dict[str, Any]) -> None:
    assert codec.unpack_report(_report({"fps": [{"now": 3.5}]})).apps[0].stats == {"fps": [{"now": 3.5}]}
    with pytest.raises(Invalid, match=r"deep|not a report"):
        codec.unpack_report(_report(stats))


@pytest.mark.parametrize(
    "said",
    [
        {"time_s": math.nan},
        {"time_s": math.inf},
        {"uptime_s": math.inf},
        {"outbox_depth": -1},
        {"memory_bytes": 2**64 - 1},
        {"desired_version": 2**63},
        {"apps": [{"name": "gate", "version": 1, "state": "rolled_back", "attempt": 2**63 - 1}]},
        {"apps": [{"name": "gate", "version": 2**63, "state": "committed"}]},
        {"apps": [{"name": "gate", "version": 1, "state": "committed", "refused": [-1]}]},
        {"apps": [{"name": "gate", "version": 1, "state": "committed", "reason": "x" * 10_000}]},
        {"info": {"cores": 2**63}},
        {"info": {"system": "x" * 10_000}},
        {"apps": [{"name": f"gate{n}", "version": 1, "state": "pending"} for n in range(20_000)]},
    ],
)
def test_a_report_that_nobody_could_keep_or_count_on_is_invalid(said: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        codec.unpack_report(codec.pack(said))


@given(st.recursive(plain, lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5))
@patient
def test_every_report_that_is_taken_can_be_read_again(stats: object) -> None:
    said = {"time_s": 1.0, "temperature_c": math.nan, "apps": [{"name": "a", "version": 1, "state": "pending"}]}
    said["apps"][0]["stats"] = {"any": stats}  # type: ignore[index]
    try:
        taken = codec.unpack_report(codec.pack(said))
    except Invalid:
        return
    Reported.model_validate_json(taken.model_dump_json())


def test_an_acknowledgement_comes_back_as_it_was() -> None:
    assert codec.unpack_ack(codec.pack_ack(3, 99, 0.5)) == codec.Ack(3, 99, 0.5)


@pytest.mark.parametrize("document", [{}, {"stored": 1}, {"stored": True, "high": 1}, {"stored": 1, "high": -1}])
def test_a_malformed_acknowledgement_is_invalid(document: object) -> None:
    with pytest.raises(Invalid):
        codec.unpack_ack(codec.pack(document))
