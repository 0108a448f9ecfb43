"""A page of YAML that a person wrote: what it says, and on which line each of its fields stands.

App files and model cards are read here, so that a fault in any of them is said as `gate.yaml:5  steps[0].classify: …`.
YAML itself lets a key stand twice and keeps the last; here that is a fault, because the other one was meant as well.
It must construct plain data only, and raise nothing but Invalid, whatever the text is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import yaml

from marram.schema.errors import Invalid, MarramError

Place = Sequence[str | int]  # a field as steps to it: ("steps", 0, "classify")

# What PyYAML lets through from a scalar that is not what its tag says (`!!int x`, the date 2001-99-99).
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
# With every alias written out: aliases of aliases make gigabytes of a few lines, in the first message about them.
_MOST_NODES = 1_000_000
_MERGE = "tag:yaml.org,2002:merge"
_FIELD = re.compile(r"\w+(?:\[\d+\])?(?:\.\w+(?:\[\d+\])?)*")

E = TypeVar("E", bound=MarramError)


class Page:
    """`document`: what the page says, plain data. `name`: the file's, for messages."""

    def __init__(self, name: str, document: Any, root: yaml.Node | None) -> None:
        self.name, self.document, self._root = name, document, root

    @classmethod
    def read(cls, text: str, name: str) -> Page:
        """Raises Invalid where `text` is not YAML, or a mapping has a key twice."""
        try:
            # Loaders refuse unprintable characters when they are made.
            loader = _Loader(text)
            root = loader.get_single_node()
            if root is not None and _size(root, {}) > _MOST_NODES:
                raise Invalid("its aliases make it too large, or endless", where=name, hint="Write it out.")
            return cls(name, None if root is None else loader.construct_document(root), root)
        except _Twice as error:
            raise Invalid(str(error), where=f"{name}:{error.line}", hint="Keep one.") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{name}:{mark.line + 1}" if mark else name
            raise Invalid(f"not YAML: {_problem(error)}", where=where) from error
        except RecursionError as error:
            raise Invalid("not YAML that can be read: nested too deeply", where=name) from error
        except _MALFORMED as error:
            raise Invalid(f"not YAML: {error}", where=name) from error

    def line(self, place: Place) -> int:
        """The line (from 1) of the deepest part of `place` that is there."""
        line = 1
        for _, at, _ in self._walk(place):
            line = at
        return line

    def span(self, place: Place) -> tuple[int, int] | None:
        """Where in the text the value of `place` begins and ends; None where it is not there."""
        found = [(node.start_mark.index, node.end_mark.index) for depth, _, node in self._walk(place)
                 if depth == len(place)]  # fmt: skip
        return found[0] if found else None

    def _walk(self, place: Place) -> Iterator[tuple[int, int, yaml.Node]]:
        """How deep, on which line, and the value, for each part of `place` as far as it is there."""
        node = self._root
        for depth, part in enumerate(place, start=1):
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
                if pair is None:
                    return
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return
            yield depth, line, node

    def where(self, place: Place) -> str:
        """`gate.yaml:5  steps[0].classify`."""
        return f"{self.name}:{self.line(place)}  {field(place)}"

    def locate(self, error: E) -> E:
        """`error` itself, its `where` with file and line in front where that names a field of this page."""
        if error.where is not None and _FIELD.fullmatch(error.where):
            place = parse_field(error.where)
            if isinstance(self.document, dict) and place[0] in self.document:
                error.where = self.where(place)
            else:
                # A field that is left out has no line (`raw`, which is `never` then).
                error.where = f"{self.name}  {error.where}"
        return error


def field(place: Place) -> str:
    """("steps", 0, "classify") -> `steps[0].classify`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def parse_field(text: str) -> list[str | int]:
    """`steps[0].classify` -> ["steps", 0, "classify"]."""
    return [int(number) if number else name for number, name in re.findall(r"\[(\d+)\]|([^.\[\]]+)", text)]


class _Twice(yaml.YAMLError):
    def __init__(self, key: str, line: int, first: int) -> None:
        super().__init__(f'"{key:.60}" stands here twice' + (f", on line {first} too" if first != line else ""))
        self.line = line


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice in one mapping."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """An escape (`"\\ud800"`) can make half a character, which no file, subject or message can hold."""
        value: Any = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half a character (a surrogate)", node.start_mark)
        return value

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _Twice(key.value, line, lines[key.value])
            lines[key.value] = line
        return node


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes `node` has with every alias written out; infinitely many where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: whoever meets it meanwhile is inside it
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _problem(error: yaml.YAMLError) -> str:
    """YAML's own words on one line, without the place: that stands in front."""
    if isinstance(error, yaml.reader.ReaderError):
        return "it holds bytes that are no text. Is this the right file?"
    return str(getattr(error, "problem", None) or error).splitlines()[0]
