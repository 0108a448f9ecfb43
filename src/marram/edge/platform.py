"""What this machine is, as the cloud has to know it: for people, and for the wheels that would run here.

No package is imported to find out, and nothing is asked of the network.
"""

from __future__ import annotations

import os
import platform
import sys

from marram import __version__
from marram.edge.packages import installed_versions
from marram.schema.device import DeviceInfo


def machine() -> DeviceInfo:
    """This machine, now."""
    try:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        memory_bytes = 0
    return DeviceInfo(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=os.cpu_count() or 0,
        memory_bytes=memory_bytes,
        marram=__version__,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        libc=_libc(),
    )


def described() -> DeviceInfo:
    """`machine`, with all that is installed: for whoever resolves wheels."""
    return machine().model_copy(update={"packages": installed_versions()})


def _libc() -> str:
    """`glibc 2.36`, `musl 1.2`, `macos 13.0`; "" where it cannot be told."""
    if sys.platform == "darwin":
        return f"macos {platform.mac_ver()[0]}"
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION")  # "glibc 2.36"
    except (AttributeError, OSError, ValueError):
        told = None
    return told or _musl()


def _musl() -> str:
    """musl says its version only when its loader is run; the loader's name says that it is musl."""
    try:
        found = any(name.startswith("ld-musl-") for name in os.listdir("/lib"))  # noqa: PTH208 - names are enough
    except OSError:
        return ""
    # 1.2 since 2020, in every distribution that is kept; wheels are made for it or for 1.1, which runs there too.
    return "musl 1.2" if found else ""
