"""What a device keeps of what was signed: across power cuts, full disks, damage; and who may be asked for what."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root

from marram.lab.attacks.updates.scene import APP, DOCUMENTS, OLD, START_S, Scene
from marram.lab.powercut.disk import cuts
from marram.lab.powercut.recording import record
from marram.schema.errors import NotReady, Retryable, Threat, Untrusted
from marram.trust import signers
from marram.trust.repository import DAY_S


def test_it_asks_for_no_more_than_is_new(tmp_path: Path) -> None:
    scene, asked = Scene(tmp_path), list[str]()
    honest = scene.fetch

    def fetch(name: str, most_bytes: int) -> bytes | None:
        asked.append(name.split(".", 1)[1] if name[0].isdigit() else name)
        return honest(name, most_bytes)

    scene.fetch = fetch
    scene.meet()
    assert asked == ["root.json", "timestamp.json", "snapshot.json", "targets.json", "main.json"]
    asked.clear()
    scene.meet()
    assert asked == ["root.json", "timestamp.json"]
    asked.clear()
    scene.publish()
    scene.device()
    assert asked == ["root.json", "timestamp.json", "snapshot.json", "main.json"]


def test_a_cloud_that_has_signed_nothing_is_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.fetch = lambda name, most_bytes: None
    with pytest.raises(NotReady, match=r"the cloud has no timestamp\.json"):
        scene.meet()


def test_what_the_way_to_the_cloud_raises_comes_through(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    def away(name: str, most_bytes: int) -> bytes | None:
        raise Retryable("the link is down")

    scene.fetch = away
    with pytest.raises(Retryable, match="the link is down"):
        scene.meet()


def test_damage_on_the_devices_disk_is_fetched_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.cloud.repository.replace(scene.rotate(lambda root: None), None)
    scene.meet()
    kept = [path for path in (tmp_path / "trust").rglob("*") if path.is_file()]
    assert len(kept) == 7
    for path in kept:
        for damage in (b"", b"\0" * 40, path.read_bytes()[:30]):
            path.write_bytes(damage)
            scene.meet()
            assert path.read_bytes() != damage


def test_what_somebody_else_left_in_the_folder_is_in_nobodys_way(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.meet()
    for name in ("odd.root.json", "²³.root.json", f"{'9' * 5000}.root.json"[-200:]):
        (tmp_path / "trust" / "root_history" / name).write_bytes(b"{}")
    scene.publish()
    scene.device()


def test_a_root_it_joined_with_that_is_damaged_says_so(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with pytest.raises(Untrusted, match=r"joined with is damaged.*marram edge join") as caught:
        scene.device(root=b"{}")
    assert caught.value.threat is Threat.TAMPERED


def test_a_disk_that_takes_nothing_refuses_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    (tmp_path / "trust").write_text("a file where the folder belongs")
    with pytest.raises(Retryable, match="cannot be kept"):
        scene.meet()


def test_the_floor_comes_back_from_what_was_signed(tmp_path: Path) -> None:
    """The clock's file is lost and the clock is turned back: the signed timestamp on the disk knows better."""
    scene = Scene(tmp_path)
    scene.meet()
    (tmp_path / "trust" / "clock.json").unlink()
    held = scene.fetch("timestamp.json", 0)
    scene.pass_s(10 * DAY_S)
    scene.cloud.repository.refresh()
    scene.meet()
    (tmp_path / "trust" / "clock.json").unlink()
    scene.skew_s = -START_S
    scene.serve({"timestamp.json": held})
    with pytest.raises(Untrusted):
        scene.meet()


def test_a_device_that_was_off_for_months_goes_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.meet()
    for _ in range(40):
        scene.pass_s(5 * DAY_S)
        scene.cloud.repository.refresh()
    scene.meet()


def test_versions_that_a_thief_pushed_far_ahead_are_forgotten_with_his_key(tmp_path: Path) -> None:
    """Fast-forward recovery (specification 5.3.11): after the key is replaced, ordinary versions are taken again."""
    scene = Scene(tmp_path)
    scene.meet()
    honest = scene.fetch
    for role in ("timestamp", "snapshot"):

        def ahead(document: Metadata[Any]) -> None:
            document.signed.version = 2**31 - 2

        scene.forge(ahead, role)
    scene.meet()
    scene.fetch = honest
    with pytest.raises(Untrusted) as caught:
        scene.meet()
    assert caught.value.threat is Threat.ROLLBACK

    def exchange(root: Root) -> None:
        for role in ("timestamp", "snapshot"):
            root.revoke_key(scene.cloud.online[role].public_key.keyid, role)
            scene.cloud.online[role] = signers.new_signer()
            root.add_key(scene.cloud.online[role].public_key, role)

    scene.pass_s(60)
    root = scene.rotate(exchange)
    scene.cloud.repository.replace(root, None)
    scene.publish()
    scene.device()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_power_cut_at_any_write_never_loses_what_was_seen(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from marram.lab.attacks.updates.scene import Scene, DOCUMENTS, APP
        from marram.lab.powercut.recording import mark
        from marram.trust import signers
        folder, kept = Path(sys.argv[1]), Path(sys.argv[2])
        scene = Scene(folder)
        scene.meet()
        (kept / "old").write_bytes(scene.fetch("timestamp.json", 0))
        scene.cloud.repository.replace(scene.rotate(lambda root: None), None)
        scene.publish()
        mark("begun")
        scene.device()
        mark("seen")
        for (role, version), document in scene.cloud.shelf.documents.items():
            (kept / f"{version}.{role}.json").write_bytes(document.content)
        (kept / "timestamp.json").write_bytes(scene.fetch("timestamp.json", 0))
        (kept / "root").write_bytes(scene.root)
        (kept / "now").write_text(str(scene.now_s))
    """
    disk, kept, script = tmp_path / "disk", tmp_path / "kept", tmp_path / "program.py"
    disk.mkdir(), kept.mkdir()
    script.write_text(textwrap.dedent(program))
    operations = record([sys.executable, str(script), str(disk), str(kept)], disk, os.environ)
    marks = {operation.mark: index for index, operation in enumerate(operations) if operation.mark}
    tried = 0
    for cut in cuts(operations):
        if cut.at <= marks["begun"]:
            continue
        place = tmp_path / f"cut-{tried}"
        place.mkdir()
        cut.write(place)
        scene = Scene(place)
        scene.now_s, scene.root = float((kept / "now").read_text()), (kept / "root").read_bytes()

        def fetch(name: str, most_bytes: int) -> bytes | None:
            return (kept / name).read_bytes() if (kept / name).exists() else None

        scene.fetch = fetch
        if cut.at > marks["seen"]:
            scene.serve({"timestamp.json": (kept / "old").read_bytes()})
            with pytest.raises(Untrusted) as caught:
                scene.device({OLD: DOCUMENTS[OLD]})
            assert caught.value.threat is Threat.ROLLBACK, cut.how
            scene.fetch = fetch
        scene.device({APP: DOCUMENTS[APP]})
        shutil.rmtree(place)
        tried += 1
    assert tried > 20
