"""Requirements to wheels, for each platform of a fleet; by the real pip, from a folder of wheels."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.wheelwright import wheel

from marram.cloud import wheels as wheels_module
from marram.cloud.wheels import Group, Wheels, grouped, parse_requirement
from marram.schema.device import DeviceInfo
from marram.schema.errors import Invalid, MarramError, Retryable
from marram.schema.platform import OWN, Platform
from marram.store import Objects

PI = DeviceInfo(machine="aarch64", python="3.11", libc="glibc 2.36", packages={"numpy": "2.1.0", "marram": "0.1.0"})
PC = DeviceInfo(machine="x86_64", python="3.12", libc="glibc 2.39", packages={"numpy": "2.1.0"})


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """An index: a folder of wheels."""
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


@pytest.fixture
def wheels(tmp_path: Path, shelf: Path) -> Wheels:
    (tmp_path / "scratch").mkdir()
    return Wheels(Objects(str(tmp_path / "objects")), tmp_path / "scratch", str(shelf))


def names(found: dict[str, object], info: DeviceInfo) -> list[str]:
    return [file.path for file in found[Platform.of(info).key].files]  # type: ignore[attr-defined]


def test_each_platform_gets_its_own(wheels: Wheels, shelf: Path) -> None:
    wheel(shelf, "fast", tag="cp311-cp311-manylinux_2_17_aarch64")
    wheel(shelf, "fast", tag="cp312-cp312-manylinux_2_28_x86_64")
    wheel(shelf, "small", requires=["fast; platform_machine != 'armv7l'", "armonly; platform_machine == 'aarch64'"])
    wheel(shelf, "armonly")
    found = wheels.resolve(["small"], [PI, PC])
    assert names(found, PI) == [
        "armonly-1.0-py3-none-any.whl", "fast-1.0-cp311-cp311-manylinux_2_17_aarch64.whl", "small-1.0-py3-none-any.whl",
    ]  # fmt: skip
    assert names(found, PC) == ["fast-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", "small-1.0-py3-none-any.whl"]


def test_a_newer_c_library_than_the_devices_is_no_match(wheels: Wheels, shelf: Path) -> None:
    wheel(shelf, "fast", tag="cp311-cp311-manylinux_2_38_aarch64")
    with pytest.raises(Invalid, match=r"requires: no wheel of fast runs on cp311-aarch64-glibc-2.36"):
        wheels.resolve(["fast"], [PI])


def test_what_every_device_has_needs_no_wheel(wheels: Wheels) -> None:
    has = PI.model_copy(update={"packages": {**PI.packages, "torch": "2.6.0+cpu"}})
    assert names(wheels.resolve(["torch>=2.5"], [has]), has) == []
    with pytest.raises(Invalid, match="no wheel of torch"):
        wheels.resolve(["torch>=2.5"], [has, PI])
    with pytest.raises(Invalid, match="no wheel of torch"):
        wheels.resolve(["torch>=2.7"], [has])


def test_what_marram_runs_on_stays_as_it_is(wheels: Wheels, shelf: Path) -> None:
    for version in ("2.1.0", "3.0.0"):
        wheel(shelf, "numpy", version)
    wheel(shelf, "old", requires=["numpy<2.5"])
    wheel(shelf, "new", requires=["numpy>=3"])
    assert names(wheels.resolve(["old"], [PI]), PI) == ["old-1.0-py3-none-any.whl"]
    with pytest.raises(Invalid, match=r"new cannot be had together on cp311-aarch64-glibc-2.36: .*numpy") as fault:
        wheels.resolve(["new"], [PI])
    assert "as the devices have it" in str(fault.value)


def test_what_a_group_of_devices_has_is_what_each_of_them_has() -> None:
    first, second = {"numpy": "2.1.0", "torch": "2.6.0+cpu"}, {"numpy": "2.2.0", "torch": "odd"}
    alike, mixed = (Group(Platform.of(PI), each) for each in ((first, first), (first, second)))
    assert alike.satisfied(Requirement("torch>=2.5")) and not alike.satisfied(Requirement("torch[extra]>=2.5"))
    assert not mixed.satisfied(Requirement("torch>=2.5")) and not mixed.satisfied(Requirement("scipy"))
    assert alike.held() == ["numpy==2.1.0"] and mixed.held() == [], "devices that differ hold nothing"
    local = {"numpy": "2.1.0+local"}
    assert Group(Platform.of(PI), (local,)).held() == ["numpy==2.1.0"]


def test_wheels_are_bounded_together(wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels_module, "MOST_BYTES", 10)
    folder, group = tmp_path / "came", grouped([PI])[0]
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}-1.0-py3-none-any.whl").write_bytes(b"12345")
    (folder / "numpy-2.1.0-py3-none-any.whl").write_bytes(b"what Marram runs on is not sent")
    assert [file.path[0] for file in wheels._taken(folder, group).files] == ["a", "b"]
    monkeypatch.setattr(wheels_module, "MOST_BYTES", 1000)
    bare = Group(group.platform, ({"numpy": "2.1.0"}, {}))
    assert [file.path[0] for file in wheels._taken(folder, bare).files] == ["a", "b", "n"], "one has none"
    monkeypatch.setattr(wheels_module, "MOST_BYTES", 10)
    (folder / "c-1.0-py3-none-any.whl").write_bytes(b"1")
    with pytest.raises(Invalid, match="the wheels take more than"):
        wheels._taken(folder, group)
    (folder / "c-1.0-py3-none-any.whl").rename(folder / "c.tar.gz")
    with pytest.raises(Invalid, match=r"c\.tar\.gz is no wheel"):
        wheels._taken(folder, group)


@pytest.mark.parametrize("last", ["see {}", "ResolutionImpossible: {} depends on x"])
def test_what_pip_says_is_told_without_addresses(last: str) -> None:
    said = "ERROR: " + last.format("https://user:hidden@index.local/simple")
    fault = wheels_module._fault(said, ["x"], Platform.of(PI))
    assert "hidden" not in str(fault) and "index.local" not in str(fault) and "…" in str(fault)


def test_two_that_contradict_each_other_are_named(wheels: Wheels, shelf: Path) -> None:
    for version in ("1.0", "2.0"):
        wheel(shelf, "base", version)
    wheel(shelf, "left", requires=["base<2"])
    wheel(shelf, "right", requires=["base>=2"])
    with pytest.raises(Invalid, match="left, right cannot be had together") as fault:
        wheels.resolve(["left", "right"], [PI])
    assert "left 1.0 depends on base<2" in str(fault.value)


@pytest.mark.parametrize(
    "text", ["-r /etc/passwd", "--index-url=http://evil", "x @ https://evil/x.tar.gz", "git+https://evil/x", "../x", ""]
)
def test_only_names_and_versions_are_requirements(text: str) -> None:
    with pytest.raises(Invalid, match="requires: "):
        parse_requirement(text)


def test_nothing_is_built_and_no_code_of_a_package_runs(wheels: Wheels, shelf: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    setup = (
        f"open({str(marker)!r}, 'w').write('x')\nfrom setuptools import setup\nsetup(name='source', version='1.0')\n"
    )
    bundle = shelf / "source-1.0.tar.gz"
    with tarfile.open(bundle, "w:gz") as archive:
        for name, text in (("setup.py", setup), ("PKG-INFO", "Metadata-Version: 2.1\nName: source\nVersion: 1.0\n")):
            info = tarfile.TarInfo(f"source-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    with pytest.raises(Invalid, match="no wheel of source"):
        wheels.resolve(["source"], [PI])
    # A wheel may name an address, which pip would fetch and build.
    wheel(shelf, "sly", requires=[f"source @ file://{bundle}"])
    with pytest.raises(MarramError) as fault:
        wheels.resolve(["sly"], [PI])
    assert "cp311" in str(fault.value)
    assert not marker.exists()


def test_the_same_question_is_answered_from_memory(wheels: Wheels, shelf: Path) -> None:
    made = wheel(shelf, "small")
    first = wheels.resolve(["small"], [PI])
    made.unlink()
    assert wheels.resolve(["small"], [PI]) == first
    with pytest.raises(Invalid):
        wheels.resolve(["small>=1"], [PI])


def test_an_index_that_is_away_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "1")  # else this test is pip's pauses
    wheels = Wheels(Objects(str(tmp_path / "objects")), tmp_path, "http://user:hidden@127.0.0.1:9/simple")
    with pytest.raises(Retryable, match="does not answer") as fault:
        wheels.resolve(["small"], [PI])
    assert "hidden" not in str(fault.value)


def test_devices_that_have_not_said_what_they_are_wait(wheels: Wheels) -> None:
    assert wheels.resolve(["small"], [DeviceInfo()]) == {}
    assert grouped([DeviceInfo(), PI, PI])[0].installed == (PI.packages, PI.packages)


def test_no_requirements_no_wheels(wheels: Wheels) -> None:
    assert wheels.resolve([], [PI]) == {}


def test_the_table_of_our_own_names_what_the_worker_depends_on() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    depends = {parse_requirement(text).name.lower() for text in project["dependencies"]}
    not_in_workers = {"nats-py", "httpx", "typer", "rich", "cryptography", "tuf", "installer"}
    assert depends - not_in_workers <= set(OWN)


def test_a_real_package_comes_from_where_pip_is_set_to(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    wheels = Wheels(Objects(str(tmp_path / "objects")), tmp_path / "scratch")
    try:
        found = wheels.resolve(["six==1.16.0"], [PI])
    except Retryable as error:
        pytest.skip(f"no package index here: {error}")
    assert names(found, PI) == ["six-1.16.0-py2.py3-none-any.whl"]
