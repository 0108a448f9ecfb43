"""The whole learning loop, as a person would do it: every step is a `marram` command.

    python examples/03-learning-loop/loop.py [--folder build/loop] [--json FILE]

A model is trained and put on two devices. At one site the camera is mounted anew: pictures come turned and inverted.
The devices keep what the model is unsure of, a person labels it, a new version is trained, judged beside the old one on
held-out data of both sites, registered and deployed. At the end the accuracy at each site is measured before and after,
on pictures no training ever saw.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from marram.lab.stage import Stage
from marram.train.data import digits
from marram.train.recipe import read_recipe

HERE = Path(__file__).resolve().parent
SITES = ("a", "b")


def pictures() -> dict[str, list[tuple[np.ndarray, int]]]:
    """What the cameras see, by site and time: digits that are no part of the recipe's base data."""
    base = read_recipe(HERE / "recipe.yaml").data.first or 0
    shots = [(scan, int(label)) for scan, label in zip(*digits(), strict=True)][base:]
    cuts = {"a early": 100, "b early": 100, "b turned": 300, "a later": 200, "b later": len(shots) - 700}
    ends = np.cumsum(list(cuts.values()))
    return {name: shots[end - size : end] for (name, size), end in zip(cuts.items(), ends, strict=True)}


def remounted(scan: np.ndarray) -> np.ndarray:
    """The picture as the camera of site b gives it once mounted anew: a quarter turn, light and dark swapped."""
    return 255 - np.rot90(scan)


def show(device_home: Path, shots: list[tuple[np.ndarray, int]], prefix: str) -> None:
    """Let the device see `shots` from now on. What a picture shows stands in its name, for the person who labels it."""
    # Not directly in the home, which leads to the device's own folder: an app sees no folder that is put there later.
    camera = device_home / "camera"
    folder, fresh, old = camera / "digits", camera / "digits.new", camera / "digits.old"
    fresh.mkdir(parents=True)
    for number, (scan, label) in enumerate(shots):
        Image.fromarray(scan).save(fresh / f"{prefix}-{number:04d}-shows-{label}.png")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def measure(stage: Stage, site: str, when: str, version: int) -> float:
    """The share of the pictures of `site` and `when` that version `version` of the model names rightly there."""
    right: dict[str, bool] = {}
    cursor, shots = 0, len(pictures()[f"{site} {when}"])
    with stage.api() as api:

        def all_seen() -> bool:
            nonlocal cursor
            while events := api.events(device=f"reader-{site}", kinds=["result"], after=cursor, limit=1000):
                cursor = events[-1].id
                for answer in (event.data for event in events):
                    if answer["name"].startswith(when) and answer["model"] == f"digits@{version}":
                        right[answer["name"]] = answer["label"] == shown(answer["name"])
            return len(right) >= shots

        stage.until(f"answers of version {version} to {shots} pictures {when} at site {site}", all_seen, 180)
    return sum(right.values()) / len(right)


def shown(name: str) -> str:
    """What the picture called `name` shows: who labels reads it off the picture, here off its name."""
    return name.rpartition("-")[2].removesuffix(".png")


def label_as_a_person(stage: Stage) -> int:
    """Look at each sample, write down what it shows, send the file. Returns how many."""
    samples = stage.ask("sample", "list", "--app", "digit-reader", "--unlabelled", "--limit", "100000")
    sheet = stage.folder / "labels.csv"
    with sheet.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label"])
        rows.writerows([s["id"], shown(s["data"]["name"])] for s in samples)
    stage.run("sample", "label", sheet)
    return len(samples)


def run(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole loop in `folder`; `say` hears how it goes. Returns the figures."""
    with Stage(folder) as stage:
        return _run(stage, say)


def _run(stage: Stage, say: Callable[[str], None]) -> dict[str, Any]:
    stage.cloud()

    say("train      version 1, from the base data")
    first = stage.ask("train", "run", HERE / "recipe.yaml")
    homes = {site: stage.home(f"reader-{site}") for site in SITES}
    for site in SITES:
        show(homes[site], pictures()[f"{site} early"], "early")
        stage.device(f"reader-{site}", site=site)
    stage.run("deploy", HERE / "app.yaml", "--to", "all")
    usual = {site: measure(stage, site, "early", first["version"]) for site in SITES}
    say(f"accuracy   site a {usual['a']:.1%} · site b {usual['b']:.1%}")

    say("site b     its camera is mounted anew: pictures come turned and inverted")
    show(homes["b"], [(remounted(scan), label) for scan, label in pictures()["b turned"]], "turned")
    changed = measure(stage, "b", "turned", first["version"])
    say(f"accuracy   site b {changed:.1%}: what it is unsure of is kept")

    labelled = label_as_a_person(stage)
    say(f"labels     {labelled} samples")
    second = stage.ask("train", "run", HERE / "recipe.yaml")
    for score in second["slices"]:
        old = "–" if score["old"] is None else f"{score['old']:.1%}"
        say(f"judged     {score['slice']:<5} old {old}  new {score['new']:.1%}  on {score['examples']} held out")

    # Pictures that nobody trained on, at both sites: the old version answers them first, then the new one.
    show(homes["a"], pictures()["a later"], "later")
    show(homes["b"], [(remounted(scan), label) for scan, label in pictures()["b later"]], "later")
    before = {site: measure(stage, site, "later", first["version"]) for site in SITES}
    # It is meant to be surer than the old one, so that alone must not stop it.
    stage.run("deploy", HERE / "app.yaml", "--to", "all", "--soak", "3s", "--gate", "confidence=off")
    after = {site: measure(stage, site, "later", second["version"]) for site in SITES}
    old, new = first["version"], second["version"]
    for site in SITES:
        say(f"site {site}     version {old} {before[site]:.1%}, version {new} {after[site]:.1%}")
    return {
        "versions": [first["version"], second["version"]],
        "accuracy_usual": usual,
        "accuracy_changed": changed,
        "samples_labelled": labelled,
        "judged": second["slices"],
        "accuracy_before": before,
        "accuracy_after": after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/loop"), help="where the rehearsal lives; must not exist"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.folder.exists():
        raise SystemExit(f"{options.folder} is there already: remove it, or name another with --folder")
    figures = run(options.folder.resolve(), lambda text: print(text, flush=True))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
