"""The example as a person runs it: `marram run app.yaml`, the .tflite put where its README says."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marram.schema.app import parse_app

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "01-image-classification"


@pytest.fixture
def example(tmp_path: Path, shared_data: Path) -> Path:
    """A copy of the example with the model in it."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    models = shared_data / "models"
    shutil.copy(models / "tf2_mobilenet_v2_1.0_224_ptq.tflite", folder / "mobilenet-v2" / "model.tflite")
    shutil.copy(models / "imagenet_labels.txt", folder / "mobilenet-v2" / "labels.txt")
    return folder


def marram(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "marram", *arguments], capture_output=True, text=True, timeout=120)


def test_names_at_least_26_of_the_30_labelled_photos(example: Path, shared_data: Path) -> None:
    photos = shared_data / "images"
    ran = marram("run", str(example / "app.yaml"), "--images", str(photos), "--json")
    assert ran.returncode == 0, ran.stderr
    answers = {line["name"]: line for line in map(json.loads, ran.stdout.splitlines())}

    labels = (example / "mobilenet-v2" / "labels.txt").read_text().splitlines()
    with (photos / "labels.csv").open() as file:
        # Line 0 of the labels is "background", so class 0 of 1000 stands in line 1.
        accepted = {
            row["file"]: {labels[int(number) + 1] for number in row["accepted_class_ids_0_999"].split(";")}
            for row in csv.DictReader(file)
        }
    assert answers.keys() == accepted.keys()
    assert len(accepted) == 30
    right = [name for name, names in accepted.items() if answers[name]["label"] in names]
    assert len(right) >= 26, sorted(accepted.keys() - set(right))
    assert all(len(answer["top"]) == 3 and answer["place"] == "edge" for answer in answers.values())


def test_names_the_frames_of_a_video(example: Path, shared_data: Path) -> None:
    video = shared_data / "video" / "vtest.avi"
    ran = marram("run", str(example / "app.yaml"), "--video", str(video), "--limit", "3")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(n), "vtest.avi"] for n in range(3)]
    assert all("%" in line for line in lines)
    assert "preview  http://127.0.0.1:" in ran.stderr
    assert "0 errors" in ran.stderr


def test_says_what_to_do_without_the_tflite(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    ran = marram("run", str(folder / "app.yaml"), "--images", str(tmp_path / "photos"))
    assert ran.returncode == 2
    assert 'no such file "model.tflite"' in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", ["app.yaml", "without-tflite.yaml"])
def test_both_apps_are_whole(name: str) -> None:
    app = parse_app((EXAMPLE / name).read_text(), name)
    assert app.app == "image-classification"
    assert app.inferences[0].model in ("./mobilenet-v2", "efficientnet-lite0")
