"""token, device, results, top, sample: what they print, and what they say when something is wrong."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.fleet import Terminal
from tests.cloud.api.serving import result, sample

from marram.cli import _show, results
from marram.cli.top import page
from marram.schema import paths
from marram.schema.api import EventView
from marram.schema.device import Chosen, Measured
from marram.schema.event import Event, EventKind

# ---------------------------------------------------------------- which cloud


def test_without_a_cloud_the_next_step_is_told(marram_: Terminal) -> None:
    paths.context().unlink()
    assert marram_.fault("device", "list") == (
        "no cloud is known here. Start one, marram cloud; sign in to one, marram login URL; "
        "or name one: --url URL --token TOKEN"
    )
    paths.context().write_text("[broken")
    assert "not YAML" in marram_.fault("device", "list")
    paths.context().write_text("token: x")
    assert "names no cloud" in marram_.fault("device", "list")


def test_flags_and_environment_name_another_cloud(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    served = marram_.served
    paths.context().unlink()
    assert marram_.json("device", "list", "--url", served.url, "--token", served.token) == []
    monkeypatch.setenv("MARRAM_URL", served.url)
    monkeypatch.setenv("MARRAM_TOKEN", served.token)
    assert marram_.json("device", "list") == []


def test_the_files_token_is_sent_to_the_files_cloud_only(marram_: Terminal) -> None:
    other = marram_.served.url.replace("127.0.0.1", "localhost")
    assert "this needs a token" in marram_.fault("device", "list", "--url", other)
    assert marram_.json("device", "list", "--url", marram_.served.url + "/") == []


def test_a_cloud_that_does_not_answer_is_one_line(marram_: Terminal) -> None:
    for command in (["device", "list"], ["token", "list"], ["results", "tail"], ["top"], ["sample", "list"]):
        assert "127.0.0.1:1 does not answer (connection refused)" in marram_.fault(*command, "--url", "127.0.0.1:1")


# ---------------------------------------------------------------- token, device


def test_a_token_is_made_listed_and_revoked(marram_: Terminal) -> None:
    line = marram_("token", "create", "--labels", "site=x,line=3", "--uses", "2", "--ttl", "1 h")
    assert line.startswith(f"marram edge join {marram_.served.url} mrm1.") and "(2 times, within 60 min" in line
    (listed,) = marram_.json("token", "list")
    assert listed["labels"] == {"site": "x", "line": "3"} and listed["uses_left"] == 2
    assert listed["id"] in marram_("token", "list") and "2 of 2" in marram_("token", "list")
    marram_("token", "revoke", listed["id"])
    assert "No tokens" in marram_("token", "list")
    assert "no token" in marram_.fault("token", "revoke", listed["id"])


def test_wrong_arguments_name_the_flag(marram_: Terminal) -> None:
    assert marram_.fault("token", "create", "--ttl", "5").startswith('--ttl: "5" has no unit')
    assert marram_.fault("token", "create", "--labels", "x").startswith('--labels: "x" is not a label')
    assert marram_.fault("token", "create", "--ttl", "400 d").startswith("--ttl: 400 d is too long; 366 d at most")
    assert '"x" is not a label' in marram_.fault("device", "list", "x")
    assert marram_.fault("results", "query", "--since", "1").startswith("--since:")


def test_devices_are_listed_shown_and_removed(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "marram token create" in marram_("device", "list")
    marram_.served.add_device("pi-1", site="x")
    marram_.served.add_device("pi-2", site="y")
    marram_.served.report("pi-1", outbox_depth=1204, reason="why not", stats={"last_error": "\x1b[31mred\x1b[0m"})
    listed = marram_("device", "list")
    assert "online" in listed and "1,204" in listed and "colours 1" in listed and "new" in listed
    assert [d["id"] for d in marram_.json("device", "list", "site=y")] == ["pi-2"]
    shown = marram_("device", "show", "pi-1")
    assert "21.0 ms" in shown and "why not" in shown and "should not run" in shown and "\x1b" not in shown
    assert "should not run" not in marram_("device", "show", "pi-2")
    counted = {"frames": 0, "errors": 0, "timeouts": 0, "skipped": 3, "shadow_skipped": "", "p95_ms": None}
    marram_.served.report("pi-2", stats=counted, held="held until noon: cleaning")
    shown = marram_("device", "show", "pi-2")
    told = {line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.split()}
    assert {"frames", "errors", "skipped"} <= told  # what counts nothing is left out, but for those that always tell
    assert not told & {"timeouts", "shadow_skipped", "p95_ms"}
    assert "held      until noon: cleaning" in shown
    assert marram_.json("device", "show", "pi-2")["reported"]["apps"][0]["stats"]["timeouts"] == 0
    marram_("device", "remove", "pi-1", "--yes")
    assert 'no device "pi-1"' in marram_.fault("device", "show", "pi-1")


# ---------------------------------------------------------------- results, top


def test_results_tail_and_query(marram_: Terminal) -> None:
    assert "No events yet" in marram_("results", "tail")
    marram_.served.deliver("pi-1", [result("red"), result("green", "cloud"), result("blue", app="other")])
    tail = marram_("results", "tail", "-n", "2").splitlines()
    assert len(tail) == 2 and "green  0.70  in the cloud  12 ms" in tail[0] and "blue" in tail[1]
    lines = [json.loads(line) for line in marram_("results", "query", "--app", "colours", "--json").splitlines()]
    assert [line["data"]["label"] for line in lines] == ["red", "green"]
    assert "from pi-9" in marram_("results", "query", "--device", "pi-9")
    assert len(marram_("results", "query", "--since", "1 h").splitlines()) == 3
    assert marram_("results", "query", "--kind", "alert", "--json") == ""


def test_query_reads_on_past_one_page(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.cli.results._PAGE", 3)
    marram_.served.deliver("pi-1", [result(f"label-{n}") for n in range(8)])
    lines = marram_("results", "query", "--after", "0", "--limit", "7", "--json").splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]


def test_follow_prints_what_comes_once_each(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[float] = []

    def deliver_then_stop(pause_s: float) -> None:
        rounds.append(pause_s)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        marram_.served.deliver("pi-1", [result(f"new-{len(rounds)}")], first=10 * len(rounds))

    marram_.served.deliver("pi-1", [result("old")])
    monkeypatch.setattr(time, "sleep", deliver_then_stop)
    lines = marram_("results", "tail", "--follow", "--json", status=130).splitlines()
    assert [json.loads(line)["data"]["label"] for line in lines] == ["old", "new-1", "new-2"]


def test_top_shows_the_fleet_at_a_glance(marram_: Terminal) -> None:
    assert "No devices yet" in marram_("top", "--once")
    marram_.served.add_device("pi-1")
    marram_.served.add_device("pi-2")
    marram_.served.report("pi-1", outbox_depth=5, stats={"link_rate_bit_s": 6.1e6, "link_rtt_ms": 48, "p50_ms": "odd"})
    shown = marram_("top")
    assert "6.1 Mbit/s 48 ms" in shown and "75 %" in shown and "25 %" in shown and "40 ms" in shown
    assert "no app" in shown and "1 of 2 devices online" in shown
    marram_.served.report("pi-1", stats={"frames": 8, "errors": 3})
    assert "errors" not in marram_("top")
    marram_.served.report("pi-1", stats={"frames": 0, "errors": 1234})
    assert "colours 1 1,234 errors" in marram_("top")
    devices, status = marram_.served.api().devices(), marram_.served.api().status()
    narrow = io.StringIO()
    status = status.model_copy(update={"warnings": ["what is signed as root expires in 25 days. Renew it: …"]})
    Console(width=80, file=narrow).print(page(devices, status, 80))
    assert "what is signed as root expires in 25 days" in narrow.getvalue()
    shown = narrow.getvalue()
    assert "outbox" in shown and "all-cloud" not in shown and "pi-1" in shown and "online" in shown


# ---------------------------------------------------------------- samples


def test_samples_go_out_as_files_and_come_back_as_labels(marram_: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no samples" in marram_.fault("sample", "export", str(out))
    said = {"result": {"label": "=HYPERLINK(1)", "confidence": 0.31}}
    marram_.served.deliver("pi-1", [sample(b"one", **said), sample(b"two", "image/png"), sample(b"3", "odd/type")])
    assert "result.confidence < 0.4" in marram_("sample", "list")
    assert "3 samples" in marram_("sample", "export", str(out))
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".csv"} == {
        "000001.jpg": b"one", "000002.png": b"two", "000003.bin": b"3",
    }  # fmt: skip
    sheet = out / "labels.csv"
    rows = list(csv.DictReader(sheet.open()))
    assert rows[0]["answer"] == "'=HYPERLINK(1)" and rows[0]["confidence"] == "0.31" and rows[0]["label"] == ""
    assert "no row has a label" in marram_.fault("sample", "label", str(sheet))

    sheet.write_text(sheet.read_text().replace("\n1,,", "\n1,cat,").replace("1,,", "1,cat,", 1))
    marram_("sample", "export", str(out))  # again, before anything was sent: what was typed stays
    assert next(csv.DictReader(sheet.open()))["label"] == "cat"
    sheet.write_text(sheet.read_text().replace("\n3,,", "\n3,dog,"))
    marram_("sample", "export", str(out), "--limit", "2")  # fewer of them: what was typed for the others stays as well
    assert [(row["id"], row["label"]) for row in csv.DictReader(sheet.open())] == [
        ("1", "cat"),
        ("2", ""),
        ("3", "dog"),
    ]
    sheet.write_text(sheet.read_text().replace("\n3,dog", "\n3,"))
    assert "1 sample labelled" in marram_("sample", "label", str(sheet))
    assert [s["label"] for s in marram_.json("sample", "list", "--labelled")] == ["cat"]
    assert [s["id"] for s in marram_.json("sample", "list", "--unlabelled")] == [2, 3]


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_sheet_as_spreadsheets_save_it(marram_: Terminal, tmp_path: Path, between: str) -> None:
    marram_.served.deliver("pi-1", [sample(b"one")])
    sheet = tmp_path / "labels.csv"
    sheet.write_bytes("\ufeffid,label,reason\r\n1,cat,a b\r\n".replace(",", between).encode())
    assert "1 sample labelled" in marram_("sample", "label", str(sheet))
    assert [s["label"] for s in marram_.json("sample", "list")] == ["cat"]


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("a,b\n1,2\n", "no columns"), ("id,label\nx,cat\n", 'labels.csv:2: "x" is not the id'),
     ("id,label\n77,cat\n", "no sample 77"), ("id,label\n\x00,x", "labels.csv"), (b"\xff\xfe\x00a", "cannot be read")],
)  # fmt: skip
def test_wrong_sheets_name_the_line(marram_: Terminal, tmp_path: Path, text: str | bytes | None, said: str) -> None:
    sheet = tmp_path / "labels.csv"
    if text is not None:
        sheet.write_bytes(text.encode() if isinstance(text, str) else text)
    assert said in marram_.fault("sample", "label", str(sheet))


# ---------------------------------------------------------------- what devices send cannot move the cursor


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_kind_of_event_is_one_harmless_line(kind: EventKind) -> None:
    documents: list[dict[str, Any]] = [
        {},
        {"label": "\x1b[2J\r\nx"},
        {"topic": "a", "payload": {"b": 1}},
        {"detections": [{"label": None}, 5]},
        {"result": 5},
        {"result": {"value": 3, "unit": "V"}},
        {"score": 0.5, "threshold": 0.4},
    ]
    for data in documents:
        event = EventView(id=1, device="d", app="a", kind=kind, time_s=float("inf"), data=data)
        text = _show.plain(_show.answer(event)).plain
        assert text.isprintable()
    assert _show.clock(float("inf")) == "inf" and _show.clock(1e30) == "1e+30"


def test_nothing_else_that_a_device_said_of_itself_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x9b2J\u202e\n"
    _show.print_chosen(Chosen(model=evil, variant="fp32", why=evil, measured=[Measured(variant="fp32", fault=evil)]))
    event = EventView(id=1, device="d", app=evil, kind=EventKind.RESULT, time_s=0, data={"label": evil})
    line = results._line(event).plain
    assert line.isprintable()
    shown = capsys.readouterr().out
    assert shown and all(part.isprintable() for part in shown.splitlines()) and len(shown.splitlines()) == 3


def test_an_event_is_said_in_words() -> None:
    def words(event: Event) -> str:
        view = EventView(id=1, device="d", app="a", kind=event.kind, time_s=0, data=event.data)
        return _show.answer(view)

    found = [{"label": "person"}, {"label": "dog"}, {"label": "person"}]
    assert (
        words(Event(EventKind.RESULT, "a", 0, {"detections": found, "place": "edge"}))
        == "2 × person, 1 × dog  at the edge"
    )
    assert words(Event(EventKind.RESULT, "a", 0, {"score": 0.5, "threshold": 0.4})) == "score 0.5 of 0.4"
    assert words(Event(EventKind.RESULT, "a", 0, {"value": 3.5, "unit": "V", "reason": "soonest"})) == "3.5 V"
    alert = {"condition": "frame.hour > 22", "state": "raised", "result": {"label": "person"}}
    assert words(Event(EventKind.ALERT, "a", 0, alert)) == "frame.hour > 22  raised  person"
    assert words(Event(EventKind.MESSAGE, "a", 0, {"topic": "sensor/data", "payload": "7"})) == "sensor/data  7"
    moved = {"what": "moved", "version": 7, "from": "provisional", "to": "rolled_back", "reason": "too slow"}
    assert words(Event(EventKind.DEPLOYMENT, "a", 0, moved)) == "version 7  provisional → rolled_back  too slow"
    held = {"what": "hold", "version": None, "from": None, "to": None, "reason": "line 4 runs"}
    assert words(Event(EventKind.DEPLOYMENT, "", 0, held)) == "hold  line 4 runs"
