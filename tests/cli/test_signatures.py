"""Help without what the commands do: the same words, in a moment."""

from __future__ import annotations

import os
import subprocess
import sys

PROBE = """
import sys, click, typer
import marram.cli
from marram.cli import COMMANDS, _noun, _signatures, execute

if sys.argv[1] == "hollow":
    _signatures.without_bodies()

def walk(command, words):
    print("#", *words, flush=True)
    assert execute([*words, "--help"]) == 0
    sys.stdout.flush()
    for name, each in getattr(command, "commands", {}).items():
        walk(each, [*words, name])

for name in COMMANDS:
    walk(typer.main.get_command(_noun(name)), [name])
"""
MAIN = """
import sys, marram.cli
try:
    marram.cli.main()
finally:
    print(sorted(heavy & sys.modules.keys()))
""".replace("heavy", "{'numpy', 'httpx', 'fastapi', 'sqlalchemy', 'nicegui', 'nats', 'PIL', 'torch'}")


def output(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "COLUMNS": "120", **environment},
    )
    return done.stdout


def test_every_help_says_the_same_with_and_without_the_bodies() -> None:
    whole, hollow = output(PROBE, "whole"), output(PROBE, "hollow")
    assert whole.count("#") > 30
    assert hollow == whole


def test_help_loads_nothing_heavy() -> None:
    for command in ("cloud", "app", "deploy", "run", "model"):
        assert output(MAIN, command, "--help").splitlines()[-1] == "[]"


def test_help_wins_over_what_else_stands_there() -> None:
    shown = output(MAIN, "deploy", "app.yaml", "--to", "--help")
    assert "Usage: marram deploy" in shown


def test_a_shell_completes_options_without_loading_what_they_are_for() -> None:
    for words, says in {"deploy --no": "--no-wait", "results ta": "tail", "tok": "token"}.items():
        asked = f"marram {words}"
        shown = output(
            MAIN, _MARRAM_COMPLETE="complete_bash", COMP_WORDS=asked, COMP_CWORD=str(asked.count(" "))
        ).splitlines()
        assert says in shown and shown[-1] == "[]"
