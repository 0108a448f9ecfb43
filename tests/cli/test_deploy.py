"""`marram deploy`: what goes along, what is refused before anything travels, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.cli.fleet import Terminal

from marram.runtime import library
from marram.schema import paths
from marram.schema.device import AppState

Bundle = Callable[..., Path]


def app_file(folder: Path, steps: str, more: str = "") -> str:
    folder.mkdir(exist_ok=True)
    file = folder / "app.yaml"
    file.write_text(f"app: gate\nsource: {{images: photos, repeat: true}}\nsteps:\n{steps}\n{more}\n")
    return str(file)


def test_a_model_of_the_library_goes_along(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    library.add(bundle("colours", version=3))
    file = app_file(tmp_path / "a", "  - classify: colours")
    shown = marram_("deploy", file, "--to", "all")
    assert "model colours 3 is in the cloud" in shown and "gate 1 → 0 devices" in shown and "those that join" in shown
    (deployed,) = marram_.json("deploy", "--list")
    assert (deployed["app"], deployed["version"]) == ("gate", 1)
    # The same again is the same version, and nothing is pushed.
    assert "is in the cloud" not in marram_("deploy", file, "--to", "all") and "gate        1 " in marram_(
        "deploy", "--list"
    )


def test_a_newer_model_in_the_library_makes_a_newer_app(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    library.add(bundle("colours", version=1))
    file = app_file(tmp_path / "a", "  - classify: colours")
    marram_("deploy", file, "--to", "all")
    library.add(bundle("colours", version=2))
    assert "gate 2" in marram_("deploy", file, "--to", "all")
    pinned = app_file(tmp_path / "b", "  - classify: colours@1")
    assert "gate 3" in marram_("deploy", pinned, "--to", "all")
    marram_.served.add_device("pi-1")
    marram_("deploy", pinned, "--to", "all", "--no-wait")
    (device,) = marram_.json("device", "list")
    assert [m["version"] for m in device["desired"]["apps"][0]["models"]] == [1]


def test_a_model_in_the_cloud_is_enough(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    marram_.served.state.registry.add_folder(bundle("colours"))
    assert "gate 1" in marram_("deploy", app_file(tmp_path / "a", "  - classify: colours"), "--to", "all")


def test_a_check_asks_the_cloud_for_what_is_not_here(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    page = tmp_path / "app.yaml"
    page.write_text("app: a\nsource: {camera: 0}\nsteps:\n  - classify: colours\n    cloud: colours\nraw: allowed\n")
    assert 'steps[0].classify: no model "colours"' in marram_.fault("app", "check", str(page))
    marram_.served.state.registry.add_folder(bundle("colours"))
    assert marram_("app", "check", str(page)) == f"{page}: ok, a: 1 step\n"
    assert marram_.said == ""
    page.write_text("app: a\nsource: {camera: 0}\nsteps: [{classify: colors}]\n")
    assert 'no model "colors"; did you mean "colours"?' in marram_.fault("app", "check", str(page))
    page.write_text("app: a\nsource: {camera: 0}\nsteps: [{classify: colours@2}]\n")
    assert 'no model "colours@2"; there is 1' in marram_.fault("app", "check", str(page))
    page.write_text("app: a\nsource: {series: x.csv}\nsteps: [{score: colours}]\n")
    assert "app.yaml:3 steps[0].score: colours" in marram_.fault("app", "check", str(page))  # its card is read too


def test_a_check_is_no_fault_where_the_cloud_cannot_be_asked(marram_: Terminal, tmp_path: Path) -> None:
    page = tmp_path / "app.yaml"
    page.write_text("app: a\nsource: {camera: 0}\nsteps: [{classify: colours}]\n")
    away = ["--url", "http://127.0.0.1:1", "--token", "x"]
    assert marram_("app", "check", str(page), *away) == f"{page}: ok, a: 1 step\n"
    assert "on this machine, and whether the cloud has it is not known: 127.0.0.1:1 does not answer" in marram_.said
    paths.context().write_text("[")
    marram_("app", "check", str(page))
    assert "is not known" in marram_.said and "not YAML" in marram_.said
    paths.context().unlink()
    assert 'no model "colours"' in marram_.fault("app", "check", str(page))


def test_a_path_becomes_the_version_its_content_got(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    folder = tmp_path / "a"
    bundle("small", beside=folder / "models")
    bundle("large", beside=folder / "models")
    steps = "  - classify: ./models/small   # on the device\n    cloud: 'models/large'\n    parallel: 2"
    marram_.served.add_device("pi-1")
    marram_("deploy", app_file(folder, steps), "--to", "all", "--no-wait")
    (device,) = marram_.json("device", "list")
    (app,) = device["desired"]["apps"]
    assert [m["name"] for m in app["models"]] == ["small"] and [m["name"] for m in app["cloud"]] == ["large"]
    digest = next(f["sha256"] for f in app["files"]["files"] if f["path"] == "app.yaml")
    text = marram_.served.state.objects.get(digest).decode()
    assert "  - classify: small@1   # on the device\n    cloud: large@1\n    parallel: 2" in text
    # Edited in place and deployed again: a new version, without a number to raise by hand.
    card = folder / "models" / "small" / "model.yaml"
    card.write_text(card.read_text() + "description: edited\n")
    assert "model small 2 is in the cloud" in marram_("deploy", app_file(folder, steps), "--to", "all", "--no-wait")


def test_functions_and_files_go_along(marram_: Terminal, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    file = app_file(folder, "  - function: handler.py:handle", "files: [data/table.csv]")
    assert 'steps[0].function: no file "handler.py" beside the app' in marram_.fault("deploy", file, "--to", "all")
    (folder / "handler.py").write_text("def handle(event, context): ...")
    assert 'files[0]: no file "data/table.csv"' in marram_.fault("deploy", file, "--to", "all")
    (folder / "data").mkdir()
    (folder / "data" / "table.csv").write_text("x\n1\n")
    marram_.served.add_device("pi-1")
    marram_("deploy", file, "--to", "all", "--no-wait")
    (device,) = marram_.json("device", "list")
    names = [f["path"] for f in device["desired"]["apps"][0]["files"]["files"]]
    assert names == ["app.yaml", "data/table.csv", "handler.py"]


NOT_THERE = [
    ("  - classify: efficientnet-lite9", 'did you mean "efficientnet-lite'),
    ("  - classify: colurs", 'did you mean "colours"'),
    ("  - classify: colours@9", 'no model "colours@9"; there is 1'),
    ("  - classify: colours@x", 'model "colours" has no channel "x" in the cloud'),
    ("  - classify: ./nothing", "no such folder"),
    ("  - classify: efficientnet-lite0", "`marram model build efficientnet-lite0` makes it"),
    ("  - classfy: colours", 'did you mean "classify"'),
    ("  - classify: colours\n  - alert: result.label = 'x'", "app.yaml:5 steps[1].alert: "),
    ("  - classify: colours\n  - keep: 'true'", "app.yaml:5 steps[1].keep: `raw: never`"),
    ("  - classify: colours\n    cloud: colurs", "app.yaml:5 steps[0].cloud: no model"),
]


def test_what_does_not_exist_is_told_with_what_does(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    marram_.served.state.registry.add_folder(bundle("colours"))
    for steps, said in NOT_THERE:
        assert said in marram_.fault("deploy", app_file(tmp_path / "a", steps), "--to", "all")
    assert "Nothing is deployed" in marram_("deploy", "--list")


def test_a_cloud_model_that_may_never_be_asked_is_told(marram_: Terminal, tmp_path: Path, bundle: Bundle) -> None:
    marram_.served.state.registry.add_folder(bundle("colours"))
    steps = "  - classify: colours\n    cloud: colours"
    told = "app.yaml:5  steps[0].cloud: is never asked"
    assert told in marram_("deploy", app_file(tmp_path / "a", steps), "--to", "all")
    covered = steps + "\n  - function: f.py:cover\n  - redact: detections"
    (tmp_path / "a" / "f.py").write_text("def cover(frame, result): ...")
    assert told in marram_("deploy", app_file(tmp_path / "a", covered, "raw: redacted"), "--to", "all")
    assert told not in marram_("deploy", app_file(tmp_path / "a", steps, "raw: allowed"), "--to", "all")


SOURCES = [
    (
        "series: rows/x.csv",
        "[]",
        '2  source.series: file "rows/x.csv" stays here.*`files: \\[rows/x.csv\\]` sends it',
    ),
    ("series: rows/x.csv", "[rows/x.csv]", None),
    ("series: /srv/x.csv", "[]", None),
    ("video: x.mp4", "[rows/x.csv]", 'source.video: file "x.mp4" stays here'),
    ("video: 'rtsp://camera/1'", "[]", None),
    ("images: rows", "[]", 'source.images: folder "rows" stays here'),
    ("images: rows/", "[rows/x.csv]", None),
    ("images: ~/photos", "[]", None),
    ("camera: 0", "[]", None),
]


def test_a_source_that_does_not_travel_is_told(marram_: Terminal, tmp_path: Path) -> None:
    """Else every device rolls the app back with a path that nobody wrote."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "x.csv").write_text("v\n1\n")
    page = tmp_path / "app.yaml"
    for source, files, told in SOURCES:
        page.write_text(f"app: gate\nsource: {{{source}}}\nsteps: [{{filter: 'true'}}]\nfiles: {files}\n")
        shown = marram_("deploy", str(page), "--to", "all").replace(" \n", " ")  # the page's path may fill a line
        assert re.search(told, shown) if told else "stays here" not in shown, source


def test_arguments_that_make_no_sense_say_which(marram_: Terminal, tmp_path: Path) -> None:
    assert "no such file" in marram_.fault("deploy", str(tmp_path / "none.yaml"), "--to", "all")
    file = app_file(tmp_path / "a", "  - alert: frame.index > 3")
    assert "to which devices?" in marram_.fault("deploy", file)
    assert "--to:" in marram_.fault("deploy", file, "--to", "shanghai")
    assert "--timeout:" in marram_.fault("deploy", file, "--to", "all", "--timeout", "9")
    assert "say one thing" in marram_.fault("deploy")
    assert "say one thing" in marram_.fault("deploy", file, "--list")
    assert marram_.fault("deploy", "--remove", "gate").endswith("`marram deploy --list` shows what is.")
    marram_("deploy", file, "--to", "all")
    assert 'no app "gte" is deployed; did you mean "gate"?' in marram_.fault("deploy", "--remove", "gte")


def test_it_waits_for_devices_that_are_online_and_tells_how_it_ends(marram_: Terminal, tmp_path: Path) -> None:
    file = app_file(tmp_path / "a", "  - alert: frame.index > 3")
    marram_.served.add_device("pi-1")
    marram_.served.add_device("pi-2")
    marram_.served.report("pi-1", app="gate", state=AppState.COMMITTED)
    shown = marram_("deploy", file, "--to", "all")
    assert "fetched · verified · provisional · committed" in shown and "pi-2: offline; gets it when it is back" in shown

    marram_.served.report("pi-1", app="gate", state=AppState.ROLLED_BACK, reason="no photos in photos/")
    fault = marram_.fault("deploy", file, "--to", "all")
    assert fault.startswith("gate 1 was rolled back on 1 of 2: pi-1: no photos in photos/. Mend it and deploy again")

    marram_.served.report("pi-1", app="gate", state=AppState.FETCHED)
    assert "pi-1: not there yet" in marram_("deploy", file, "--to", "all", "--timeout", "10 ms")
    assert "1 fetched, 1 pending" in marram_("deploy", "--list")
    marram_("deploy", "--remove", "gate")
    assert "Nothing is deployed" in marram_("deploy", "--list")
