"""What came of an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from marram.schema.errors import MarramError, Threat, Untrusted


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack. `reason`: what it was refused for; None: it was not refused, or by accident (`words`)."""

    name: str
    expected: frozenset[str]
    reason: str | None
    words: str = ""

    @property
    def refused(self) -> bool:
        """Whether it was refused for (one of) the reasons it should be."""
        return self.reason in self.expected


def attempt(name: str, expected: str | frozenset[str], attack: Callable[[], object]) -> Outcome:
    """Mount `attack`, which raises where the victim refuses it.

    `expected`: a Threat; for what an ordinary check refuses (a wrong password, a name that is taken), words that its
    refusal must hold.
    """
    reasons = frozenset({expected}) if isinstance(expected, str) else expected
    try:
        attack()
    except MarramError as error:
        threat = error.threat if isinstance(error, Untrusted) else None
        words = next((each for each in reasons if not isinstance(each, Threat) and each in str(error)), None)
        reason = threat or words
        without = "" if reason else f"refused, but without a name: {type(error).__name__}: "
        return Outcome(name, reasons, reason, f"{without}{error}")
    return Outcome(name, reasons, None, "accepted")
