"""`marram model codecs` and `marram model cut`: what they measure, what they say, and where they write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.cli.fleet import Terminal
from tests.runtime.cutting import bundle, picture

from marram.cli._sending import verdict
from marram.placement.envelope import Gain, Option
from marram.runtime import library
from marram.runtime.bundle import CARD, Bundle
from marram.runtime.cut import Back, Front
from marram.runtime.model import Model
from marram.schema.result import Place

pytest.importorskip("onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(8):
        place = folder / "more" if number % 2 else folder
        Pillow.fromarray(picture(number, 40, 1300 if number == 3 else 50)).save(place / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def here(marram_home: Path, tmp_path: Path) -> Bundle:
    return library.add(bundle(tmp_path / "made").folder)


def test_codecs_are_measured_into_the_next_version(marram_: Terminal, here: Bundle, photos: Path) -> None:
    said = marram_("model", "codecs", "small", "--images", photos)
    assert "small@2: written into" in said and "on 8 pictures" in said and "next: marram model add" in said
    assert library.versions("small") == [1, 2]
    assert here.card.codecs == library.get("small", 1).card.codecs == []  # a version that is there never changes
    card = library.get("small").card
    assert [codec.name for codec in card.codecs] == ["jpeg-60", "jpeg-75", "jpeg-85", "jpeg-95", "raw-zstd"]
    by_name = {codec.name: codec for codec in card.codecs}
    assert by_name["raw-zstd"].loss == 0.0 and by_name["jpeg-60"].bytes < by_name["jpeg-95"].bytes
    assert all(codec.encode_ms > 0 for codec in card.codecs)
    assert "codec     jpeg-85" in marram_("model", "show", "small@2", "--here")
    told = marram_.json("model", "codecs", "small@1", "--images", photos)
    assert told["pictures"] == 8 and told["reference"] == "small@3"
    assert {"bytes", "loss", "changed", "encode_ms", "name"} == set(told["codecs"][0])


def test_a_folder_is_written_in_place(marram_: Terminal, tmp_path: Path, photos: Path) -> None:
    made = bundle(tmp_path / "mine")
    marram_("model", "codecs", f"{made.folder}", "--images", photos)
    assert len(Bundle.open(made.folder).card.codecs) == 5 and library.versions("small") == []
    said = marram_("model", "cut", f"{made.folder}", "--at", "mixed", "--images", photos)
    assert "mixed: 8×8×8 cross" in said and f"next: marram model add {made.folder}" in said
    opened = Bundle.open(made.folder)
    assert [cut.name for cut in opened.card.cuts] == ["mixed"] and len(opened.card.codecs) == 5
    marram_("model", "cut", f"{made.folder}", "--at", "mixed", "--images", photos)  # made anew, not twice
    marram_("model", "cut", f"{made.folder}", "--at", "embedding", "--images", photos)
    assert [cut.name for cut in Bundle.open(made.folder).card.cuts] == ["mixed", "embedding"]
    assert {path.name for path in made.folder.iterdir()} == {
        CARD, "net.onnx", "mixed-front.onnx", "mixed-back.onnx", "embedding-front.onnx", "embedding-back.onnx",
    }  # fmt: skip


def test_the_cuts_are_listed_and_whether_any_pays(marram_: Terminal, here: Bundle, photos: Path) -> None:
    said = marram_("model", "cut", "small", "--images", photos)
    for name in ("stem", "mixed", "pooled", "embedding", "the picture itself: "):
        assert name in said
    assert "small@1 ever pays" in said or "Parting small@1 pays" in said
    assert library.versions("small") == [1]  # a list changes nothing
    told = marram_.json("model", "cut", "small", "--images", photos)
    assert [cut["name"] for cut in told["cuts"]] == ["stem-conv", "stem", "mixed", "pooled", "embedding"]
    assert told["variant"] == "fp32" and told["larger"] == []


def test_a_chosen_cut_becomes_the_next_version_and_goes_into_the_cloud(
    marram_: Terminal, here: Bundle, photos: Path
) -> None:
    told = marram_.json("model", "cut", "small", "--at", "embedding", "--images", photos)
    assert told["reference"] == "small@2" and told["cut"]["shape"] == [8]
    made = library.get("small", 2)
    front, back, whole = Front.load(made, "embedding"), Back.load(made, "embedding"), Model.load(made)
    image = picture(77)
    assert back.predict(front.run(image)).label == whole.predict(image).label
    for part in (front, back, whole):
        part.close()
    view = marram_.json("model", "add", made.folder)
    assert {"embedding-front.onnx", "embedding-back.onnx"} <= {file["path"] for file in view["manifest"]["files"]}
    assert "cut       embedding of fp32" in marram_("model", "show", "small")


UNMEASURED = "nobody measured what that costs it; on pictures like yours: marram model codecs small --images FOLDER"


def test_that_nobody_measured_it_is_said_where_it_is_sent(
    marram_: Terminal, here: Bundle, photos: Path, tmp_path: Path
) -> None:
    assert f"pictures sent to small@1 go as jpeg-85, and {UNMEASURED}" in marram_("model", "show", "small", "--here")
    page = "app: gate\nsource: {camera: 0}\nraw: allowed\nsteps: [{classify: small, cloud: small}]\n"

    def deployed(text: str) -> str:
        (tmp_path / "gate.yaml").write_text(text)
        return " ".join(marram_("deploy", tmp_path / "gate.yaml", "--to", "all", "--no-wait").split())

    said = deployed(page)
    assert said.count(UNMEASURED) == 1
    for nothing_is_sent in (page.replace(", cloud: small", ""), page.replace("allowed", "never")):
        assert UNMEASURED not in deployed(nothing_is_sent)
    assert UNMEASURED in deployed(page.replace(", cloud: small", "") + "peers: yes\n")  # to other devices
    marram_("model", "codecs", "small", "--images", photos)
    assert "small 2 is in the cloud" in (said := deployed(page)) and UNMEASURED not in said
    assert "measured" not in marram_("model", "show", "small@2", "--here")


def test_what_cannot_be_measured_is_said(marram_: Terminal, here: Bundle, tmp_path: Path, photos: Path) -> None:
    assert 'cannot be parted at "inner"' in marram_.fault("model", "cut", "small", "--at", "inner", "--images", photos)
    assert "no such folder" in marram_.fault("model", "codecs", "small", "--images", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in marram_.fault("model", "codecs", "small", "--images", tmp_path / "empty")
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "empty" / "one.png")
    assert "one picture is not enough" in marram_.fault("model", "codecs", "small", "--images", tmp_path / "empty")
    assert library.versions("small") == [1]


def test_the_verdict_in_words(here: Bundle) -> None:
    gain = Gain(Option("cut:mid", Place.SPLIT), 0.21, 0.004, 8.0, 0.002, 0.008)
    pays = verdict(here.card, [gain], [])
    assert "Parting small@1 pays: cut:mid saves up to 21%" in pays and "at 1 Mbit/s to 4 Mbit/s" in pays
    assert "8 times slower" in pays
    assert verdict(here.card, [], []).startswith("No cut of small@1 ever pays")
    slow = Gain(gain.option, 0.9, float("inf"), 4.0, 0.008, float("inf"))
    assert "cut:mid is sooner than the picture at less than 1 Mbit/s" in verdict(here.card, [], [slow])
    anywhere = Gain(gain.option, 0.9, float("inf"), 4.0, 0.0, float("inf"))
    assert "at any link" in verdict(here.card, [], [anywhere])
    quick = Gain(gain.option, 0.9, 0.0, 4.0, 0.0, 0.008)
    assert "at more than 1 Mbit/s" in verdict(here.card, [quick], [])
