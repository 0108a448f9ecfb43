"""A user's function from its file: what it requires, loading it, how it wants to be called, where it failed.

Whatever is wrong with the file (a syntax error, `sys.exit()` at its top, a function that is not there) is said with its
line when the app starts. The file is loaded in a thread of its own: code written for Greengrass may run for ever at its
top level (a "pinned" function that polls a camera), and that is no fault.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from marram.schema.errors import Invalid, MarramError, Missing, NotReady
from marram.schema.words import did_you_mean

Style = Literal["greengrass", "frame"]

_REQUIREMENT = re.compile(r"^\s*(?P<name>[A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*(?P<rules>.*?)\s*$")
_RULE = re.compile(r"^\s*(?P<sign>>=|<=|==|!=|~=|>|<)\s*(?P<version>\d+(?:\.\d+)*)\S*\s*$")


def check_requirements(requires: list[str], where: str) -> None:
    """Raises NotReady where a package that the function needs is not installed here, or too old or new."""
    if not requires:
        return
    from importlib.metadata import PackageNotFoundError, version  # 1 MB, for the few apps that name a package

    for requirement in requires:
        match = _REQUIREMENT.match(requirement)
        if not match:
            raise Invalid(
                f'"{requirement}" names no package', where=f"{where}.requires", hint="Write for example torch>=2.6."
            )
        name = match["name"]
        install = f"pip install '{requirement}'" if match["rules"] else f"pip install {requirement}"
        try:
            installed: str | None = version(name)
        except PackageNotFoundError:
            # Also a module that no package brought (a vendor's image), under the name it is imported by.
            installed = None
            if importlib.util.find_spec(name.split(".", maxsplit=1)[0].replace("-", "_")) is None:
                raise NotReady(
                    f"needs the package {name}, which is not installed here", where=where, hint=install
                ) from None
        if installed is not None and not _allowed(installed, match["rules"]):
            raise NotReady(f"needs {requirement}, and {name} {installed} is installed here", where=where, hint=install)


def _allowed(installed: str, rules: str) -> bool:
    """Whether a version keeps the rules (`>=2.6,<3`); a rule that is none of ours is left to pip."""
    have = _numbers(installed)
    for rule in filter(None, rules.split(",")):
        match = _RULE.match(rule)
        if not match:
            continue
        wanted = _numbers(match["version"])
        width = max(len(have), len(wanted))
        a, b = have + (0,) * (width - len(have)), wanted + (0,) * (width - len(wanted))
        keeps = {
            ">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, ">": a > b, "<": a < b,
            "~=": a >= b and have[: len(wanted) - 1] == wanted[:-1],
        }  # fmt: skip
        if not keeps[match["sign"]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


class Loading:
    """A user's file being loaded in a thread of its own.

    The thread is a daemon, and so is every thread and timer that the file starts: none of them keeps a process alive.
    """

    def __init__(self, path: Path, name: str, around: Callable[[], AbstractContextManager[None]]) -> None:
        """`around` surrounds the file's code in the loading thread. Raises Missing where there is no such file."""
        if not path.is_file():
            near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1)
            hint = f'Did you mean "{near[0]}"?' if near else "It lies beside the app file."
            raise Missing(f"no such file: {path}", where=name, hint=hint)
        self._path, self._name, self._around = path, name, around
        self._module: ModuleType | None = None
        self._fault: Invalid | None = None
        self._thread = threading.Thread(target=self._load, name=f"function-{path.name}", daemon=True)
        self._thread.start()

    def function(self, attribute: str, timeout_s: float) -> Callable[..., Any] | None:
        """The function called `attribute`; None where the file's top level still runs after `timeout_s`.

        Raises Invalid where the file cannot be loaded or has no such function.
        """
        self._thread.join(timeout_s)
        if self._fault is not None:
            raise self._fault
        found = getattr(self._module, attribute, None)
        if self._thread.is_alive():
            # A top level that never ends may have defined its handler before.
            return found if callable(found) else None
        if found is None:
            names = [key for key, value in vars(self._module).items() if inspect.isfunction(value)]
            has = did_you_mean(attribute, names) or f"; it has {', '.join(names) or 'no functions'}"
            raise Invalid(f'{self._path.name} has no function "{attribute}"{has}', where=self._name)
        if not callable(found):
            raise Invalid(f'"{attribute}" in {self._path.name} is not a function', where=self._name)
        return found  # type: ignore[no-any-return]

    def _load(self) -> None:
        try:
            spec = importlib.util.spec_from_file_location(_module_name(self._path), self._path)
            assert spec is not None and spec.loader is not None  # its name ends in .py
            self._module = module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            with self._around():
                spec.loader.exec_module(module)
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises, SystemExit included, is said
            what = explain(error, self._path.parent)
            self._fault = Invalid(
                what if what.startswith(self._path.name) else f"{self._path.name}  {what}", where=self._name
            )


def _module_name(path: Path) -> str:
    """The file's own name, so that code which imports itself or pickles its classes works, unless it is taken."""
    taken = sys.modules.get(path.stem)
    ours = taken is not None and getattr(taken, "__file__", None) is not None and not hasattr(taken, "__path__")
    if taken is None and path.stem not in sys.stdlib_module_names:
        return path.stem
    if ours and taken is not None and Path(str(taken.__file__)) == path:
        return path.stem
    return f"marram_app_{path.stem}"


def style_of(function: Callable[..., Any], name: str) -> Style:
    """How `function` wants to be called: `(event, context)` as in Greengrass, or `(frame, result)`.

    Told apart by the first parameter's name: `frame` means frames. Raises Invalid where it cannot take two arguments
    (or one).
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "greengrass"  # written in C: nothing to look at
    first = next(iter(signature.parameters), "")
    style: Style = "frame" if first == "frame" else "greengrass"
    try:
        signature.bind(*([None] * argument_count(function)))
    except TypeError as error:
        raise Invalid(
            f"takes ({', '.join(signature.parameters)})",
            where=name,
            hint="A function takes (event, context), as in Greengrass, or (frame, result).",
        ) from error
    return style


def argument_count(function: Callable[..., Any]) -> int:
    """How many arguments to call it with: 1 for `f(frame)` or `f(event)`, else 2."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return 1 if len(positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters) else 2


def explain(error: BaseException, folder: Path) -> str:
    """Where and how user code failed: `handler.py:12  ZeroDivisionError: division by zero`.

    The place is the last one inside `folder`: what a library raised is told by the user's line that called it.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        return f"{Path(error.filename).relative_to(folder)}:{error.lineno}  {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    place = f"{Path(ours[-1].filename).relative_to(folder)}:{ours[-1].lineno}  " if ours else ""
    if isinstance(error, SystemExit):
        return f"{place}sys.exit({'' if error.code is None else repr(error.code)}) is not obeyed here"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"{place}no module {error.name}; `requires: [{error.name}]` in the app file says so before it is deployed"
        )
    try:
        words = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - user code: an exception's own `__str__` may fail as well
        words = []
    if isinstance(error, MarramError):
        return f"{place}{error}"
    return f"{place}{type(error).__name__}" + (f": {words[0]:.300}" if words else "")
