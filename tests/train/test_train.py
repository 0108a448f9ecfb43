"""Recipes, examples, training, judging: with real PyTorch, real ONNX, the real runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import marram.cli
from marram.runtime import library
from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.errors import Invalid, Missing
from marram.train.bundle import write_bundle
from marram.train.compare import accuracy, judge
from marram.train.data import Example, digits, gather
from marram.train.fit import _shifted, fit, inputs
from marram.train.loop import Outcome, run_recipe
from marram.train.recipe import Recipe, read_recipe

torch = pytest.importorskip("torch", reason="training needs PyTorch")

RECIPE = """
recipe: shapes
labels: [bars, dots]
data: {images: pictures}
input: {size: [16, 16], layout: NCHW, colour: gray, mean: [127.5], std: [127.5]}
width: 4
epochs: 6
batch: 16
hold_out: 30 %
licence: CC0-1.0
source: drawn by the test
"""


class Silent:
    def samples(self, done: int, total: int) -> None: ...
    def gathered(self, examples: object) -> None: ...
    def epoch(self, done: int, total: int, loss: float) -> None: ...
    def judging(self) -> None: ...


def draw(folder: Path) -> Path:
    """A recipe beside two folders of drawn pictures that a small network tells apart."""
    dice = np.random.default_rng(1)
    for label in ("bars", "dots"):
        pictures = folder / "pictures" / label
        pictures.mkdir(parents=True)
        for number in range(60):
            picture = dice.integers(0, 60, (16, 16), dtype=np.uint8)
            if label == "bars":
                picture[:, dice.integers(0, 4) :: 4] = 220
            else:
                picture[dice.integers(0, 4) :: 4, dice.integers(0, 4) :: 4] = 220
            Image.fromarray(picture).save(pictures / f"{number}.png")
    path = folder / "shapes.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return draw(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, Path]:
    """One whole training, in a home of its own: what came of it, the recipe, the bundle's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARRAM_HOME", str(tmp_path_factory.mktemp("trained")))
        path = draw(tmp_path_factory.mktemp("shapes"))
        outcome = run_recipe(read_recipe(path), path.parent, None, Silent())
        return outcome, path, library.get("shapes").folder


def test_a_recipe_becomes_a_bundle_that_knows_its_classes(first: tuple[Outcome, Path, Path]) -> None:
    outcome, path, folder = first
    assert outcome.verdict.accepted and outcome.version == 1 and outcome.old_version is None
    bundle = Bundle.open(folder)
    assert [v.name for v in bundle.card.variants] == ["onnx-int8", "onnx-fp32"] and bundle.labels == ("bars", "dots")
    assert outcome.verdict.scores[0].new > 0.9
    held = gather(read_recipe(path), path.parent, None).held_out
    for variant in ("onnx-int8", "onnx-fp32"):
        model = Model.load(bundle, variant=variant)
        right = [model.predict(e.image).label == bundle.labels[e.label] for e in held]
        assert sum(right) > 0.9 * len(held)


def test_the_same_again_is_refused_for_it_is_no_better(first: tuple[Outcome, Path, Path]) -> None:
    _, path, folder = first
    bundle, held = Bundle.open(folder), gather(read_recipe(path), path.parent, None).held_out
    verdict = judge(bundle, bundle, held, tolerance=0.01)
    assert not verdict.accepted and verdict.reason == "it is no better anywhere"


def test_what_is_worse_at_one_site_is_refused_though_better_at_another(
    first: tuple[Outcome, Path, Path], tmp_path: Path
) -> None:
    _, path, folder = first
    page, old = read_recipe(path), Bundle.open(folder)
    examples = gather(page, path.parent, None)
    # At site b the labels are the other way round: who learns only site b unlearns the base.
    other = [Example(e.image, 1 - e.label, "b") for e in examples.train]
    new = write_bundle(page, fit(page, other), 2, other, tmp_path / "new")
    at_b = [Example(e.image, 1 - e.label, "b") for e in examples.held_out]
    verdict = judge(new, old, [*examples.held_out, *at_b], tolerance=0.01)
    assert accuracy(new, at_b)["b"] > accuracy(old, at_b)["b"]
    assert not verdict.accepted and verdict.reason.startswith("on base it falls from")
    assert judge(new, old, at_b, tolerance=0.01).accepted
    # A fall by one example alone proves nothing; by two it does.
    kept = [e for e in at_b if e.label == 0]
    base = [e for e in examples.held_out if accuracy(old, [e])["base"] == 1]
    wrong_now = [e for e in base if accuracy(new, [e])["base"] == 0]
    assert judge(new, old, [*kept, wrong_now[0]], tolerance=0.01).accepted
    assert not judge(new, old, [*kept, *wrong_now[:2]], tolerance=0.01).accepted


def test_what_only_guesses_is_no_first_version(first: tuple[Outcome, Path, Path]) -> None:
    _, path, folder = first
    held = gather(read_recipe(path), path.parent, None).held_out
    half_wrong = [Example(e.image, e.label if n % 2 else 1 - e.label, e.slice) for n, e in enumerate(held)]
    verdict = judge(Bundle.open(folder), None, half_wrong, tolerance=0.01)
    assert not verdict.accepted and "guessing" in verdict.reason


def test_training_is_deterministic_and_a_few_samples_are_heard(recipe: Path) -> None:
    page = read_recipe(recipe)
    train = gather(page, recipe.parent, None).train
    one, two = fit(page, train), fit(page, train)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    # Ten pictures of a site whose labels are the other way round, against eighty of the base: both are learnt.
    few = [Example(255 - e.image, 1 - e.label, "b") for e in train[:5] + train[-5:]]
    model = fit(page, train + few)
    with torch.no_grad():
        answers = model(torch.from_numpy(inputs(page, few))).argmax(1)
    assert (answers == torch.tensor([e.label for e in few])).float().mean() > 0.8


def test_a_shift_moves_the_picture_and_keeps_its_size() -> None:
    x = torch.arange(2 * 1 * 6 * 6, dtype=torch.float32).reshape(2, 1, 6, 6)
    moved = [_shifted(torch, x, 2, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {tuple(m.shape) for m in moved} == {(2, 1, 6, 6)}
    assert len({float(m[0, 0, 3, 3]) for m in moved}) > 5
    assert torch.equal(_shifted(torch, x, 0, torch.Generator()), x)


def test_what_the_network_sees_is_what_the_device_feeds(first: tuple[Outcome, Path, Path]) -> None:
    _, path, folder = first
    model = Model.load(Bundle.open(folder), variant="onnx-fp32")
    example = gather(read_recipe(path), path.parent, None).held_out[0]
    (fed,) = model.prepare(example.image).tensors
    np.testing.assert_array_equal(fed, inputs(read_recipe(path), [example]))


@settings(max_examples=20)
@given(st.binary(min_size=12, max_size=12), st.floats(min_value=0.1, max_value=0.9))
def test_held_out_follows_from_content_alone(content: bytes, share: float) -> None:
    image = np.frombuffer(content, np.uint8).reshape(2, 2, 3)
    assert Example(image, 0, "a").held_out(share) == Example(image.copy(), 1, "b").held_out(share)


def test_about_the_asked_share_is_held_out() -> None:
    scans, _ = digits()
    held = [Example(np.repeat(s[:, :, None], 3, axis=2), 0, "base").held_out(0.25) for s in scans]
    assert 0.2 < sum(held) / len(held) < 0.3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("labels: [bars, dots]", "labels: [bars]"), "labels"),
        (("layout: NCHW", "layout: NHWC"), "layout: NCHW"),
        (("hold_out: 30 %", "hold_out: 100 %"), "hold_out"),
        (("hold_out: 30 %", "hold_out: 30"), "has no unit"),
        (("data: {images: pictures}", "data: {}"), "give either dataset"),
        (("epochs: 6", "epoch: 6"), ':7  epoch: no such field; did you mean "epochs"?'),
        (("width: 4", "width: 1"), "width"),
    ],
)
def test_a_wrong_recipe_names_file_and_field(recipe: Path, change: tuple[str, str], says: str) -> None:
    recipe.write_text(RECIPE.replace(*change))
    with pytest.raises(Invalid) as caught:
        read_recipe(recipe)
    assert str(recipe) in str(caught.value) and says in str(caught.value)


def test_missing_data_is_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no such file"):
        read_recipe(tmp_path / "none.yaml")
    page = read_recipe(recipe)
    with pytest.raises(Missing, match="no such folder"):
        gather(page, tmp_path / "elsewhere", None)
    for file in (tmp_path / "pictures" / "dots").iterdir():
        file.unlink()
    with pytest.raises(Missing, match="no pictures"):
        gather(page, recipe.parent, None)


def test_a_corrupt_picture_is_named(recipe: Path) -> None:
    (recipe.parent / "pictures" / "dots" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(Invalid, match=r"0\.png"):
        gather(read_recipe(recipe), recipe.parent, None)


def test_a_slice_too_small_to_judge_is_refused(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("hold_out: 30 %", "hold_out: 0.0001 %"))
    with pytest.raises(Invalid, match='nothing of "base" is held out'):
        gather(read_recipe(recipe), recipe.parent, None)


def test_the_command_trains_registers_and_then_refuses(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert marram.cli.execute(["train", "run", str(recipe), "--local", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accepted"] and told["version"] == 1 and told["slices"][0]["new"] > 0.9
    assert marram.cli.execute(["train", "run", str(recipe), "--local"]) == 1
    assert "refused: it is no better anywhere" in capsys.readouterr().out
    assert library.versions("shapes") == [1]


def test_the_recipe_of_the_example_is_right() -> None:
    example = Path(__file__).parents[2] / "examples" / "03-learning-loop" / "recipe.yaml"
    assert isinstance(read_recipe(example), Recipe)
