"""What functions require, on a device: wheels unpacked by a confined child into a folder of their own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import zipfile
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edge.world import LONG_S
from tests.wheelwright import wheel

from marram.edge import envs
from marram.edge.envs import Envs
from marram.edge.platform import machine
from marram.edge.state import Folder
from marram.schema.device import DesiredApp
from marram.schema.errors import Invalid, MarramError, Permanent, Threat, Untrusted
from marram.schema.model import File, Manifest
from marram.schema.platform import Platform
from marram.system import landlock


class Device:
    """A device's folder; wheels are put among its files as a fetch would."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self.folder.make()
        (path / "blobs").mkdir()
        self.envs = Envs(path)

    def manifest(self, *places: Path) -> Manifest:
        files = []
        for place in places:
            body = place.read_bytes()
            digest = hashlib.sha256(body).hexdigest()
            (self.folder.path / "blobs" / digest).write_bytes(body)
            files.append(File(path=place.name, sha256=digest, size_bytes=len(body)))
        return Manifest(files=files)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "device")


async def test_a_function_can_import_it_and_ask_for_its_version(device: Device, tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "2.3", {"tiny/__init__.py": b"value = 7\n", "tiny/data.txt": b"d"})
    place = await device.envs.install(device.manifest(made))
    code = "import tiny, importlib.metadata as m; print(tiny.value, m.version('tiny'))"
    assert _python(code, place) == "7 2.3\n"
    assert (place / "tiny/data.txt").read_bytes() == b"d"
    before = place.stat().st_ino
    assert (await device.envs.install(device.manifest(made))).stat().st_ino == before


def _python(code: str, place: Path) -> str:
    environment = {"PYTHONPATH": str(place)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout


async def test_nothing_runs_by_being_there(device: Device, tmp_path: Path) -> None:
    files = {
        "evil.pth": b"import os; os._exit(9)\n", "tiny.py": b"",
        "tiny-1.0.data/scripts/tiny": b"#!python\n", "tiny-1.0.data/data/etc/x": b"x",
        "tiny-1.0.dist-info/entry_points.txt": b"[console_scripts]\nrun = tiny:main\n",
    }  # fmt: skip
    place = await device.envs.install(device.manifest(wheel(tmp_path, "tiny", files=files)))
    assert sorted(each.name for each in place.iterdir()) == ["tiny-1.0.dist-info", "tiny.py"]


def _entry(place: Path, name: str, body: bytes = b"x", mode: int = 0) -> Path:
    with zipfile.ZipFile(place, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, body)
    return place


@pytest.mark.parametrize("path", ["../escaped.py", "/etc/escaped.py", "a/../../escaped.py", "a\\..\\escaped.py"])
async def test_a_path_that_leaves_the_folder_is_refused(device: Device, tmp_path: Path, path: str) -> None:
    await refused(device, _entry(wheel(tmp_path, "tiny"), path), Threat.TRAVERSAL)


async def test_a_link_is_refused(device: Device, tmp_path: Path) -> None:
    made = _entry(wheel(tmp_path, "tiny"), "tiny/link", b"/etc/passwd", stat.S_IFLNK | 0o777)
    await refused(device, made, Threat.TRAVERSAL)


async def test_a_zip_bomb_is_refused(device: Device, tmp_path: Path) -> None:
    await refused(device, wheel(tmp_path, "tiny", files={"tiny.txt": bytes(100_000_000)}), Threat.BOMB)


async def test_what_its_record_does_not_say_is_refused(device: Device, tmp_path: Path) -> None:
    changed = wheel(tmp_path, "tiny", files={"tiny.py": b"evil"}, record={"tiny.py": b"good"})
    await refused(device, changed, Threat.TAMPERED)
    await refused(device, _entry(wheel(tmp_path, "more"), "smuggled.py"), Threat.TAMPERED)


async def test_what_is_no_wheel_is_refused(device: Device, tmp_path: Path) -> None:
    (tmp_path / "tiny-1.0-py3-none-any.whl").write_bytes(b"PK\x05\x06 no")
    await refused(device, tmp_path / "tiny-1.0-py3-none-any.whl", Threat.TAMPERED)


async def refused(device: Device, place: Path, threat: Threat) -> None:
    with pytest.raises(Untrusted) as fault:
        await device.envs.install(device.manifest(place))
    assert fault.value.threat is threat, fault.value
    assert place.name in str(fault.value)
    assert not list((device.folder.path / "envs").iterdir())
    assert not list(device.folder.path.parent.rglob("escaped*"))


async def test_marrams_own_packages_stay_its_own(device: Device, tmp_path: Path) -> None:
    own = wheel(tmp_path, "numpy", "9.9", {"numpy/__init__.py": b"evil"})
    place = await device.envs.install(device.manifest(own, wheel(tmp_path, "tiny")))
    assert sorted(each.name for each in place.iterdir()) == ["tiny-1.0.dist-info", "tiny.py"]
    with pytest.raises(Invalid, match="brings numpy, which Marram itself runs on"):
        await device.envs.install(device.manifest(wheel(tmp_path, "sly", files={"numpy/evil.py": b""})))


def test_wheels_of_this_platform_are_chosen(device: Device) -> None:
    key = Platform.of(machine()).key
    wheels = Manifest(files=[])
    app = DesiredApp(name="a", version=1, files=Manifest(files=[]))
    assert device.envs.wheels(app) == wheels
    assert device.envs.wheels(app.model_copy(update={"wheels": {key: wheels, "other": wheels}})) == wheels
    with pytest.raises(Invalid, match=rf"resolved for other, and this device is {key}.*Deploy the app again"):
        device.envs.wheels(app.model_copy(update={"wheels": {"other": wheels}}))


async def test_what_no_app_needs_is_swept(device: Device, tmp_path: Path) -> None:
    one, two = (device.manifest(wheel(tmp_path, name)) for name in ("one", "two"))
    kept, gone = await device.envs.install(one), await device.envs.install(two)
    (device.folder.path / "envs" / ".half").mkdir()
    being_unpacked = kept.with_name(f".{kept.name}.x")
    being_unpacked.mkdir()
    device.envs.sweep([one])
    assert kept.is_dir()
    assert not gone.exists()
    assert {each.name for each in (device.folder.path / "envs").iterdir()} == {kept.name, being_unpacked.name}


async def test_what_a_cut_left_half_unpacked_goes_with_the_next_that_is_installed(
    device: Device, tmp_path: Path
) -> None:
    left = device.folder.path / "envs" / ".half" / "tiny"
    left.mkdir(parents=True)
    (left / "data").write_bytes(b"x")
    place = await device.envs.install(device.manifest(wheel(tmp_path, "tiny")))
    assert list((device.folder.path / "envs").iterdir()) == [place]


async def test_two_apps_at_once_are_unpacked_one_after_the_other(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second would take what the first is just making for what a cut left."""
    under_way = []

    async def unpack(wheels: Manifest, key: str) -> None:
        half = device.folder.path / "envs" / f".{key}.half"
        half.mkdir()
        under_way.append(half)
        for _ in range(50):  # longer than the other one needs to come as far
            await asyncio.to_thread(half.stat)
        assert under_way == [half]
        under_way.remove(half)
        half.rename(half.with_name(key))

    monkeypatch.setattr(device.envs, "_unpack", unpack)
    manifests = [device.manifest(wheel(tmp_path, name)) for name in ("one", "two")]
    places = await asyncio.gather(*map(device.envs.install, [*manifests, manifests[0]]))
    assert all(place.is_dir() for place in places)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[Process]]:
    """Let these lines run where wheels are unpacked, as a wheel might that found a way; the processes that did."""
    real, began = asyncio.create_subprocess_exec, list[Process]()

    def instead(lines: str) -> list[Process]:
        (tmp_path / "hostile").mkdir()
        (tmp_path / "hostile" / "taken_over.py").write_text(lines)

        async def begin(*arguments: str, env: dict[str, str], **more: Any) -> Process:
            taken = ["taken_over" if each == "marram.edge.unpack" else each for each in arguments]
            assert taken != list(arguments)
            looked_in = os.pathsep.join([str(tmp_path / "hostile"), env.get("PYTHONPATH", "")])
            began.append(await real(*taken, env=env | {"PYTHONPATH": looked_in}, **more))
            return began[-1]

        monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)
        return began

    return instead


@pytest.mark.skipif(not landlock.abi(), reason="needs a kernel with Landlock")
async def test_a_wheel_that_takes_its_unpacking_over_changes_nothing_else(
    device: Device, tmp_path: Path, hostile: Callable[[str], list[Process]]
) -> None:
    """What others' apps are made of above all: the next start would run it."""
    manifest = device.manifest(wheel(tmp_path, "tiny"))
    path = device.folder.path
    (path / "desired.json").write_text("{}")
    blob = path / "blobs" / manifest.files[0].sha256
    hostile(f"""
import json, os, pathlib, sys
met = {{}}
def attempt(name, try_it):
    try:
        met[name] = bool(try_it() or True)
    except OSError as error:
        met[name] = type(error).__name__
device = pathlib.Path({str(path)!r})
blob = pathlib.Path({str(blob)!r})
(pathlib.Path(sys.argv[1]) / "met.json").write_text("x")
attempt("read", blob.read_bytes)
attempt("write", lambda: open(blob, "r+"))
attempt("add", lambda: (device / "blobs" / "new").write_bytes(b"x"))
attempt("replace", lambda: (pathlib.Path(sys.argv[1]) / "met.json").rename(blob))
attempt("delete", blob.unlink)
attempt("elsewhere", (device / "desired.json").read_bytes)
(pathlib.Path(sys.argv[1]) / "met.json").write_text(json.dumps(met))
""")
    before = blob.read_bytes()
    await device.envs.install(manifest)
    met = json.loads((path / "envs" / "met.json").read_bytes())
    assert met.pop("read") is True
    assert True not in met.values(), met
    assert blob.read_bytes() == before and [each.name for each in blob.parent.iterdir()] == [blob.name]


async def test_what_never_ends_is_ended(
    device: Device, tmp_path: Path, hostile: Callable[[str], list[Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = hostile("import signal\nsignal.pause()\n")
    monkeypatch.setattr(envs, "LIMIT_S", 0.01)
    with pytest.raises(Permanent, match="were not unpacked within"):
        await device.envs.install(device.manifest(wheel(tmp_path, "tiny")))
    async with asyncio.timeout(LONG_S):
        assert [await process.wait() for process in began] == [-signal.SIGKILL]


async def test_a_full_disk_is_said_as_such(tmp_path: Path, small_disk: Path) -> None:
    device = Device(small_disk / "device")
    files = {f"tiny/{n}": os.urandom(100_000) for n in range(6)}
    with pytest.raises(MarramError, match="the disk is full"):
        await device.envs.install(device.manifest(wheel(tmp_path, "tiny", files=files)))
    assert not list((device.folder.path / "envs").iterdir())
