"""`marram placement explain`: each way with its parts, from stored results or a file; none of it is trusted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.fleet import Terminal

from marram.cli import execute, placement
from marram.schema.event import Event, EventKind
from marram.store import events as store

WHY: dict[str, Any] = {
    "low_ms": 48, "high_ms": 90, "replica": "r-7f",
    "ways": [
        {"place": "cloud", "codec": "jpeg-85", "bytes": 12034, "total_ms": 61, "transfer_ms": 15, "rtt_ms": 31,
         "queue_ms": 2.1, "service_ms": 13},
        {"place": "edge", "total_ms": 132, "wait_ms": 40, "service_ms": 92},
    ],
}  # fmt: skip
SOON: dict[str, Any] = {
    "frame": 10417, "place": "cloud", "predicted_ms": 61.2, "latency_ms": 57.1, "reason": "soonest", "why": WHY,
}  # fmt: skip


@pytest.fixture
def explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the command prints of these results."""

    def explain(*results: Any, options: tuple[str, ...] = (), status: int = 0) -> str:
        file = tmp_path / "results.jsonl"
        file.write_text("".join(f"{json.dumps(result)}\n" for result in results))
        capsys.readouterr()
        assert execute(["placement", "explain", "--file", str(file), *options]) == status
        shown = capsys.readouterr()
        return shown.err if status else shown.out

    return explain


def test_each_way_is_a_line_with_its_parts_and_the_chosen_one_is_marked(explained: Any) -> None:
    head, edge, cloud = explained(SOON).splitlines()
    assert head == "frame 10417 → cloud (r-7f)   predicted 61 ms (48–90)   took 57 ms"
    assert edge.split("  ")[0] == " edge" and "queue 40 + inference 92" in edge and edge.rstrip().endswith("132 ms")
    assert "12 kB at 6.42 Mbit/s 15 + rtt 31 + queue 2.1 + inference 13" in cloud
    assert cloud.rstrip().endswith("61 ms  ← soonest")
    assert edge.index("132 ms") + len("132 ms") == cloud.index("61 ms") + len("61 ms")  # aligned


def test_what_the_choice_went_by_besides_the_delay_is_said(explained: Any) -> None:
    cloud, edge = WHY["ways"]
    ways = [edge | {"energy_j": 0.3676}, cloud | {"on_time": 0.83, "energy_j": 0.0268, "money": 0.0004}]
    _, first, second = explained(SOON | {"place": "edge", "reason": "cheapest", "why": {"ways": ways}}).splitlines()
    assert first.split("132 ms")[1].split() == ["0.37", "J", "←", "cheapest"]
    assert second.rstrip().endswith("61 ms  83 % on time · 0.027 J · costs 0.0004")
    bare = explained(SOON)
    assert "on time" not in bare and " J" not in bare and "costs" not in bare


def test_what_was_out_of_the_ordinary_is_said(explained: Any) -> None:
    fell = SOON | {"place": "edge", "fallback": True, "hedged": True, "verified": False}
    head = explained(fell).splitlines()[0]
    assert "the cloud did not answer in time" in head and "the edge began too" in head and "unverified" in head
    away = {"place": "cloud", "codec": "jpeg-85", "excluded": "the cloud is away"}
    text = explained(SOON | {"place": "edge", "why": {"ways": [WHY["ways"][1], away]}})
    assert "cloud jpeg-85  the cloud is away" in text
    assert "nothing was weighed: the edge alone" in explained({"frame": 1, "place": "edge", "reason": "the edge alone"})


def test_what_was_never_measured_is_not_said_to_take_nothing(explained: Any) -> None:
    ways = [{"place": "edge", "total_ms": 0}, {"place": "cloud", "excluded": "the link is not measured yet"}]
    text = explained(SOON | {"place": "edge", "predicted_ms": 0.0, "why": {"low_ms": 0, "high_ms": 0, "ways": ways}})
    assert "predicted" not in text and "0 ms" not in text and "edge   not measured yet" in text


def test_a_part_that_was_never_measured_is_named(explained: Any) -> None:
    untried = {"place": "cloud", "codec": "jpeg-85", "bytes": 12034, "total_ms": 46, "transfer_ms": 15, "rtt_ms": 31}
    text = explained(SOON | {"place": "edge", "why": {"ways": [WHY["ways"][1], untried]}})
    assert "15 + rtt 31 + inference not measured yet" in text


def test_whose_frame_it_is_stands_there_where_several_could_be_meant(explained: Any) -> None:
    ours = SOON | {"device": "pi-1", "app": "gate"}
    assert explained(ours).startswith("pi-1 frame 10417 ")
    assert explained(ours, ours | {"app": "yard"}).startswith("pi-1 yard frame 10417 ")


def test_frames_are_chosen_by_number_or_as_the_last(explained: Any) -> None:
    results = [SOON | {"frame": number} for number in range(5)]
    assert explained(*results).startswith("frame 4 ")
    assert [line.split()[1] for line in explained(*results, options=("--last", "2")).splitlines() if "frame" in line] \
        == ["3", "4"]  # fmt: skip
    assert explained(*results, options=("--frame", "2")).startswith("frame 2 ")
    assert "no frame 9 among the results in" in explained(*results, options=("--frame", "9"), status=2)
    assert json.loads(explained(*results, options=("--json",)))[0]["why"] == WHY


def test_a_file_that_holds_no_results_is_named(explained: Any, tmp_path: Path) -> None:
    assert "no results in" in explained({"kind": "alert"}, status=2)
    (tmp_path / "odd.jsonl").write_text('{"frame": 1}\nnot json\n')
    (tmp_path / "deep.jsonl").write_text("[" * 200_000)
    assert execute(["placement", "explain", "--file", str(tmp_path / "deep.jsonl")]) == 2
    assert execute(["placement", "explain", "--file", str(tmp_path / "odd.jsonl")]) == 2
    assert execute(["placement", "explain", "--file", str(tmp_path / "none.jsonl")]) == 2


@pytest.mark.parametrize(
    "why",
    [
        7, [], {}, {"ways": 3}, {"ways": [1, None, "x"]}, {"ways": [{}]},
        {"low_ms": "a", "high_ms": None, "replica": 4, "ways": [{"place": 3, "codec": {}, "total_ms": "soon"}]},
        {"ways": [{"place": "cloud\x1b[31m", "bytes": -1, "transfer_ms": 1e300, "queue_ms": float("nan")}]},
    ],
)  # fmt: skip
def test_what_a_device_sends_breaks_no_line(explained: Any, why: Any) -> None:
    text = explained(SOON | {"why": why, "predicted_ms": "x", "frame": "\x1b[2J"})
    assert text.startswith("frame ") and "\x1b" not in text


def test_stored_results_of_a_device_are_explained(marram_: Terminal) -> None:
    served = marram_.served
    served.add_device("pi-1")
    assert "no results from pi-1 yet" in marram_.fault("placement", "explain", "pi-1")
    served.report("pi-1", stats={"cascade": "sure from 0.62 on", "cuts": "no cut of big@1 ever wins\x1b[2J"})
    stored = [Event(EventKind.RESULT, "colours", time.time(), SOON | {"frame": number}) for number in range(3)]
    served.deliver("pi-1", [*stored, Event(EventKind.RESULT, "colours", time.time(), {"label": "of no inference"})])
    text = marram_("placement", "explain", "pi-1")
    assert text.startswith("frame 2 → cloud") and "← soonest" in text
    assert "colours: cascade: sure from 0.62 on" in text and "colours: cuts: no cut of big@1 ever wins" in text
    assert "\x1b" not in text
    assert marram_("placement", "explain", "pi-1", "colours", "--frame", "1").startswith("frame 1 ")
    assert marram_.json("placement", "explain", "pi-1")[0]["why"] == WHY
    assert "no results of other from pi-1" in marram_.fault("placement", "explain", "pi-1", "other")


def test_a_frame_is_found_however_many_results_came_after_it(
    marram_: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOKED_THROUGH", 7)
    monkeypatch.setattr(placement, "_MOST", 3)
    served = marram_.served
    served.add_device("pi-1")
    served.add_device("pi-2")
    numbers = [5, 51, *range(100, 130), 5, *range(200, 230)]
    results = [SOON | {"frame": number, "label": '"frame":5,'} for number in numbers]
    served.deliver("pi-1", [Event(EventKind.RESULT, "colours", time.time(), data) for data in results])
    served.deliver("pi-2", [Event(EventKind.RESULT, "gate", time.time(), SOON | {"frame": 5})])
    assert marram_("placement", "explain", "pi-1", "--frame", "51").startswith("frame 51 → cloud")
    found = marram_.json("placement", "explain", "--frame", "5", "--last", "2")
    assert [(data["device"], data["app"]) for data in found] == [("pi-1", "colours"), ("pi-2", "gate")]
    assert len(marram_.json("placement", "explain", "pi-1", "--frame", "5", "--last", "3")) == 2
    assert "no frame 7 among the results of colours" in marram_.fault(
        "placement", "explain", "pi-1", "colours", "--frame", "7"
    )
