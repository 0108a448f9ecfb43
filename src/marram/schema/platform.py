"""A device's platform, as wheels know it: which Python, which processor, which C library. Pure.

Its key names the wheels of an app in `DesiredApp.wheels`; its tags are those that a wheel for it may bear (PEP 425,
600, 656), best first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from marram.schema.device import DeviceInfo
from marram.schema.errors import Invalid

# What Marram itself runs on in a worker: distributions (PEP 503) and the modules that they bring. An app's own wheels
# never hold one of these: the worker has it already, and two of a kind in one process would end it.
OWN: dict[str, tuple[str, ...]] = {
    "marram": ("marram",),
    "numpy": ("numpy",),
    "pydantic": ("pydantic",),
    "pydantic-core": ("pydantic_core",),
    "annotated-types": ("annotated_types",),
    "typing-extensions": ("typing_extensions",),
    "typing-inspection": ("typing_inspection",),
    "pyyaml": ("yaml", "_yaml"),
    "msgpack": ("msgpack",),
    "ai-edge-litert": ("ai_edge_litert",),
    "onnxruntime": ("onnxruntime",),
    "pillow": ("PIL",),
    "simplejpeg": ("simplejpeg",),
    "common-expression-language": ("cel",),
    "paho-mqtt": ("paho",),
    "opencv-python-headless": ("cv2",),
    "psutil": ("psutil",),
    "zstandard": ("zstandard",),
}
# glibc wheels are made for 2.5 (manylinux1) and later; musl's for 1.1 and later.
_OLDEST_GLIBC, _OLDEST_MUSL = 5, 1
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_PYTHON = re.compile(r"3\.(\d{1,2})")
_LIBC = re.compile(r"(glibc|musl|macos) (\d+)\.(\d+)")
_MACHINE = re.compile(r"[a-z0-9_]{1,20}")


@dataclass(frozen=True, slots=True)
class Platform:
    """What decides whether a wheel runs on a device. Made by `of`."""

    minor: int  # of Python 3
    machine: str
    libc: str
    major: int
    release: int

    @classmethod
    def of(cls, info: DeviceInfo) -> Platform:
        """Raises Invalid where the device has not said enough of itself."""
        python, libc = _PYTHON.fullmatch(info.python), _LIBC.match(info.libc)
        machine = {"arm64": "aarch64"}.get(info.machine.lower(), info.machine.lower())
        if not python or not libc or not _MACHINE.fullmatch(machine):
            raise Invalid("it has not said which Python and C library it has", hint="Update Marram on it.")
        return cls(int(python[1]), machine, libc[1], int(libc[2]), int(libc[3]))

    @property
    def key(self) -> str:
        """`cp311-aarch64-glibc-2.36`."""
        return f"cp3{self.minor}-{self.machine}-{self.libc}-{self.major}.{self.release}"

    @property
    def python_version(self) -> str:
        """`3.11`."""
        return f"3.{self.minor}"

    @property
    def markers(self) -> dict[str, str]:
        """What conditions of requirements (PEP 508) are read against there."""
        mac = self.libc == "macos"
        return {
            "python_version": self.python_version,
            "python_full_version": f"{self.python_version}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "darwin" if mac else "linux",
            "platform_system": "Darwin" if mac else "Linux",
            "platform_machine": "arm64" if mac and self.machine == "aarch64" else self.machine,
        }

    @property
    def tags(self) -> list[str]:
        """Platform tags of wheels that run here, best first; `any` is understood."""
        if self.libc == "macos":
            machine = "arm64" if self.machine == "aarch64" else self.machine
            kinds = (machine, "universal2")
            return [f"macosx_{major}_0_{kind}" for major in range(self.major, 10, -1) for kind in kinds]
        if self.libc == "musl":
            return [f"musllinux_1_{n}_{self.machine}" for n in range(self.release, _OLDEST_MUSL - 1, -1)]
        found: list[str] = []
        for release in range(self.release, _OLDEST_GLIBC - 1, -1):
            found.append(f"manylinux_2_{release}_{self.machine}")
            if release in _LEGACY:
                found.append(f"{_LEGACY[release]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]


def normal(name: str) -> str:
    """A distribution's name as it is compared (PEP 503): `PyYAML`, `Py_yaml` -> `pyyaml`, `py-yaml`."""
    return re.sub(r"[-_.]+", "-", name).lower()
