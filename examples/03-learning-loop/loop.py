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
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from marram.train.data import Example, digits
from marram.train.recipe import read_recipe

HERE = Path(__file__).resolve().parent
SITES = ("a", "b")


class Stage:
    """The cloud and the devices of this rehearsal, each a process of its own, with a home of its own under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "person"
        self.processes: list[subprocess.Popen[bytes]] = []

    def marram(self, *arguments: str | Path, home: Path | None = None, ok: tuple[int, ...] = (0,)) -> str:
        """Run one `marram` command to its end; returns what it printed. Raises SystemExit where it failed."""
        command = [sys.executable, "-m", "marram", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment(home or self.home), check=False
        )
        if done.returncode not in ok:
            raise SystemExit(f"marram {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *arguments: str | Path, home: Path | None = None) -> None:
        """Start one `marram` command that stays."""
        name = "-".join(str(a) for a in arguments[:2]) + f"-{len(self.processes)}"
        command = [sys.executable, "-m", "marram", *map(str, arguments)]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=self.environment(home or self.home))
            )

    def environment(self, home: Path) -> dict[str, str]:
        home.mkdir(parents=True, exist_ok=True)
        return {**os.environ, "HOME": str(home), "MARRAM_HOME": str(home / "marram")}

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()

    def wait(self, what: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in self.folder.glob("*.log")
                )
                raise SystemExit(f"waited {timeout_s:.0f} s in vain for {what}\n{logs}")
            time.sleep(0.2)

    def query(self, *filters: str) -> list[dict[str, Any]]:
        """What the devices answered, from the cloud."""
        told = self.marram("results", "query", "--kind", "result", *filters, "--json")
        return [json.loads(line) for line in told.splitlines()]


def pictures(site: str, part: str) -> list[tuple[np.ndarray, int]]:
    """Digits that the recipe's training never sees (its held-out quarter), a part of them for each purpose."""
    recipe = read_recipe(HERE / "recipe.yaml")
    held = [
        (scan, int(label))
        for scan, label in zip(*digits(), strict=True)
        if Example(np.repeat(scan[:, :, None], 3, axis=2), int(label), "base").held_out(recipe.hold_out)
    ]
    third = len(held) // 3
    return {"a": held[:third], "b": held[third : 2 * third], "later": held[2 * third :]}[
        site if part == "first" else part
    ]


def remounted(scan: np.ndarray) -> np.ndarray:
    """The picture as the camera of site b gives it once mounted anew: a quarter turn, light and dark swapped."""
    return 255 - np.rot90(scan)


def show(device_home: Path, shots: list[tuple[np.ndarray, int]], prefix: str) -> None:
    """Let the device see `shots` from now on. What a picture shows stands in its name, for the person who labels it."""
    folder, fresh, old = device_home / "digits", device_home / "digits.new", device_home / "digits.old"
    fresh.mkdir(parents=True)
    for number, (scan, label) in enumerate(shots):
        Image.fromarray(scan).save(fresh / f"{prefix}-{number:04d}-shows-{label}.png")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def measure(stage: Stage, site: str, prefix: str, shots: int, version: int) -> float:
    """The share of the `shots` pictures `prefix-…` that version `version` names rightly at `site`."""
    right: dict[str, bool] = {}
    cursor = 0

    def all_seen() -> bool:
        nonlocal cursor
        for event in stage.query("--device", f"reader-{site}", "--after", str(cursor), "--limit", "1000"):
            cursor, answer = event["id"], event["data"]
            if answer["name"].startswith(prefix) and answer["model"] == f"digits@{version}":
                right[answer["name"]] = answer["label"] == shown(answer["name"])
        return len(right) >= shots

    stage.wait(f"answers of version {version} to {shots} pictures {prefix} at site {site}", all_seen, 120)
    return sum(right.values()) / len(right)


def shown(name: str) -> str:
    """What the picture called `name` shows: who labels reads it off the picture, here off its name."""
    return name.rpartition("-")[2].removesuffix(".png")


def label_as_a_person(stage: Stage) -> int:
    """Look at each sample, write down what it shows, send the file. Returns how many."""
    samples = json.loads(
        stage.marram("sample", "list", "--app", "digit-reader", "--unlabelled", "--limit", "100000", "--json")
    )
    sheet = stage.folder / "labels.csv"
    with sheet.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label"])
        rows.writerows([s["id"], shown(s["data"]["name"])] for s in samples)
    stage.marram("sample", "label", sheet)
    return len(samples)


def run(folder: Path) -> dict[str, Any]:
    stage = Stage(folder)
    try:
        return _run(stage)
    finally:
        stage.stop()


def _run(stage: Stage) -> dict[str, Any]:
    say = lambda text: print(text, flush=True)  # noqa: E731
    stage.start("cloud", "--folder", stage.folder / "cloud", "--port", "0")
    stage.wait("the cloud", lambda: (stage.home / "marram" / "context.yaml").exists())

    say("train      version 1, from the base data")
    first = json.loads(stage.marram("train", "run", HERE / "recipe.yaml", "--json"))
    homes = {site: stage.folder / f"site-{site}" for site in SITES}
    shots = {site: len(pictures(site, "first")) for site in SITES}
    for site in SITES:
        show(homes[site], pictures(site, "first"), "first")
        token = json.loads(stage.marram("token", "create", "--labels", f"site={site}", "--json"))
        cloud = token["join"].split()[3]
        stage.marram("edge", "join", cloud, token["token"], "--name", f"reader-{site}", home=homes[site])
        stage.start("edge", "run", home=homes[site])
    stage.marram("deploy", HERE / "app.yaml", "--to", "all")
    usual = {site: measure(stage, site, "first", shots[site], first["version"]) for site in SITES}
    say(f"accuracy   site a {usual['a']:.1%} · site b {usual['b']:.1%}")

    say("site b     its camera is mounted anew: pictures come turned and inverted")
    show(homes["b"], [(remounted(scan), label) for scan, label in pictures("b", "first")], "turned")
    changed = measure(stage, "b", "turned", shots["b"], first["version"])
    say(f"accuracy   site b {changed:.1%}: what it is unsure of is kept")

    labelled = label_as_a_person(stage)
    say(f"labels     {labelled} samples")
    second = json.loads(stage.marram("train", "run", HERE / "recipe.yaml", "--json"))
    for score in second["slices"]:
        old = "–" if score["old"] is None else f"{score['old']:.1%}"
        say(f"judged     {score['slice']:<5} old {old}  new {score['new']:.1%}  on {score['examples']} held out")

    # Pictures of site b nobody trained on: the old version answers them first, then the new one.
    show(homes["b"], [(remounted(scan), label) for scan, label in pictures("b", "later")], "later")
    later = len(pictures("b", "later"))
    before = {"a": usual["a"], "b": measure(stage, "b", "later", later, first["version"])}
    stage.marram("deploy", HERE / "app.yaml", "--to", "all")
    after = {
        "a": measure(stage, "a", "first", shots["a"], second["version"]),
        "b": measure(stage, "b", "later", later, second["version"]),
    }
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
    options.folder.mkdir(parents=True)
    figures = run(options.folder.resolve())
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
