"""What a shell is told when it asks what may come next."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("numpy", "httpx", "fastapi", "sqlalchemy", "nicegui", "nats", "PIL", "torch")
MAIN = f"""
import sys, marram.cli
try:
    marram.cli.main()
finally:
    print("loaded", [name for name in {HEAVY} if name in sys.modules])
"""


def completed(environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", MAIN],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(("words", "says"), [("deploy --no", "--no-wait"), ("results ta", "tail"), ("tok", "token")])
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_their_options(shell: str, words: str, says: str) -> None:
    line = f"marram {words}"
    asked = (
        {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))} if shell == "bash" else {"_TYPER_COMPLETE_ARGS": line}
    )
    shown = completed({"_MARRAM_COMPLETE": f"complete_{shell}", **asked})
    assert any(says in each for each in shown), shown


def test_the_names_of_commands_are_completed_without_loading_any() -> None:
    shown = completed({"_MARRAM_COMPLETE": "complete_bash", "COMP_WORDS": "marram tok", "COMP_CWORD": "1"})
    assert shown == ["token", "loaded []"]
