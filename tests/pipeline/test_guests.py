"""What other devices are answered with, and when: never while the app has work of its own, nor where it soon will."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from tests.pipeline.conftest import picture

from marram.pipeline import edge_pool
from marram.pipeline.edge_pool import EdgePool, Job, Ran, Seat
from marram.pipeline.guests import Guests
from marram.pipeline.stats import Stats
from marram.pipeline.ways import Ways
from marram.runtime.codecs import encode
from marram.runtime.model import Model
from marram.schema.app import App, asks_peers, may_send, parse_app, running_steps
from marram.schema.errors import Busy, Invalid, MarramError, Missing
from marram.schema.payload import Payload
from marram.schema.result import Place, Result

KEY = ("colours", 1)
Said = Result | MarramError


class Rig:
    """One app's guests, with a clock that stands still but where the test moves it."""

    def __init__(self, colours: Path) -> None:
        self.now_s = 1000.0
        self.model = Model.load(colours)
        self.pool = EdgePool([Seat(self.model)])
        self.stats = Stats()
        self.guests = Guests({KEY: self.pool}, self.stats)
        self.gate = threading.Event()

    def ask(self, payload: Payload | None = None, key: tuple[str, int] = KEY, left_s: float | None = None) -> Said:
        payload = payload or encode("jpeg-95", self.model.card, picture("red"))
        said: SimpleQueue[Said] = SimpleQueue()
        self.guests.ask(key, payload, left_s, lambda answer, service_s: said.put(answer))
        answer = said.get(timeout=30)
        self.settle()
        return answer

    def own(self, *, hold: bool = False) -> threading.Event:
        """Work of the app's own; set once it began."""
        begun, ended = threading.Event(), threading.Event()

        def work(seat: Seat) -> bool:
            begun.set()
            return not hold or self.gate.wait(30)

        def done(ran: Ran) -> None:
            ended.set()

        self.pool.put(Job(work, done, "own"))
        assert begun.wait(30)
        if not hold:
            assert ended.wait(30)
            self.settle()
        return ended

    def settle(self) -> None:
        """Until the pool's thread waits again."""
        with self.pool._changed:
            while self.pool._idle < 1:
                self.pool._changed.wait(0.001)


@pytest.fixture
def rig(colours: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(colours)
    monkeypatch.setattr(edge_pool.time, "monotonic", lambda: made.now_s)
    made.settle()
    yield made
    made.gate.set()
    made.pool.close()


def test_an_idle_device_answers_as_it_would_itself(rig: Rig) -> None:
    answer = rig.ask()
    assert isinstance(answer, Result) and answer.label == "red"
    assert rig.stats.read()["guests"] == 1 and rig.stats.read()["frames"] == 0


def test_while_it_works_it_is_busy(rig: Rig) -> None:
    ended = rig.own(hold=True)
    assert isinstance(rig_ask_without_settling(rig), Busy)
    rig.gate.set()
    assert ended.wait(30)
    rig.settle()
    assert isinstance(rig.ask(), Result)


def rig_ask_without_settling(rig: Rig) -> Said:
    said: list[Said] = []
    payload = encode("jpeg-95", rig.model.card, picture("red"))
    rig.guests.ask(KEY, payload, None, lambda answer, service_s: said.append(answer))
    return said[0]


def test_it_is_done_before_the_next_frame_is_due(rig: Rig) -> None:
    for _ in range(3):
        rig.own()
        rig.now_s += 1.0
    rig.own()
    rig.pool._usual_s["guest colours@1"] = 0.3
    rig.now_s += 0.6
    assert isinstance(rig.ask(), Result)
    rig.pool._usual_s["guest colours@1"] = 0.3
    rig.now_s += 0.2  # 0.2 s before the next one
    assert isinstance(rig.ask(), Busy)
    rig.now_s += 0.5  # it is late: it may come now
    assert isinstance(rig.ask(), Busy)
    rig.now_s += 0.8  # it does not come
    assert isinstance(rig.ask(), Result)


def test_what_is_asked_is_not_believed(rig: Rig) -> None:
    assert isinstance(rig.ask(Payload("image/jpeg", b"no picture")), Invalid)
    assert isinstance(rig.ask(Payload("application/x-tensor", bytes(12), (3,))), Invalid)
    assert isinstance(rig.ask(Payload("image/jpeg", b"", frame_size=(10**9, 10**9))), Invalid)
    assert isinstance(rig.ask(key=("colours", 2)), Missing)
    assert rig.stats.read()["guests"] == 0
    assert isinstance(rig.ask(), Result)


def test_what_came_too_late_is_not_computed(rig: Rig) -> None:
    assert isinstance(rig.ask(left_s=-1.0), Busy)


# ---------------------------------------------------------------- who asks


def app(step: str = "classify: colours", raw: str = "allowed", more: str = "peers: yes") -> App:
    return parse_app(f"app: gate\nsource: {{images: photos}}\nraw: {raw}\n{more}\nsteps:\n  - {{{step}}}\n")


@pytest.mark.parametrize(
    ("step", "asks"),
    [
        ("classify: colours", True),
        ("classify: colours, cloud: big", True),
        ("classify: colours, cloud: big, place: cheapest", True),
        ("classify: colours, cloud: big, place: surest", True),
        ("classify: colours, cloud: big, place: cloud", False),
        ("classify: colours, cloud: big, place: edge", False),
        ("classify: colours, cloud: big, cascade: learnt", False),
    ],
)
def test_others_are_asked_where_the_step_has_the_choice(step: str, asks: bool) -> None:
    made = app(step)
    assert asks_peers(made, made.inferences[0]) is asks
    without = app(step, more="")
    assert not asks_peers(without, without.inferences[0])


def test_what_goes_to_other_devices_is_redacted_first() -> None:
    made = app(raw="redacted")
    assert may_send(made, made.steps[0])
    assert [place for place, _ in running_steps(made)] == [("raw",), ("steps", 0)]
    without = app(raw="redacted", more="")
    assert [place for place, _ in running_steps(without)] == [("steps", 0)]


def test_other_devices_are_ways_of_their_own(colours: Path) -> None:
    model = Model.load(colours)
    try:
        card = model.card
        ways = Ways(model, card, peer=card)
        places = [way.place for way in ways.of("48x64")]
        assert places[0] is Place.EDGE and {*places} == {Place.EDGE, Place.CLOUD, Place.PEER}
        keys = {way.place: way.key for way in ways.of("48x64")}
        # The cloud may serve the same model: what is learnt of its replicas is not said of devices.
        assert keys[Place.PEER] != keys[Place.CLOUD]
        assert [way.place for way in ways.of("48x64", away=False)] == [Place.EDGE]
        assert {way.place for way in Ways(model, None, peer=card).of("48x64")} == {Place.EDGE, Place.PEER}
    finally:
        model.close()
