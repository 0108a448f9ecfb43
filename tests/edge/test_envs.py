"""What functions require, on a device: wheels unpacked by a confined child into a folder of their own."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.wheelwright import wheel

from marram.edge.envs import Envs
from marram.edge.platform import machine
from marram.edge.state import Folder
from marram.schema.device import DesiredApp
from marram.schema.errors import Invalid, MarramError, Threat, Untrusted
from marram.schema.model import File, Manifest
from marram.schema.platform import Platform


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
    device.envs.sweep([one])
    assert kept.is_dir()
    assert not gone.exists()
    assert [each.name for each in (device.folder.path / "envs").iterdir()] == [kept.name]


async def test_a_full_disk_is_said_as_such(tmp_path: Path, small_disk: Path) -> None:
    device = Device(small_disk / "device")
    files = {f"tiny/{n}": os.urandom(100_000) for n in range(6)}
    with pytest.raises(MarramError, match="the disk is full"):
        await device.envs.install(device.manifest(wheel(tmp_path, "tiny", files=files)))
    assert not list((device.folder.path / "envs").iterdir())
