"""What a device is given of the models that its app names: variants of its own, fronts of the cloud's, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.cutting import bundle, with_cut

from marram.registry import Registry, manifest_of
from marram.rollout.release import Releases
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.schema.device import DesiredApp
from marram.schema.errors import Invalid
from marram.schema.model import Manifest
from marram.store import Objects, Store, open_store

pytest.importorskip("onnx")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "cloud.db")
    yield opened
    opened.close()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


@pytest.fixture
def registry(store: Store, objects: Objects) -> Registry:
    return Registry(store.models, objects, admits=lambda folder: [])


def put(objects: Objects, made: Bundle) -> Manifest:
    for file in made.files():
        objects.put_file(made.folder / file)
    return manifest_of(made.folder, made.files())


@pytest.fixture
def parted(registry: Registry, objects: Objects, tmp_path: Path) -> Bundle:
    """The model `small` with one cut, in the registry; beside it `tiny`, a whole one."""
    made, _ = with_cut(bundle(tmp_path / "small"), "mixed")
    made = Bundle(made.folder, made.card.model_copy(update={"accuracy_budget": 1.0}), made.labels)
    (made.folder / CARD).write_text(dump_card(made.card))
    registry.add(made.card, put(objects, made))
    other = bundle(tmp_path / "tiny")
    card = other.card.model_copy(update={"model": "tiny"})
    (other.folder / CARD).write_text(dump_card(card))
    registry.add(card, put(objects, other))
    return made


def released(store: Store, registry: Registry, objects: Objects, step: str, raw: str = "allowed") -> DesiredApp:
    page = f"app: gate\nsource: {{camera: 0}}\nraw: {raw}\nsteps:\n  - {{{step}}}\n"
    return Releases(store, registry, objects).make(page, Manifest(files=[]), {}).app


@pytest.mark.parametrize(
    ("step", "raw", "fronts"),
    [
        ("classify: tiny, cloud: small", "allowed", ["mixed"]),
        ("classify: tiny, cloud: small", "never", None),  # what crosses tells of the input
        ("classify: tiny, cloud: small, split: no", "allowed", None),
        ("classify: tiny, cloud: small, place: cloud", "allowed", ["mixed"]),
        ("classify: tiny, cloud: small, place: edge", "allowed", None),
        ("classify: tiny", "allowed", None),
    ],
)
def test_fronts_go_to_devices_whose_app_may_part_the_model(
    store: Store, registry: Registry, objects: Objects, parted: Bundle, step: str, raw: str, fronts: list[str] | None
) -> None:
    app = released(store, registry, objects, step, raw)
    models = {model.name: model for model in app.models}
    assert models["tiny"].variants == [None] and models["tiny"].fronts == []
    if fronts is None:
        assert "small" not in models
    else:
        assert models["small"].fronts == fronts and models["small"].variants == []


def test_one_model_may_be_both_the_edges_and_the_clouds(
    store: Store, registry: Registry, objects: Objects, parted: Bundle
) -> None:
    (model,) = released(store, registry, objects, "classify: small, cloud: small").models
    assert (model.variants, model.fronts) == ([None], ["mixed"])
    # What is signed of a model is the same whatever an app does with it.
    whole = model.model_copy(update={"variants": [None], "fronts": []})
    assert model.signed() == whole.signed()


def test_a_cut_that_costs_more_than_the_app_allows_goes_nowhere(
    store: Store, registry: Registry, objects: Objects, tmp_path: Path
) -> None:
    made, cut = with_cut(bundle(tmp_path / "small"), "mixed")
    card = made.card.model_copy(update={"cuts": [cut.model_copy(update={"loss": 0.05})]})
    (made.folder / CARD).write_text(dump_card(card))
    registry.add(card, put(objects, made))
    step = "classify: small, cloud: small"
    (model,) = released(store, registry, objects, step).models
    assert model.fronts == []
    (model,) = released(store, registry, objects, f"{step}, encoding_loss: 5 %").models
    assert model.fronts == ["mixed"]


def test_a_bundle_without_the_back_of_a_cut_is_not_taken_in(
    registry: Registry, objects: Objects, tmp_path: Path
) -> None:
    made, cut = with_cut(bundle(tmp_path / "small"), "mixed")
    manifest = put(objects, made)
    lacking = Manifest(files=[file for file in manifest.files if file.path != cut.back])
    with pytest.raises(Invalid, match=r'cuts\[0\].back: the bundle has no file "mixed-back.onnx"'):
        registry.add(made.card, lacking)
