"""A cloud and devices on this machine, told what to do by `marram` commands, as a person would tell them.

What examples and end-to-end tests stand on. Everything lives under one folder; each device has a home of its own, as on
a machine of its own. What is started ends with its parent (`children`).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from marram.bus.http import CloudApi
from marram.lab.children import Child, marram, stop_all
from marram.schema.errors import Permanent, Retryable


class Stage:
    """Use as a context manager. `run` is a person typing a command; `cloud` and `device` start what stays."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop_all(list(self.children.values()))

    def home(self, name: str = "person") -> Path:
        """The home of a person or a device: its `~`, and its MARRAM_HOME inside."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def run(self, *arguments: str | Path, who: str = "person") -> str:
        """One command to its end; returns what it printed. Raises Permanent, with its words, where it failed."""
        command = marram(*map(str, arguments))
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment(who), check=False)
        if done.returncode != 0:
            words = (done.stdout + done.stderr).strip()
            raise Permanent(f"exit status {done.returncode}: {words}", where=" ".join(command[2:]))
        return done.stdout

    def ask(self, *arguments: str | Path) -> Any:
        """`run` with --json: the document it printed."""
        return json.loads(self.run(*arguments, "--json"))

    def api(self) -> CloudApi:
        """The cloud over HTTP, as the person's commands see it: for looking often, which commands are too dear for."""
        context = yaml.safe_load((self.home() / "marram" / "context.yaml").read_text(encoding="utf-8"))
        return CloudApi(context["url"], context["token"])

    def start(self, name: str, *arguments: str | Path, who: str = "person") -> Child:
        """Start one command that stays; its words go to `NAME.log`."""
        child = Child(name, marram(*map(str, arguments)), self.folder / f"{name}.log", self._environment(who))
        self.children[name] = child
        return child

    def cloud(self, *options: str) -> None:
        """Start a cloud on a free port, and wait until commands find it."""
        self.start("cloud", "cloud", "--folder", self.folder / "cloud", "--port", "0", "--tls-port", "0", *options)
        context = self.home() / "marram" / "context.yaml"
        self.until("the cloud", context.exists)

    def device(self, name: str, **labels: str) -> Path:
        """Join a device and start it; returns its home."""
        told = ",".join(f"{key}={value}" for key, value in labels.items())
        token = self.ask("token", "create", *(["--labels", told] if told else []))
        self.run("edge", "join", token["join"].split()[3], token["token"], "--name", name, who=name)
        self.start(name, "edge", "run", who=name)
        return self.home(name)

    def until(self, what: str, ready: Callable[[], bool], timeout_s: float = 90, every_s: float = 0.1) -> None:
        """Look every `every_s` whether it is `ready`.

        Raises NotReady where a process has ended, Retryable, with all their last words, where `timeout_s` pass in vain.
        """
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            for child in self.children.values():
                child.check()
            if time.monotonic() > deadline_s:
                words = "\n".join(f"{name}: {child.last_words()}" for name, child in self.children.items())
                raise Retryable(f"waited {timeout_s:g} s in vain for {what}\n{words}")
            time.sleep(every_s)

    def _environment(self, who: str) -> dict[str, str]:
        home = self.home(who)
        return {**os.environ, "HOME": str(home), "MARRAM_HOME": str(home / "marram"), "NO_PROXY": "127.0.0.1"}
