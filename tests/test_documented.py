"""What a person can type is in the documentation: a command, option, setting or field it does not name fails."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from marram.cli import COMMANDS
from marram.schema.app import SINKS, SOURCES, STEPS, App, Health, Limits
from marram.schema.model import Codec, Cut, Input, ModelCard, Output, Variant
from marram.schema.placing import Allowance, Cascade, Tariff
from marram.schema.serve import Serve
from marram.train.recipe import Accept, Data, Recipe, Samples

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def commands() -> Iterator[tuple[str, Any]]:
    """Every command as it is typed: `marram edge join` …"""
    for noun in COMMANDS:
        yield from below(f"marram {noun}", typer.main.get_command(importlib.import_module(f"marram.cli.{noun}").app))


def below(typed: str, command: Any) -> Iterator[tuple[str, Any]]:
    """`command`, or those it is made of."""
    verbs = getattr(command, "commands", {})
    if not verbs or command.invoke_without_command:
        yield typed, command
    for verb, each in verbs.items():
        yield from below(f"{typed} {verb}", each)


@pytest.mark.parametrize(("typed", "command"), [pytest.param(*each, id=each[0]) for each in commands()])
def test_every_command_and_option_is_documented(typed: str, command: Any) -> None:
    text = page("commands.md")
    section = re.search(rf"^### `{typed}\b.*?(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/commands.md has no section {typed}"
    for parameter in command.params:
        for name in (o for o in (*parameter.opts, *parameter.secondary_opts) if o.startswith("--") and o != "--help"):
            common = name in ("--url", "--token", "--json") and name in text
            assert common or name in section[0], f"docs/commands.md says nothing of {typed} {name}"


def test_every_setting_is_documented() -> None:
    """Every environment variable of ours that the code reads."""
    text = page("settings.md")
    for file in (ROOT / "src").rglob("*.py"):
        for name in re.findall(r'"(MARRAM_[A-Z_]+)"', file.read_text(encoding="utf-8")):
            assert f"`{name}" in text, f"docs/settings.md says nothing of {name} ({file.name})"


@pytest.mark.parametrize(
    ("name", "models"),
    [
        (
            "app.md",
            [
                App,
                Health,
                Limits,
                Cascade,
                Tariff,
                Allowance,
                Serve,
                *SOURCES.values(),
                *STEPS.values(),
                *SINKS.values(),
            ],
        ),
        ("models.md", [ModelCard, Input, Output, Variant, Codec, Cut]),
        ("learning.md", [Recipe, Data, Samples, Accept]),
    ],
)
def test_every_field_of_a_page_is_documented(name: str, models: list[type[BaseModel]]) -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", page(name), re.DOTALL))
    for model in models:
        for field in model.model_fields:
            assert re.search(rf"\b{field}\b", code), f"docs/{name} says nothing of {model.__name__}.{field}"
