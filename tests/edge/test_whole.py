"""Secrets and packages from a person's commands to a function on a device: a real cloud, a real agent, real pip."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.wheelwright import wheel

from marram.lab.children import marram
from marram.lab.stage import Stage
from marram.schema.device import AppState, ReportedApp
from marram.schema.errors import Permanent
from marram.system import landlock

LONG_S = 60.0
VALUE, LATER = "s3cr3t-va/ue@1", "an0ther-va/ue"

APP = """
app: keyed
source: {series: rows.csv, every: 50 ms, repeat: true}
steps:
  - function: handler.py:handle
    requires: [tiny>=2]
send: changes
files: [rows.csv]
secrets: [API_KEY]
"""
HANDLER = """
import importlib.metadata, json, os, pathlib, tiny

print("the key is", os.environ["API_KEY"], flush=True)
version = importlib.metadata.version("tiny")
told = {"key": os.environ["API_KEY"], "tiny": tiny.value, "version": version, "pid": os.getpid()}
pathlib.Path("told.new").write_text(json.dumps(told))
os.rename("told.new", "told.json")

def handle(event, context):
    if event["x"] == 3:
        raise ValueError("cannot use " + os.environ["API_KEY"])
    return {"label": "fine"}
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with Stage(folder) as made:
        wheel(folder / "shelf", "tiny", "2.1", {"tiny.py": b"value = 21\n"})
        made.cloud("--wheel-index", str(folder / "shelf"))
        made.device("pi", site="here")
        yield made


def until(answer: Callable[[], Any], what: str) -> Any:
    ends_s = time.monotonic() + LONG_S
    while time.monotonic() < ends_s:
        try:
            if found := answer():
                return found
        except (OSError, ValueError, KeyError, LookupError, StopIteration, TypeError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"never: {what}")


def secret(stage: Stage, *arguments: str, value: str = "") -> None:
    done = subprocess.run(
        marram("secret", *arguments), input=value, capture_output=True, text=True, env=stage._environment("person")
    )
    assert done.returncode == 0, done.stderr
    assert not value or value not in done.stdout + done.stderr


def edge(stage: Stage) -> Path:
    return next(stage.folder.rglob("edge/identity")).parent


def told(stage: Stage) -> dict[str, Any]:
    return dict(json.loads((edge(stage) / "work/keyed/told.json").read_text()))


def reported(stage: Stage) -> ReportedApp:
    with stage.api() as api:
        now = api.device("pi").reported
    return next(app for app in (now.apps if now else ()) if app.name == "keyed")


def test_secrets_and_packages_reach_the_function_that_declares_them(stage: Stage) -> None:
    place = stage.folder / "keyed"
    place.mkdir()
    (place / "keyed.yaml").write_text(APP)
    (place / "rows.csv").write_text("x\n1\n3\n")
    (place / "handler.py").write_text(HANDLER)
    device = stage.ask("device", "show", "pi")
    assert device["info"]["python"].startswith("3.")
    stage.run("deploy", place / "keyed.yaml", "--to", "site=here", "--no-wait")
    until(lambda: "waits for the secret API_KEY" in reported(stage).reason, "says what it waits for")
    assert reported(stage).state is AppState.PENDING

    secret(stage, "set", "API_KEY", "--to", "site=elsewhere", value=VALUE + "\n")
    assert "site=elsewhere" in stage.run("secret", "list")
    secret(stage, "set", "API_KEY", "--to", "site=here", value=VALUE + "\n")
    until(lambda: reported(stage).state is AppState.COMMITTED, "runs")
    first = told(stage)
    assert (first["key"], first["tiny"], first["version"]) == (VALUE, 21, "2.1")
    until(lambda: "cannot use ***" in reported(stage).stats["last_error"], "the error, without the secret")

    secret(stage, "set", "API_KEY", "--to", "site=here", value=LATER)
    second = until(lambda: (now := told(stage))["key"] == LATER and now, "starts anew with the new one")
    assert second["pid"] != first["pid"]
    until(lambda: reported(stage).state is AppState.COMMITTED, "is none the worse")
    assert reported(stage).restarts == 0

    # Nobody but the function ever saw it.
    log = (edge(stage) / "logs/keyed.log").read_text()
    assert "the key is ***" in log
    seen = [file for file in stage.folder.rglob("*") if file.is_file() and file != edge(stage) / "work/keyed/told.json"]
    for value in (VALUE, LATER):
        assert [file for file in seen if value.encode() in file.read_bytes()] == []
    assert VALUE not in stage.run("device", "show", "pi")

    secret(stage, "remove", "API_KEY")
    until(lambda: "waits for the secret API_KEY" in reported(stage).reason, "waits again")


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_what_is_in_force_is_told(stage: Stage) -> None:
    stage.until("a report", lambda: stage.ask("device", "show", "pi")["reported"] is not None)
    assert stage.ask("device", "show", "pi")["reported"]["isolation"].startswith(f"landlock {landlock.abi()}")


def test_what_no_wheel_is_for_is_refused_as_it_is_deployed(stage: Stage) -> None:
    place = stage.folder / "missing"
    place.mkdir()
    (place / "app.yaml").write_text(APP.replace("tiny>=2", "not-on-the-shelf").replace("keyed", "missing"))
    (place / "rows.csv").write_text("x\n1\n")
    (place / "handler.py").write_text("def handle(event, context):\n    pass\n")
    with pytest.raises(Permanent, match=r"no wheel of not-on-the-shelf runs on cp3"):
        stage.run("deploy", place / "app.yaml", "--to", "site=here", "--no-wait")


def test_what_a_device_has_is_known_before_its_agent_ever_ran(stage: Stage) -> None:
    place = stage.folder / "early"
    place.mkdir()
    # The shelf has no wheel of it; this device needs none.
    (place / "early.yaml").write_text(APP.replace("tiny>=2", "pytest").replace("keyed", "early"))
    (place / "rows.csv").write_text("x\n1\n")
    (place / "handler.py").write_text("def handle(event, context):\n    return None\n")
    token = stage.ask("token", "create", "--labels", "site=early")
    stage.run("edge", "join", token["join"].split()[3], token["token"], "--name", "early", who="early")
    stage.run("deploy", place / "early.yaml", "--to", "site=early", "--no-wait")
