"""Wheels of an app's functions, resolved at deploy for each platform of the fleet; a device never runs pip.

pip resolves and downloads, as a bounded child process: wheels only, nothing is built, no code of a package is ever run
(the child cannot even start another program, where the kernel has Landlock). What every device of a platform has
installed in a version that does is left out, and so is what Marram itself runs on, to which the rest is held. Wheels
become files by content like everything else; what was resolved once for the same requirements is remembered.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from marram.schema.device import DeviceInfo
from marram.schema.errors import Invalid, MarramError, Permanent, Retryable
from marram.schema.model import File, Manifest
from marram.schema.platform import OWN, Platform
from marram.schema.units import format_size
from marram.store import Objects

TIMEOUT_S = 300.0
# Of all wheels for one platform.
MOST_BYTES = 1_000_000_000
_REMEMBERED = 256
_LIMITS = {"RLIMIT_FSIZE": MOST_BYTES, "RLIMIT_DATA": 2_000_000_000, "RLIMIT_CPU": int(TIMEOUT_S)}


@dataclass(frozen=True, slots=True)
class Group:
    """The devices of one platform: what each of them has installed."""

    platform: Platform
    installed: tuple[Mapping[str, str], ...]

    def satisfied(self, requirement: Requirement) -> bool:
        """Whether every one of them has it, in a version that does. What it has with extras, nobody can tell."""
        name = canonicalize_name(requirement.name)
        return not requirement.extras and all(
            name in each and _does(requirement, each[name]) for each in self.installed
        )

    def all_have(self, name: str) -> bool:
        """Whether every one of them has some version of it."""
        return all(name in each for each in self.installed)

    def held(self) -> list[str]:
        """Constraints: what Marram itself runs on stays as these devices have it."""
        lines: list[str] = []
        for name in OWN:
            versions = {each[name].partition("+")[0] for each in self.installed if name in each}
            if len(versions) == 1:
                lines.append(f"{name}=={versions.pop()}")
        return lines


def grouped(devices: Iterable[DeviceInfo]) -> list[Group]:
    """Devices by platform; those that have not said what they are, are left out."""
    found: dict[Platform, list[Mapping[str, str]]] = {}
    for info in devices:
        try:
            found.setdefault(Platform.of(info), []).append(info.packages)
        except Invalid:
            continue
    return [Group(platform, tuple(installed)) for platform, installed in found.items()]


class Wheels:
    """Resolves. Blocking, one resolution at a time; safe from any thread."""

    def __init__(self, objects: Objects, scratch: Path, index: str | None = None) -> None:
        """`index`: an index's URL, or a folder of wheels; None: what pip itself is set to."""
        self._objects, self._scratch, self._index = objects, scratch, index
        self._known: dict[str, Manifest] = {}
        self._turn = threading.Lock()

    def resolve(self, requires: Sequence[str], devices: Iterable[DeviceInfo]) -> dict[str, Manifest]:
        """The wheels for each platform among `devices`, by its key; none for one that has all it needs.

        Raises Invalid (a requirement, a conflict, no wheel: naming requirement and platform), Retryable (the index).
        """
        if not requires:
            return {}
        wanted = [parse_requirement(text) for text in requires]
        return {group.platform.key: self._for(wanted, group) for group in grouped(devices)}

    def _for(self, wanted: list[Requirement], group: Group) -> Manifest:
        needed = [str(each) for each in wanted if not group.satisfied(each)]
        if not needed:
            return Manifest(files=[])
        key = json.dumps([needed, group.platform.key, group.held()])
        with self._turn:
            if key in self._known and all(self._objects.has(file.sha256) for file in self._known[key].files):
                return self._known[key]
            with tempfile.TemporaryDirectory(dir=self._scratch, prefix="wheels-") as folder:
                self._download(needed, group, Path(folder))
                manifest = self._taken(Path(folder) / "wheels", group)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = manifest
            return manifest

    def _download(self, needed: list[str], group: Group, folder: Path) -> None:
        platform = group.platform
        (folder / "wheels").mkdir()
        (folder / "constraints.txt").write_text("\n".join(group.held()) + "\n")
        (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
        command = [
            sys.executable, "-I", "-m", "marram.cloud.pip_child", json.dumps(_LIMITS), json.dumps(platform.markers),
            "download", "--no-input", "--disable-pip-version-check",
            "--no-cache-dir", "--only-binary=:all:", "--dest", str(folder / "wheels"), "--implementation", "cp",
            "--python-version", platform.python_version, "--abi", f"cp3{platform.minor}", "--abi", "abi3",
            "--abi", "none", *(part for tag in platform.tags for part in ("--platform", tag)),
            "--constraint", str(folder / "constraints.txt"), "--requirement", str(folder / "requirements.txt"),
            *self._from(),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MARRAM_", "PYTHON"))}
        environment["TMPDIR"] = str(folder)
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=TIMEOUT_S, cwd=folder, env=environment, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Retryable(
                f"the package index took more than {TIMEOUT_S:.0f} s", hint="Try again, or name another: --wheel-index"
            ) from error
        if ended.returncode != 0:
            raise _fault(f"{ended.stdout}\n{ended.stderr}", needed, platform)

    def _from(self) -> list[str]:
        if self._index is None:
            return []
        if "://" in self._index:
            return ["--index-url", self._index]
        return ["--no-index", "--find-links", str(Path(self._index).expanduser().absolute())]

    def _taken(self, folder: Path, group: Group) -> Manifest:
        """What was downloaded, as files of ours: less what Marram itself runs on, and bounded."""
        files: list[File] = []
        size_bytes = 0
        for wheel in sorted(folder.iterdir()):
            try:
                name, *_ = parse_wheel_filename(wheel.name)
            except InvalidWheelFilename as error:
                raise Invalid(f"{wheel.name} is no wheel", where=group.platform.key) from error
            if name in OWN and group.all_have(name):
                continue
            size_bytes += wheel.stat().st_size
            if size_bytes > MOST_BYTES:
                raise Invalid(
                    f"the wheels take more than {format_size(MOST_BYTES)}",
                    where=group.platform.key,
                    hint="Install what is large (torch, for example) on the devices themselves: what is there needs no "
                    "wheel.",
                )
            body = self._objects.put_file(wheel, limit_bytes=MOST_BYTES)
            files.append(File(path=wheel.name, sha256=body.sha256, size_bytes=body.size_bytes))
        return Manifest(files=files)


def parse_requirement(text: str) -> Requirement:
    """Raises Invalid where it is none, or names an address: what lies there might have to be built."""
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        raise Invalid(f'"{text}" is no requirement', where="requires", hint="Write for example scipy>=1.14.") from error
    if found.url is not None:
        raise Invalid(
            f'"{text}" names an address; only what an index has as a wheel is taken',
            where="requires",
            hint=f"Write {found.name}>=VERSION, and put its wheel where --wheel-index looks.",
        )
    return found


def _does(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


_NO_WHEEL = re.compile(r"Could not find a version that satisfies the requirement (\S+)[^\n]*|"
                       r"No matching distribution found for (\S+)")  # fmt: skip
_AWAY = ("Failed to establish a new connection", "Max retries exceeded", "Read timed out", "Temporary failure in name",
         "ConnectionError", "ConnectTimeout", "SSLError")  # fmt: skip


def _fault(said: str, needed: list[str], platform: Platform) -> MarramError:
    """What pip says, as ours: naming requirement and platform, without its addresses (they may hold a password)."""
    lines = [re.sub(r"\w+://\S+", "…", line).removeprefix("ERROR: ") for line in said.strip().splitlines()]
    if any(word in said for word in _AWAY):
        return Retryable("the package index does not answer", where=platform.key, hint="Try again later.")
    if (missing := _NO_WHEEL.search(said)) is not None:
        name = (missing[1] or missing[2]).rstrip(".,;")
        return Invalid(
            f"no wheel of {name} runs on {platform.key}",
            where="requires",
            hint="Another version may have one; or install it on the devices: what is there needs no wheel.",
        )
    if "ResolutionImpossible" in said or "conflict" in said:
        told = " ".join(line.strip() for line in lines if " depends on " in line or "requested" in line)
        return Invalid(
            f"{', '.join(needed)} cannot be had together on {platform.key}: {told[:600]}",
            where="requires",
            hint="What Marram itself runs on stays as the devices have it.",
        )
    last = lines[-1][:300] if lines else "pip said nothing"
    return Permanent(f"the wheels for {platform.key} cannot be had: {last}", where="requires")
