"""The words by which an app says how its inferences are placed: objectives, cascades, what may be spent.

YAML reads `yes`, `no`, `on` and `off` as true and false, also where a person meant a share or a mapping: each
field here says what such a word means, or asks for what it wants instead; none is ever taken for the number 1.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from marram.schema.model import Strict
from marram.schema.units import Duration, Power, Share, Spending, parse_duration

Objective = Literal["soonest", "surest", "cheapest", "edge", "cloud"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

# Requests that are started at the edge too, as a share of those asked of the cloud.
HEDGE = 0.05
# Accepted answers that the cloud is asked about in the background.
CHECKS = 0.02
_WITHIN = re.compile(r"^\s*(\w+)\s+within\s+(.*\S)\s*$")

_OBJECTIVE_SCHEMA = {
    "anyOf": [
        {"enum": list(OBJECTIVES)},
        {"type": "string", "pattern": f"^({'|'.join(OBJECTIVES)}) within .+$", "examples": ["surest within 200 ms"]},
    ]
}


def _objective(value: object) -> object:
    if isinstance(value, str) and value not in OBJECTIVES:
        raise ValueError(
            f'no objective "{value}"; use one of {", ".join(OBJECTIVES)}, with a deadline as in surest within 200 ms'
        )
    return value


ObjectiveField = Annotated[Objective, BeforeValidator(_objective), WithJsonSchema(_OBJECTIVE_SCHEMA, mode="validation")]


def spelt_out(step: dict[str, Any]) -> dict[str, Any]:
    """`place: surest within 200 ms` as `place: surest` and `deadline: 200 ms`.

    Raises ValueError where the step has another deadline besides. Whether the word before "within" is an objective,
    its field says.
    """
    match = _WITHIN.match(step["place"]) if isinstance(step.get("place"), str) else None
    if match is None:
        return step
    objective, within = match.groups()
    if objective not in OBJECTIVES:
        return step  # its field says so
    deadline = step.get("deadline")
    if deadline is not None and str(deadline).split() != within.split():
        raise ValueError(f"place: says within {within}, and deadline says {deadline}; keep one of them")
    try:
        _some_time(parse_duration(within))
    except ValueError as error:
        raise ValueError(f"place: {error}") from None
    return {**step, "place": objective, "deadline": within}


def _some_time(value: float) -> float:
    if value <= 0:
        raise ValueError("nothing is answered in no time; write for example 200 ms, or leave it away")
    return value


Deadline = Annotated[Duration, AfterValidator(_some_time)]


def _switched(value: object) -> object:
    if isinstance(value, bool):
        return f"{HEDGE * 100} %" if value else "0 %"
    return value


# `no` is none of it, `yes` the usual share.
HedgeShare = Annotated[Share, BeforeValidator(_switched)]

# ---------------------------------------------------------------- what the model sees


def _region(value: object) -> object:
    if value == "detections":
        return value
    numbers = value if isinstance(value, list | tuple) else ()
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if len(numbers) != 4 or not plain or not (0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1):
        raise ValueError(
            "is `detections`, or left, top, right and bottom as shares of the picture, such as [0.25, 0, 0.75, 1]"
        )
    return tuple(float(n) for n in numbers)


# x0, y0, x1, y1 as shares (0–1) of the picture's width and height.
Box = tuple[float, float, float, float]
Region = Annotated[
    Box | Literal["detections"],
    BeforeValidator(_region),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "detections"},
                {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 4,
                 "maxItems": 4, "examples": [[0.25, 0, 0.75, 1]]},
            ]
        },
        mode="validation",
    ),
]  # fmt: skip

# ---------------------------------------------------------------- the edge first, the cloud where it is unsure


class Cascade(Strict):
    """The edge answers first, and the cloud is asked where that answer is not sure enough.

    How sure is learnt: so that `accuracy` of the cloud model's answers are matched, or at most `offload` of the frames
    are sent; with neither, by what asking costs at that moment. `checks`: the share of accepted answers that the cloud
    is asked about in the background, which keeps what was learnt true.
    """

    accuracy: Share | None = None
    offload: Share | None = None
    checks: Share = CHECKS

    @model_validator(mode="after")
    def _one_target(self) -> Cascade:
        if self.accuracy is not None and self.offload is not None:
            raise ValueError("accuracy and offload are two targets; keep one of them")
        if self.accuracy is not None and not 0 < self.accuracy < 1:
            raise ValueError("accuracy lies between 0 % and 100 %; for every answer of the cloud's write place: cloud")
        if self.offload == 0:
            raise ValueError("offload: 0 % never asks the cloud; leave cascade away, or write place: edge")
        if self.checks > 0.5:
            raise ValueError("checks: more than 50 % would ask the cloud about everything; usual are 1 % or 2 %")
        return self


def _cascade(value: object) -> object:
    if value is False:
        return None
    if value == "learnt":
        return {}
    if not isinstance(value, dict | Cascade | None):
        raise ValueError("is learnt, {accuracy: 99 %} or {offload: 20 %}")
    return value


CascadeField = Annotated[
    Cascade | None,
    BeforeValidator(_cascade),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "learnt"},
                {"const": False},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        name: {"type": "string", "examples": [example]}
                        for name, example in (("accuracy", "99 %"), ("offload", "20 %"), ("checks", "2 %"))
                    },
                },
            ]
        },
        mode="validation",
    ),
]

# ---------------------------------------------------------------- what it costs


def _money(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is an amount of money, such as 0.0004")
    return value


class Tariff(Strict):
    """What an inference costs: watts while the edge computes and while the radio sends, money for a cloud's answer."""

    edge: Power = 0.0
    send: Power = 0.0
    cloud: Annotated[float, BeforeValidator(_money), Field(ge=0, allow_inf_nan=False)] = 0.0


class Allowance(Strict):
    """What may be spent in the long run: watts on average, and money (in the currency of `costs`) per second."""

    power: Power | None = None
    money: Spending | None = None
