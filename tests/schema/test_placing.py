"""An app's words about placement: what each means, and that YAML's yes and no are never taken for something else."""

from __future__ import annotations

from typing import Any

import pytest

from marram.schema.app import App, Cascade, ClassifyStep, Serve, parse_app
from marram.schema.errors import Invalid


def app(*lines: str, top: str = "", cloud: str | None = "c") -> App:
    given = [*([f"cloud: {cloud}"] if cloud else []), *lines]
    options = "".join(f"    {line}\n" for line in given)
    return parse_app(f"app: a\nsource: {{camera: 0}}\nsteps:\n  - classify: m\n{options}{top}")


def step(*lines: str) -> ClassifyStep:
    (found,) = app(*lines).steps
    assert isinstance(found, ClassifyStep)
    return found


def fault(*lines: str, top: str = "", cloud: str | None = "c") -> str:
    with pytest.raises(Invalid) as caught:
        app(*lines, top=top, cloud=cloud)
    return str(caught.value)


def test_within_says_objective_and_deadline_at_once() -> None:
    short = step("place: surest within 200 ms")
    assert (
        short == step("place: surest", "deadline: 200 ms") == step("place: surest within 200 ms", "deadline: 200  ms")
    )
    assert (short.place, short.deadline) == ("surest", 0.2)


@pytest.mark.parametrize(
    ("line", "means"),
    [
        ("hedge: no", {"hedge": 0.0}),
        ("hedge: yes", {"hedge": 0.05}),
        ("hedge: 3 %", {"hedge": 0.03}),
        ("split: no", {"split": False}),
        ("cascade: no", {"cascade": None}),
        ("cascade: learnt", {"cascade": Cascade()}),
        ("cascade: {accuracy: 99 %}", {"cascade": Cascade(accuracy="99 %")}),
        ("cascade: {offload: 20 %, checks: 1 %}", {"cascade": Cascade(offload="20 %", checks="1 %")}),
        ("region: [0, 0.25, 1, 0.75]", {"region": (0.0, 0.25, 1.0, 0.75)}),
        ("region: detections", {"region": "detections"}),
        ("encoding_loss: 1 %", {"encoding_loss": 0.01}),
    ],
)
def test_each_word_means_what_it_says(line: str, means: dict[str, Any]) -> None:
    found = step(line)
    assert {name: getattr(found, name) for name in means} == means


def test_costs_and_budgets_have_their_units() -> None:
    found = step("costs: {edge: 4 W, send: 1200 mW, cloud: 0.0004}", "budget: {power: 1 W, money: 2/day}")
    assert (found.costs.edge, found.costs.send, found.costs.cloud) == (4.0, 1.2, 0.0004)
    assert found.budget.power == 1.0 and found.budget.money == pytest.approx(2 / 86400)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("serve: 8000\n", Serve(http=8000)),
        ("serve: {http: 8000, grpc: 8001, host: localhost}\n", Serve(http=8000, grpc=8001, host="localhost")),
        ("serve: no\n", None),
        ("", None),
    ],
)
def test_serve_is_a_port_or_says_which(text: str, means: Serve | None) -> None:
    assert app(top=text).serve == means


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("place: quick within 200 ms", 'place: no objective "quick within 200 ms"; use one of soonest, surest'),
        ("place: surest whithin 200 ms", 'place: no objective "surest whithin 200 ms"; use one of soonest, surest'),
        ("place: fastest", "edge, cloud, with a deadline as in surest within 200 ms"),
        ("place: surest within 200", 'place: "200" has no unit; write 200 ms'),
        ("cascade: yes", "cascade: is learnt, {accuracy: 99 %} or {offload: 20 %}"),
        ("cascade: {accuracy: 99 %, offload: 5 %}", "keep one of them"),
        ("cascade: {accuracy: 100 %}", "write place: cloud"),
        ("cascade: {offload: 0 %}", "cascade.offload: 0 % never asks the cloud"),
        ("cascade: {checks: 80 %}", "usual are 1 % or 2 %"),
        ("cascade: {acuracy: 99 %}", 'did you mean "accuracy"?'),
        ("split: maybe", "split: is yes or no, got 'maybe'"),
        ("place: surest within 0 ms", "place: nothing is answered in no time"),
        ("deadline: 0 s", "deadline: nothing is answered in no time"),
        ("costs: {edge: -4 W}", '"-4 W" is negative'),
        ("hedge: 5", '"5" has no unit; write 5 %'),
        ("region: [0, 0, 1]", "shares of the picture, such as"),
        ("region: [0.5, 0, 0.5, 1]", "shares of the picture, such as"),
        ("region: [0, 0, 200, 100]", "shares of the picture, such as"),
        ("region: [0, 0, 1, on]", "shares of the picture, such as"),
        ("costs: {edge: 4}", '"4" has no unit; write 4 W'),
        ("costs: {cloud: on}", "is an amount of money"),
        ("costs: {cloud: -1}", "costs.cloud"),
        ("budget: 2/day", "is a mapping of power, money"),
        ("budget: {money: 2}", "write for example 2/day"),
        ("budget: {money: all/day}", '"all" is not an amount of money'),
    ],
)
def test_what_cannot_be_meant_is_told_with_the_next_step(line: str, says: str) -> None:
    assert says in fault(line)


def test_two_deadlines_that_differ_are_a_fault() -> None:
    assert "keep one of them" in fault("place: surest within 200 ms", "deadline: 300 ms")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("serve: yes\n", "serve: is a port, such as 8000"),
        ("serve: 70000\n", "70000 is no port"),
        ("serve: {}\n", "names no port"),
        ("serve: {http: yes}\n", "http is a port, such as 8000"),
        ("serve: {http: 8000, grpc: 8000}\n", "both have port 8000"),
        ("serve: {htp: 8000}\n", 'did you mean "http"?'),
        ("serve: {http: 8000, host: 0.0.0.0}\n", "would let in whoever reaches the device"),
    ],
)
def test_a_port_is_never_a_yes(text: str, says: str) -> None:
    assert says in fault(top=text)


def test_a_cascade_has_somewhere_to_go() -> None:
    assert "cascade needs a cloud model" in fault("cascade: learnt", cloud=None)
    for place in ("edge", "cloud"):
        assert f"place: {place} never may" in fault("cascade: learnt", f"place: {place}")
