"""Fault scripts: what a line means, what is refused, what is done when."""

from __future__ import annotations

import signal

import pytest

from marram.lab.faults import Fault, Faults, parse_script
from marram.schema.errors import Invalid, Missing


class Recorder:
    """Stands for a link and for a process: notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def cut(self) -> None:
        self.done.append("cut")

    def heal(self) -> None:
        self.done.append("heal")

    def reset(self) -> None:
        self.done.append("reset")

    def signal(self, number: int) -> None:
        self.done.append(signal.Signals(number).name)


def test_a_script_becomes_faults_in_order_of_time() -> None:
    script = """
        at 20 s kill gate-wifi      # the worst
        at 5 s cut gate-lte for 10 s

        at 500 ms reset all
        at 1 min freeze cloud for 3 s
    """
    assert parse_script(script) == [
        Fault(0.5, "reset", "all"),
        Fault(5.0, "cut", "gate-lte", 10.0),
        Fault(20.0, "kill", "gate-wifi"),
        Fault(60.0, "freeze", "cloud", 3.0),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("cut gate-lte", "is not a fault"),
        ("at 5 cut all", "unit"),
        ("at 5 s burn all", 'no fault "burn"'),
        ("at 5 s reset all for 2 s", "no length"),
        ("at 5 s cut all for long", "quantity"),
    ],
)
def test_a_wrong_line_is_named(line: str, says: str) -> None:
    with pytest.raises(Invalid, match=says) as refused:
        parse_script(f"# first\n{line}")
    assert refused.value.where == "faults:2"


def test_what_is_due_is_done_once() -> None:
    wifi, lte, cloud = Recorder(), Recorder(), Recorder()
    script = parse_script("at 1 s cut all for 2 s\nat 2 s reset lte\nat 4 s kill cloud\nat 5 s freeze cloud for 1 s")
    faults = Faults(script, {"wifi": wifi, "lte": lte}, {"cloud": cloud})
    assert faults.advance(0.9) == []
    assert faults.next_s == 1.0
    assert [f.action for f in faults.advance(2.5)] == ["cut", "reset"]
    assert faults.advance(2.5) == []
    # The cut began late, at 2.5 s, and lasts its 2 s all the same.
    assert [f.action for f in faults.advance(4.4)] == ["kill"]
    assert faults.next_s == 4.5
    assert [f.action for f in faults.advance(10)] == ["heal", "freeze"]
    assert [f.action for f in faults.advance(11)] == ["thaw"]
    assert wifi.done == ["cut", "heal"]
    assert lte.done == ["cut", "reset", "heal"]
    assert cloud.done == ["SIGKILL", "SIGSTOP", "SIGCONT"]
    assert faults.next_s is None


def test_what_is_not_there_is_told_before_anything_is_broken() -> None:
    with pytest.raises(Missing, match="gate-5g"):
        Faults(parse_script("at 1 s cut gate-5g"), {"gate-lte": Recorder()})
    with pytest.raises(Missing, match="cloud"):
        Faults(parse_script("at 1 s kill cloud"), {"gate-lte": Recorder()})
