"""What is drawn: the figures of the reports, empty states with the next step, and nothing that could run."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from marram.console import draw
from marram.console.watcher import History, Picture, Point
from marram.schema.api import EventView, Status
from marram.schema.device import AppState, Chosen, Device, DeviceInfo, DeviceState, Reported, ReportedApp
from marram.schema.event import EventKind


def device(stats: dict[str, Any] | None = None, name: str = "gate", **more: Any) -> Device:
    apps = [] if stats is None else [ReportedApp(name="photos", version=3, state=AppState.COMMITTED, stats=stats)]
    reported = Reported(apps=apps, outbox_depth=more.pop("outbox", 0), time_s=time.time())
    return Device(id=name, state=DeviceState.ONLINE, seen_s=time.time(), reported=reported, **more)


def words(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def test_tiles_add_the_fleet_up() -> None:
    status = Status(version="1", uptime_s=1, devices=2, online=2, apps=1, models=1, events=1284, samples=0)
    devices = [device({"fps": 9.5, "edge": 10, "cloud": 30}), device({"fps": 0.5, "edge": 20}, "b", outbox=7)]
    shown = words(draw.tiles(Picture(devices, status)))
    assert "2 of 2 devices online" in shown and "10.0 /s" in shown and "50 % answered at the edge" in shown
    assert "1,284 events stored" in shown and "7 waiting on devices" in shown


def test_what_a_person_has_to_do_soon_is_beside_the_parts_of_the_cloud() -> None:
    warnings = ["what is signed as root expires in 3 days. Renew it: marram cloud root renew", "<b>"]
    status = Status(version="1", uptime_s=1, devices=0, online=0, apps=0, models=0, events=0, samples=0)
    assert "warn" not in draw.health(Picture([], status))
    shown = draw.health(Picture([], status.model_copy(update={"warnings": warnings})))
    assert '<span class="pill warn" role="alert">what is signed as root expires in 3 days.' in shown
    assert "&lt;b&gt;" in shown and "<b>" not in shown


def test_a_card_tells_recent_shares_and_draws_them() -> None:
    points = [Point(0.0, 100, 0, 20.0), Point(100.0, 1, 3, 30.0), Point(103.0, 0, 4, 25.0)]
    card = draw.card(device({"edge": 101, "cloud": 7, "p50_ms": 24.2, "p95_ms": 9.94}), {"photos": points})
    assert "edge 12 % cloud 88 %" in words(card) and "24 ms" in card and "9.9 ms" in card
    assert card.count('<rect class="e"') == 2 and card.count('<rect class="c"') == 2 and "<polyline" in card


def test_what_is_not_known_is_a_dash_and_what_is_empty_names_the_next_step() -> None:
    assert "marram token create" in draw.no_devices()
    assert "marram deploy app.yaml --to all" in draw.card(device(), {})
    assert "–" in draw.card(device({"frames": 0}), {}) and "<svg" not in draw.card(device({"frames": 0}), {})
    assert "appears here" in draw.tail([])
    assert "never heard" in draw.card(Device(id="new"), {})


def test_a_link_that_is_down_an_outbox_that_fills_and_faults_are_seen() -> None:
    stats = {"edge": 1, "link_up": False, "link_rate_bit_s": 1e6, "errors": 3, "last_error": "cannot read <x>"}
    card = draw.card(device(stats, outbox=1204), {})
    assert ">down<" in card and "1,204 in the outbox" in words(card)
    assert "3 skipped for a fault: cannot read &lt;x&gt;" in card


class Harmless(HTMLParser):
    """Notes every tag and attribute."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


_EVIL = st.sampled_from(["<script>", '"><img src=x onerror=alert(1)>', "' onload='x", "</td>", "&lt;"]) | st.text(
    max_size=12
)
_VALUE = _EVIL | st.floats() | st.integers() | st.none() | st.booleans() | st.lists(_EVIL, max_size=2)
_KEYS = st.sampled_from(
    ["label", "confidence", "value", "unit", "score", "detections", "place", "latency_ms", "topic", "payload", "state",
     "condition", "result", "edge", "cloud", "p50_ms", "link_up", "link_rate_bit_s", "errors", "last_error", "fps"]
)  # fmt: skip
_TAGS = {"header", "span", "h2", "div", "p", "b", "br", "code", "svg", "rect", "polyline", "dl", "dt", "dd", "footer",
         "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip


@given(data=st.dictionaries(_KEYS, _VALUE), kind=st.sampled_from(list(EventKind)), text=_EVIL)
def test_nothing_a_device_sends_becomes_markup(data: dict[str, Any], kind: EventKind, text: str) -> None:
    event = EventView(id=1, device="d", app=text, kind=kind, time_s=0, data=data)
    chosen = [Chosen(model=text, variant="v", why=text)]
    app = ReportedApp(name="a", version=1, state=AppState.ROLLED_BACK, reason=text, stats=data, chosen=chosen)
    seen = Device(id="d", labels={text: text}, info=DeviceInfo(machine=text), reported=Reported(apps=[app]))
    history = History()
    for moment in (1.0, 2.0, 3.0):
        history.take(moment, data)
    points = list(history.points)
    for markup in (draw.tail([event]), draw.card(seen, {"a": points}), draw.tiles(Picture([seen]))):
        found = Harmless(markup)
        assert found.tags <= _TAGS | {"small"} and not any(name.startswith("on") for name in found.attributes)


def test_history_counts_what_came_between_reports() -> None:
    history = History()
    for moment, edge, cloud in ((1, 10, 0), (1, 99, 99), (2, 14, 6), (3, 14, 6), (4, 2, 1)):
        history.take(float(moment), {"edge": edge, "cloud": cloud, "recent_p50_ms": 5})
    # The first is the ground; the same moment, or the same counts, are no news; a new worker counts from nothing.
    assert [(p.edge, p.cloud) for p in history.points] == [(4, 6), (2, 1)]


def test_the_variant_that_a_device_chose_is_shown_with_its_reason() -> None:
    chosen = Chosen(model="net@1", variant="int8", why="fastest here: int8 4 ms, <b>fp32</b> 9 ms")
    app = ReportedApp(name="a", version=1, state=AppState.COMMITTED, chosen=[chosen])
    card = draw._app(app, 1, [])
    assert "net@1 int8: fastest here: int8 4 ms, &lt;b&gt;fp32" in card
