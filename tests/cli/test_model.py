"""`marram model`: into the cloud or here, refused with the reason, channels, lineage; what deployments make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.fleet import Terminal

from marram.lab.attacks.models import MODEL_ATTACKS
from marram.runtime import library
from marram.runtime.bundle import Bundle as Opened
from marram.schema import paths
from marram.schema.api import Origin, SliceScore
from marram.schema.device import AppState as State
from marram.schema.device import Chosen, Measured, Reported, ReportedApp

Bundle = Callable[..., Path]


def another(folder: Path, description: str, version: int | None = 1) -> Path:
    card = folder / "model.yaml"
    text = card.read_text().replace("version: 1\n", "" if version is None else f"version: {version}\n")
    card.write_text(text + f"description: {description}\n")
    return folder


def test_a_model_goes_into_the_cloud_and_with_here_into_the_library(marram_: Terminal, bundle: Bundle) -> None:
    folder = bundle("colours")
    said = marram_("model", "add", folder)
    assert "colours@1" in said and "in the cloud" in said and "next: marram model tag colours@1 stable" in said
    assert library.versions("colours") == []
    # The same again is the same version; other content needs another.
    assert marram_.json("model", "add", folder)["version"] == 1
    another(folder, "edited")
    assert "colours 1 has other content. Raise `version`" in marram_.fault("model", "add", folder)
    assert "colours@1" in marram_("model", "add", folder, "--here") and library.versions("colours") == [1]
    assert "never changes" in marram_.fault("model", "add", folder, "--force")
    (row,) = marram_.json("model", "list")["models"]
    assert row["cloud"] and row["here"]
    (row,) = marram_.json("model", "list", "--here")["models"]
    assert not row["cloud"]


def test_what_is_added_is_said_in_full(marram_: Terminal, bundle: Bundle) -> None:
    folder = bundle("colours")
    first = marram_("model", "add", folder)
    assert first.startswith("colours@1  onnx")  # no line of a bar that nobody sees
    assert "already" not in first and not marram_.said
    again = marram_("model", "add", folder)
    assert "colours@1" in again and "in the cloud already, the same" in again
    assert 'no model "colour"; did you mean "colours"?' in marram_.fault("model", "show", "colour")


@pytest.mark.parametrize("where", [(), ("--here",)], ids=["cloud", "here"])
def test_what_lies_beside_a_bundle_is_left_and_said_and_a_pickle_refused(
    marram_: Terminal, bundle: Bundle, where: tuple[str, ...]
) -> None:
    folder = bundle("colours")
    (folder / "notes").mkdir()
    for name in ("notes/today.md", "big.bin", ".hidden"):
        (folder / name).write_text("mine")
    said = marram_.json("model", "add", folder, *where)
    assert marram_.said == "left behind, as model.yaml does not name them: big.bin, notes/today.md"
    if not where:
        assert {file["path"] for file in said["manifest"]["files"]} == {"model.yaml", "model.onnx"}
    (folder / "Weights.PKL").write_bytes(b"whatever")
    refused = marram_.fault("model", "add", another(folder, "edited", 2), *where)
    assert "pickle" in refused and "Weights.PKL" in refused and "take it out of the folder" in refused


def test_a_card_without_a_version_gets_the_next_one(marram_: Terminal, bundle: Bundle, tmp_path: Path) -> None:
    marram_("model", "add", bundle("colours"))
    folder = another(bundle("colours", beside=tmp_path / "second"), "edited", None)
    assert "colours@2" in marram_("model", "add", folder)


def test_without_a_cloud_it_is_the_library_and_that_is_said(marram_: Terminal, bundle: Bundle) -> None:
    paths.context().unlink()
    assert "no cloud is known here" in marram_("model", "add", bundle("colours"))
    assert "no cloud is known" in marram_.fault("model", "tag", "colours@1", "stable")
    assert "colours" in marram_("model", "list") and "colours@1" in marram_("model", "show", "colours")


def test_a_version_that_only_this_machine_has_is_shown_although_the_cloud_has_others(
    marram_: Terminal, bundle: Bundle, tmp_path: Path
) -> None:
    marram_("model", "add", bundle("colours"))
    marram_("model", "add", another(bundle("colours", beside=tmp_path / "second"), "edited", 2), "--here")
    assert "colours@2" in marram_("model", "show", "colours@2")
    assert "colours@1" in marram_("model", "show", "colours")  # the cloud's own newest
    assert 'no model "colours@3"; there is 1, 2' in marram_.fault("model", "show", "colours@3")


@pytest.mark.parametrize("where", [(), ("--here",)], ids=["cloud", "here"])
@pytest.mark.parametrize("name", ["torch-wrong-checksum", "zip-bomb", "onnx-data-up", "card-path-up"])
def test_an_attack_is_refused_by_its_name(marram_: Terminal, tmp_path: Path, name: str, where: tuple[str, ...]) -> None:
    attack = next(each for each in MODEL_ATTACKS if each.name == name)
    attack.make(tmp_path / "attack")
    assert attack.threat.value in marram_.fault("model", "add", tmp_path / "attack", *where)
    assert marram_.json("model", "list")["models"] == []


def test_a_model_whose_labels_do_not_match_is_refused(marram_: Terminal, bundle: Bundle) -> None:
    folder = bundle("colours")
    card = folder / "model.yaml"
    card.write_text(card.read_text().replace("[red, green, blue]", "[red, green]"))
    assert "has 3 classes, its labels name 2" in marram_.fault("model", "add", folder)
    assert "task: " in marram_.fault("model", "add", _with(folder, "classification", "divination"))
    card.unlink()
    assert "has no model.yaml" in marram_.fault("model", "add", folder)


def _with(folder: Path, old: str, new: str) -> Path:
    card = folder / "model.yaml"
    card.write_text(card.read_text().replace(old, new))
    return folder


def test_a_channel_is_moved_listed_shown_and_taken_away(marram_: Terminal, bundle: Bundle, tmp_path: Path) -> None:
    marram_("model", "add", bundle("colours"))
    marram_("model", "add", another(bundle("colours", beside=tmp_path / "second"), "edited", 2))
    assert "colours@stable is colours@1 now (new)" in marram_("model", "tag", "colours@1", "stable")
    marram_("model", "tag", "colours@2", "canary")
    rows = {row["version"]: row["channels"] for row in marram_.json("model", "list")["models"]}
    assert rows == {1: ["stable"], 2: ["canary"]}
    assert marram_.json("model", "show", "colours@stable")["version"] == 1
    # Promoted: what canary points to.
    assert "(was 1)" in marram_("model", "tag", "colours@canary", "stable")
    assert marram_.json("model", "show", "colours@stable")["version"] == 2
    assert marram_.json("model", "show", "colours")["channels"] == ["canary", "stable"]
    assert "stays as it is" in marram_("model", "tag", "colours", "canary", "--remove")
    assert 'no channel "canary"; it has stable' in marram_.fault("model", "show", "colours@canary")
    assert 'no channel "canary"' in marram_.fault("model", "tag", "colours", "canary", "--remove")
    assert "a number is a version" in marram_.fault("model", "tag", "colours@1", "7")
    assert "which version" in marram_.fault("model", "tag", "colours", "stable")
    assert "no version 9" in marram_.fault("model", "tag", "colours@9", "stable")
    actions = [(row.action, row.target, row.detail) for row in marram_.served.state.audit.list()]
    assert ("model.tag", "colours@stable", {"version": 2, "before": 1}) in actions
    assert any(action == "model.untag" for action, _, _ in actions)


def test_a_deployment_means_the_channels_version_of_that_moment(
    marram_: Terminal, bundle: Bundle, tmp_path: Path
) -> None:
    marram_("model", "add", bundle("colours"))
    marram_("model", "add", another(bundle("colours", beside=tmp_path / "second"), "edited", 2))
    marram_("model", "tag", "colours@1", "stable")
    marram_.served.add_device("pi-1")
    file = tmp_path / "app.yaml"
    file.write_text("app: gate\nsource: {camera: 0}\nsteps:\n  - classify: colours@stable   # the good one\n")
    said = marram_("deploy", file, "--to", "all", "--no-wait")
    assert "colours@stable is colours@1 now" in said
    (device,) = marram_.json("device", "list")
    (app,) = device["desired"]["apps"]
    assert [(m["name"], m["version"]) for m in app["models"]] == [("colours", 1)]
    (page,) = [f for f in app["files"]["files"] if f["path"] == "app.yaml"]
    text = marram_.served.state.objects.get(page["sha256"]).decode()
    assert "classify: colours@1   # the good one" in text
    # Moving it changes nothing that is deployed; deploying again does.
    marram_("model", "tag", "colours@2", "stable")
    assert marram_.json("device", "list")[0]["desired"]["apps"] == device["desired"]["apps"]
    # Whoever deploys through the API gets the same.
    with marram_.served.api() as api:
        api.deploy(file.read_text())
    rolled = marram_.served.state.store.apps.get("gate")
    assert rolled is not None and [m.version for m in rolled.app.models] == [2]
    file.write_text(file.read_text().replace("stable", "stabel"))
    fault = marram_.fault("deploy", file, "--to", "all")
    assert 'app.yaml:4 steps[0].classify: model "colours" has no channel "stabel" in the cloud' in fault
    assert 'did you mean "stable"?' in fault
    assert 'has no channel "stabel"' in marram_.fault("app", "check", file)


def test_lineage_says_where_a_version_comes_from_and_who_uses_it(
    marram_: Terminal, bundle: Bundle, tmp_path: Path
) -> None:
    marram_("model", "add", bundle("colours"))
    second = Opened.open(another(bundle("colours", beside=tmp_path / "second"), "edited", 2))
    origin = Origin(
        parent=1, recipe="recipe: colours\n", trained_on=900, held_out=100, samples={"site=a": 600},
        accuracy=[SliceScore(slice="site=a", examples=50, old=0.8, new=0.9)],
    )  # fmt: skip
    with marram_.served.api() as api:
        api.push_model(second.card, second.folder, second.files(), version=2, origin=origin)
    file = tmp_path / "app.yaml"
    file.write_text("app: gate\nsource: {camera: 0}\nsteps: [{classify: colours}]\n")
    marram_.served.add_device("pi-1")
    marram_("deploy", file, "--to", "all", "--no-wait")
    marram_("model", "tag", "colours@2", "stable")
    said = marram_("model", "lineage", "colours@stable")
    for words in ("colours@2", "stable", "trained on 900 examples, judged on 100", "site=a  600", "recipe: colours",
                  "accuracy on site=a 90.0% (before 80.0%)", "from colours@1",
                  "used by gate 1  on 1 device"):  # fmt: skip
        assert words in said, words
    first = marram_.json("model", "lineage", "colours@1")
    assert first["children"] == [2] and first["origin"] is None and first["apps"] == [] and first["by"]
    assert "became colours@2" in marram_("model", "lineage", "colours@1")
    assert 'no model "nothing"' in marram_.fault("model", "lineage", "nothing")


def test_a_device_says_which_variant_it_runs_and_is_asked_to_measure(marram_: Terminal) -> None:
    marram_.served.add_device("pi-1")
    assert "runs no model" in marram_.fault("device", "bench", "pi-1")
    figures = [Measured(variant="int8", p50_ms=4.2, p95_ms=6.0, load_ms=5160, memory_bytes=90_000_000, accuracy=0.71),
               Measured(variant="fp32", fault="does not load")]  # fmt: skip

    def report(at_s: float) -> None:
        chosen = Chosen(
            model="net@1", variant="int8", why="fastest here: int8 4.2 ms", measured=figures, measured_s=at_s
        )
        app = ReportedApp(name="gate", version=1, state=State.COMMITTED, chosen=[chosen])
        marram_.served.state.store.states.report("pi-1", Reported(apps=[app]))

    report(100.0)
    shown = marram_("device", "show", "pi-1")
    assert "net@1  int8  (fastest here: int8 4.2 ms)" in shown and "4.2 ms" in shown and "does not load" in shown
    assert "5.16 s" in shown
    asked: list[tuple[str, str | None]] = []

    def bench(device: str, model: str | None) -> None:
        asked.append((device, model))
        report(200.0)

    marram_.served.state.hands.bench = bench
    assert "→" in marram_("device", "bench", "pi-1", "net") and asked == [("pi-1", "net")]
    marram_.served.state.hands.bench = lambda device, model: None
    assert "has not told its figures yet" in marram_.fault("device", "bench", "pi-1", "--timeout", "0.1 s")
    assert 'runs no model "other"' in marram_.fault("device", "bench", "pi-1", "other")
