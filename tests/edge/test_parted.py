"""A device whose app may part the cloud's model: it fetches the front and no back, and its worker loads it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image as Pillow
from tests.edge.world import Cloud, Device
from tests.runtime.cutting import bundle, picture, with_cut

from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.schema.device import AppState, CloudModel

APP = b"""
app: ticking
source: {images: photos, every: 20 ms, repeat: true}
raw: allowed
steps: [{classify: tiny, cloud: small}]
files: [photos/0.png, photos/1.png]
"""


def contents(made: Bundle) -> dict[str, bytes]:
    return {name: (made.folder / name).read_bytes() for name in made.files()}


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(picture(seed)).save(file, "PNG")
    return file.getvalue()


async def test_the_front_comes_along_and_is_a_way(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    tiny = bundle(tmp_path / "tiny")
    (tiny.folder / CARD).write_text(dump_card(tiny.card.model_copy(update={"model": "tiny"})))
    small, cut = with_cut(bundle(tmp_path / "small"), "pooled")
    # By its card it can win: half the work for a tenth of the bytes.
    card = small.card.model_copy(
        update={"cuts": [cut.model_copy(update={"front_ms": 5.0, "back_ms": 5.0, "bytes": 10, "loss": 0.0})]}
    )
    (small.folder / CARD).write_text(dump_card(card))
    files = contents(Bundle.open(small.folder))
    models = [
        {"name": "small", "version": 1, "manifest": cloud.manifest(files), "variants": [], "fronts": ["pooled"]},
        {"name": "tiny", "version": 1, "manifest": cloud.manifest(contents(Bundle.open(tiny.folder)))},
    ]
    app_files = {"app.yaml": APP, "photos/0.png": png(0), "photos/1.png": png(1)}
    offered = [CloudModel(name="small", version=1, card=card)]
    await cloud.want(cloud.app("ticking", 1, app_files, models=models, cloud=offered))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    told = await cloud.until(lambda r: any("cuts" in app.stats for app in r.apps))
    assert next(app for app in told.apps).stats["cuts"] == "small@1 is parted at pooled where that is soonest"
    fetched = {ask.sha256 for ask in cloud.asked}
    assert hashlib.sha256(files[cut.front]).hexdigest() in fetched
    assert hashlib.sha256(files[cut.back]).hexdigest() not in fetched
    await device.stop()
