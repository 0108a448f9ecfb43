"""Questions, replies and tensors on the bus: what goes in comes out again, and nonsense is Invalid."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marram.bus import inferences
from marram.bus.inferences import InferReply
from marram.bus.packing import pack
from marram.schema.errors import Busy, Invalid, MarramError
from marram.schema.payload import TENSORS, Payload, RawTensor

tensors = st.builds(
    RawTensor,
    st.text(max_size=10),
    st.sampled_from(["float32", "int8"]),
    st.lists(st.integers(1, 2**31), max_size=5).map(tuple),
    st.binary(max_size=50),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(tensors, min_size=1, max_size=inferences.MAX_TENSORS), st.floats(0, 1), st.integers(1, 1000))
def test_tensors_and_what_is_asked_of_them_come_back(sent: list[RawTensor], least: float, top: int) -> None:
    body = inferences.pack_tensors(sent)
    assert inferences.unpack_tensors(body) == sent
    request = inferences.InferRequest(Payload(TENSORS, body), 0.5, top, least)
    assert inferences.InferRequest.unpack(request.pack()) == request
    reply = inferences.InferReply(None, "too large", 0.1, 0.2, outputs=body, kind="invalid")
    assert inferences.InferReply.unpack(reply.pack()) == reply


@pytest.mark.parametrize(
    "rows", [[], {}, [["x"]], [["x", "f4", 3, b""]], [["x", "f4", [1], 3.5]], [["x", "f4", [1], b""]] * 33]
)
def test_what_are_no_tensors(rows: object) -> None:
    with pytest.raises(Invalid, match="not tensors"):
        inferences.unpack_tensors(pack(rows))


@pytest.mark.parametrize(
    ("error", "busy", "queue_s", "waiting"),
    [(Invalid("no picture", where="colours"), False, 0.0, 0), (Busy("busy", queue_s=0.5, waiting=3), True, 0.5, 3)],
)
def test_a_refusal_says_what_is_wrong_and_only_busy_of_the_queue(
    error: MarramError, busy: bool, queue_s: float, waiting: int
) -> None:
    reply = InferReply.refusal(error)
    assert (reply.result, reply.error, reply.kind) == (None, str(error), error.kind)
    assert (reply.busy, reply.queue_s, reply.waiting) == (busy, queue_s, waiting)
