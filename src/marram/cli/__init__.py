"""Commands, one file a noun: `cli/NOUN.py` holds a Typer `app` (or a single command) that is imported only when used.

The table below is what `marram --help` prints; nothing else of Marram is imported for it, so help is instant.
Every MarramError becomes one line on stderr and exit status 2; Ctrl-C exits 130.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
from rich.console import Console
from typer.main import get_command

from marram import __version__
from marram.last_resort import FAULT, ended
from marram.schema.errors import Invalid

# What typer raises for a line that it cannot take; it has no public name of its own.
_Usage: Any = typer.BadParameter.__base__

COMMANDS: dict[str, str] = {
    "demo": "See it all work: real models, three devices, three links, a cut.",
    "run": "Run an app right here, with no cloud and no set-up.",
    "serve": "Let models answer other programs right here, with no cloud.",
    "app": "Check app files; print their JSON Schema.",
    "runtime": "Show which engines and accelerators this machine has.",
    "model": "Build, add, list and tag models; where they come from.",
    "cloud": "Start the cloud: broker, database, API, console, replicas.",
    "login": "Sign in to a cloud on another machine.",
    "edge": "Join this machine to a cloud as a device, and run it.",
    "user": "People, their roles and API tokens.",
    "audit": "Who changed what; whether anybody changed that.",
    "token": "Make tokens that let devices join.",
    "device": "List devices, show one, ask why it runs what it runs.",
    "secret": "Passwords and keys for apps, sealed.",
    "deploy": "Put an app on devices.",
    "rollout": "Follow and steer how versions come to devices.",
    "results": "Follow or query what devices answered.",
    "placement": "Why inferences went where they went.",
    "top": "Watch the fleet live.",
    "sample": "List, export and label the samples devices kept.",
    "train": "Train a model from samples, compare it, register it.",
}


def main() -> None:
    """The `marram` program."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command line; returns the exit status: 0, 2 for a fault the message explains, 130 for Ctrl-C.

    Not named `run`: `marram.cli.run` is the module of that command, and importing it would take the name.
    """
    return ended(lambda: _dispatch(arguments), tell=_in_red)


def _in_red(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="red", markup=False)


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS and not _completing():
        command, name, rest = get_command(_noun(arguments[0])), f"marram {arguments[0]}", arguments[1:]
    else:
        command, name, rest = _overview(), "marram", arguments
    try:
        status: Any = command(args=rest, prog_name=name, standalone_mode=False)
    except _Usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed by now
            return FAULT
        raise _misused(error, name) from error
    except typer.Abort:
        print("Nothing was done.", file=sys.stderr)
        return 1
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None  # rich and typer make a fault of it; see `ended`
        status = end.code
    return status if isinstance(status, int) else 0


def _misused(error: Any, command: str) -> Invalid:
    """Our one line for an option or argument that typer refuses: its frame of six lines names no next step."""
    option = getattr(error, "param", None)
    where = None
    if option is not None:
        typed = option.param_type_name == "option"
        where = max(option.opts, key=len) if typed else (option.metavar or option.name or "").upper()
    what = str(error.message).removeprefix("Value error, ").rstrip(".") or "is missing"
    near = " or ".join(sorted(getattr(error, "possibilities", None) or ()))
    return Invalid(
        what[:1].lower() + what[1:] + (f"; did you mean {near}?" if near else ""),
        where=where,
        hint=f"{error.ctx.command_path if error.ctx is not None else command} --help says what it takes.",
    )


def _completing() -> list[str]:
    """The line so far, where a shell asks what may come next: bash tells it in one way, the others in another."""
    if "_MARRAM_COMPLETE" not in os.environ:
        return []
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "marram").split()


def _noun(name: str) -> typer.Typer:
    app: typer.Typer = importlib.import_module(f"marram.cli.{name}").app
    return app


def _overview() -> Any:
    """`marram --help`, `--version`, unknown commands; a real command only where a shell completes a line of it."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Runs AI across cloud and edge: where it answers soonest, and on when the link does not.",
    )

    @app.callback()
    def top(
        version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_version),
    ) -> None:
        pass

    for name, line in COMMANDS.items():
        app.command(name, help=line)(_never)
    overview: Any = get_command(app)
    overview.commands |= {name: get_command(_noun(name)) for name in _completing()[1:2] if name in COMMANDS}
    return overview


def _version(wanted: bool) -> None:
    if wanted:
        print(f"marram {__version__}")
        raise typer.Exit


def _never() -> None:
    raise AssertionError("a known command is dispatched before the overview is built")
