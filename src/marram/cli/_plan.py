"""What a person types of a rollout's plan (`--stages 1,10%,all --gate p95=150ms`), as the fields of a Plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from marram.cli._options import parsed
from marram.schema.errors import Invalid
from marram.schema.rollout import Plan, at_once
from marram.schema.units import parse_duration, parse_share
from marram.schema.words import did_you_mean, field_fault

_SHARES = {"failures": "failures", "silent": "silent", "errors": "errors", "disagreement": "disagreement"}
_GATES = (*_SHARES, "p95", "confidence", "temperature", "throttling")
_OFF = ("off", "none")
_TIMES = re.compile(r"^(\d+(?:\.\d+)?)\s*[x×]$")
_DEGREES = re.compile(r"^(\d+(?:\.\d+)?)\s*°?\s*C$")


@dataclass(frozen=True, slots=True)
class Typed:
    """The options as they were typed; None and empty: not typed."""

    stages: str | None = None
    soak: str | None = None
    silence: str | None = None
    gates: tuple[str, ...] = ()
    window: str | None = None
    zone: str | None = None
    days: str | None = None
    halt: bool = False
    now: bool = False


def plan_of(typed: Typed) -> dict[str, Any] | None:
    """The plan's fields that were said; None where none was. Raises Invalid, naming the option."""
    if typed.now:
        if typed != Typed(now=True):
            raise Invalid("goes to all at once, without gates", where="--now", hint="Leave the other options out.")
        return at_once().model_dump(mode="json")
    plan: dict[str, Any] = {}
    if typed.stages is not None:
        plan["stages"] = [stage.strip() for stage in typed.stages.split(",")]
    if typed.soak is not None:
        plan["soak_s"] = parsed(parse_duration, typed.soak, "--soak")
    if typed.silence is not None:
        plan["silence_s"] = parsed(parse_duration, typed.silence, "--silence")
    if typed.gates:
        plan["gates"] = {name: value for text in typed.gates for name, value in [_gate(text)]}
    if typed.window is not None:
        plan["window"] = {"hours": typed.window}
        if typed.zone is not None:
            plan["window"]["zone"] = typed.zone
        if typed.days is not None:
            plan["window"]["days"] = [day.strip().lower()[:3] for day in typed.days.split(",")]
    elif typed.zone is not None or typed.days is not None:
        raise Invalid("belongs to a --window", where="--zone" if typed.zone else "--days", hint="--window 22:00-05:00")
    if typed.halt:
        plan["on_failure"] = "halt"
    if not plan:
        return None
    try:
        Plan.model_validate(plan)
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["type"] == "string_pattern_mismatch" and fault["loc"] == ("window", "hours"):
            raise Invalid(f'"{typed.window}" is no window', where="--window", hint="Write 22:00-05:00.") from error
        if fault["loc"][:2] == ("window", "days"):
            raise Invalid(f'"{typed.days}" are no days', where="--days", hint="Write sat,sun.") from error
        options = {"stages": "--stages", "gates": "--gate", "window": "--window", "soak_s": "--soak"}
        raise Invalid(field_fault(fault), where=options.get(str(fault["loc"][0]), "--silence")) from error
    return plan


def _gate(text: str) -> tuple[str, float | bool | None]:
    """`p95=150 ms` -> ("p95_ms", 150.0); `errors=off` -> ("errors", None)."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if name not in _GATES or not sign or not value:
        meant = did_you_mean(name, _GATES) if sign else ""
        raise Invalid(
            f'"{text}" is not a gate{meant}',
            where="--gate",
            hint="p95=150ms, p95=1.5x, errors=2%, failures=0%, silent=1%, confidence=0.05, disagreement=5%, "
            "temperature=80C, throttling=off; NAME=off leaves one out.",
        )
    if name == "throttling":
        if value not in ("on", *_OFF):
            raise Invalid(f'"{value}" is neither on nor off', where="--gate throttling")
        return "throttling", value == "on"
    where = f"--gate {name}"
    times = _TIMES.match(value)
    if name == "p95":
        if times:
            return "p95_ratio", float(times[1])
        return ("p95_ratio", None) if value in _OFF else ("p95_ms", 1e3 * parsed(parse_duration, value, where))
    field = {"confidence": "confidence_shift", "temperature": "temperature_c"}.get(name, name)
    if value in _OFF:
        return field, None
    if name == "temperature":
        degrees = _DEGREES.match(value)
        if degrees is None:
            raise Invalid(f'"{value}" is no temperature; write 80C', where=where)
        return field, float(degrees[1])
    if name == "confidence" and not value.endswith("%"):
        return field, parsed(float, value, where)
    return field, parsed(parse_share, value, where)
