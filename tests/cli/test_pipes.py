"""Where nobody reads on (`marram … | head`), a command ends at once and says nothing: real pipes, the real program."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from tests.cloud.api.serving import result, sample

PROGRAM = [sys.executable, "-m", "marram"]
# One of each way to print: typer's help, rich's tables and lines, plain print of little and of much.
COMMANDS = [
    "results --help",
    "app schema",
    "device list",
    "device list --json",
    "deploy --list",
    "top --once",
    "results query",
    "results query --json",
    "results tail --follow",
    "results tail --follow --json",
]


def read_by_nobody(*arguments: str, stderr_too: bool = False) -> tuple[int, str]:
    """Status and stderr of a command whose stdout (and stderr) is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            stdout=writing,
            stderr=writing if stderr_too else subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


def test_a_closed_pipe_ends_every_command_quietly(marram_: Any) -> None:
    marram_.served.add_device("pi")
    marram_.served.report("pi")
    marram_.served.deliver("pi", [*(result("cat") for _ in range(200)), sample(b"x")])
    marram_.served.api().create_token({})
    ended = {command: read_by_nobody(*command.split()) for command in COMMANDS}
    assert ended == dict.fromkeys(COMMANDS, (0, ""))


def test_a_reader_that_goes_away_in_the_middle_ends_a_long_answer(marram_: Any) -> None:
    marram_.served.add_device("pi")
    marram_.served.deliver("pi", [result("cat") for _ in range(2000)])
    with subprocess.Popen(
        [*PROGRAM, "results", "query", "-n", "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None and program.stderr is not None
        assert b"cat" in program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(60) == 0


@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_fault_nobody_reads_is_a_fault(stderr_too: bool) -> None:
    status, said = read_by_nobody("app", "check", "none.yaml", stderr_too=stderr_too)
    assert status == 2
    assert stderr_too or said.startswith("no such file none.yaml")


@pytest.mark.parametrize("command", ["--version", "app schema"])
def test_a_full_disk_is_a_line_and_no_fault_of_ours(command: str) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device, not a file
        done = subprocess.run(
            [*PROGRAM, *command.split()], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (2, "cannot write: No space left on device. Make room.\n")
