"""What came of an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from marram.schema.errors import MarramError, Threat, Untrusted


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack. `threat`: the named reason it was refused for; None: it was not refused, or by accident (`words`)."""

    name: str
    expected: frozenset[Threat]
    threat: Threat | None
    words: str = ""

    @property
    def refused(self) -> bool:
        """Whether it was refused for (one of) the reasons it should be."""
        return self.threat in self.expected


def attempt(name: str, expected: Threat | frozenset[Threat], attack: Callable[[], object]) -> Outcome:
    """Mount `attack`, which raises where the victim refuses it."""
    reasons = frozenset({expected}) if isinstance(expected, Threat) else expected
    try:
        attack()
    except Untrusted as error:
        return Outcome(name, reasons, error.threat, str(error))
    except MarramError as error:
        return Outcome(name, reasons, None, f"refused, but without a name: {type(error).__name__}: {error}")
    return Outcome(name, reasons, None, "accepted")
