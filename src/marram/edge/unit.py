"""The systemd unit of a device: it starts at boot, never gives up, and has no rights but those it needs.

Text only; `marram.edge.installing` puts it in place. Every line stands for something that an agent and its workers do
without: `systemd-analyze security` says how much that is. What is left out is left out for a reason, given beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "marram-edge.service"
# Groups that own cameras, accelerators, serial lines and pins, by the names distributions give them.
GROUPS = ("video", "render", "plugdev", "dialout", "gpio", "i2c", "spi", "audio", "apex")
# The same as kinds of device: what stands in none of them cannot be opened, whoever owns it.
_DEVICES = (
    *("char-video4linux", "char-media", "char-drm", "char-usb_device", "char-apex", "char-alsa"),
    *("char-nvidia", "char-nvidiactl", "char-nvidia-uvm", "char-nvhost"),
    *("char-ttyACM", "char-ttyUSB", "char-ttyAMA", "char-ttyS", "char-gpiochip", "char-i2c", "char-spi"),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """What differs from one device to the next. `groups`: those of GROUPS that are here."""

    python: str
    folder: Path
    user: str
    groups: Sequence[str] = ()
    # Whether the interpreter lies in a home, and whether a vendor's camera service is met in /tmp (Jetson).
    in_home: bool = False
    shares_tmp: bool = False

    def text(self) -> str:
        """The unit file."""
        state = self.folder.parent if str(self.folder).startswith("/var/lib/marram/") else None
        lines = [
            "# Written by `marram edge install`; `marram edge uninstall` takes it away.",
            "[Unit]",
            "Description=Marram device agent",
            "After=network.target",
            "# However often it fails, it is started again.",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            f"ExecStart={self.python} -P -m marram edge run --folder {self.folder}",
            "Restart=always",
            "RestartSec=3",
            "TimeoutStopSec=30",
            "WatchdogSec=60",
            "# SIGTERM is the agent's: it lets its workers flush what they have.",
            "KillMode=mixed",
            "",
            f"User={self.user}",
            *([f"SupplementaryGroups={' '.join(self.groups)}"] if self.groups else []),
            "UMask=0077",
            *(["StateDirectory=marram", "StateDirectoryMode=0700"] if state else []),
            f"ReadWritePaths={self.folder}",
            "",
            "# Each app has a group of its own inside; one that runs out of memory ends, the agent stays.",
            "Delegate=memory pids cpu",
            "MemoryAccounting=yes",
            "MemoryMax=80%",
            "TasksMax=4096",
            "OOMPolicy=continue",
            "",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "AmbientCapabilities=",
            "ProtectSystem=strict",
            f"ProtectHome={'read-only' if self.in_home else 'yes'}",
            f"PrivateTmp={'no' if self.shares_tmp else 'yes'}",
            "PrivateMounts=yes",
            "ProtectProc=invisible",
            "ProtectClock=yes",
            "ProtectHostname=yes",
            "ProtectKernelLogs=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelTunables=yes",
            "# Not ProtectControlGroups: it keeps its apps' groups. Not MemoryDenyWriteExecute: engines compile.",
            "KeyringMode=private",
            "LockPersonality=yes",
            "RemoveIPC=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self",
            "SystemCallErrorNumber=EPERM",
            "DevicePolicy=closed",
            *(f"DeviceAllow={kind} rw" for kind in _DEVICES),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
        return "\n".join(lines)
