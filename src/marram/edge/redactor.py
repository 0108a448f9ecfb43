"""Known secrets, blanked out of what a worker says: its log, its figures, its reasons.

Sources and sinks never name a password; what a library prints, and what user code does with its secrets, nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

# Shorter ones stand in every other word: blanking them out would leave nothing to read.
_LEAST = 4
_BLANK = "***"


class Redactor:
    """Blanks known secrets out of text, also out of a stream that cuts them anywhere. Not safe between threads."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values if len(value) >= _LEAST for form in (value, quote(value, safe=""))}
        self._forms = sorted((form.encode() for form in forms), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if forms else None
        self._kept = b""

    def text(self, text: str) -> str:
        """`text` without them."""
        if self._pattern is None:
            return text
        clean = self._pattern.sub(_BLANK.encode(), text.encode("utf-8", "surrogatepass"))
        return clean.decode("utf-8", "surrogatepass")

    def plain(self, value: Any) -> Any:
        """A message without them, whatever it nests."""
        if self._pattern is None:
            return value
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.plain(key): self.plain(part) for key, part in value.items()}
            case list():
                return [self.plain(part) for part in value]
        return value

    def feed(self, chunk: bytes) -> bytes:
        """The next piece of a stream: what of it can be told already. `end` gives the rest."""
        if self._pattern is None:
            return chunk
        clean = self._pattern.sub(_BLANK.encode(), self._kept + chunk)
        # The end may be the beginning of one.
        longest = min(len(clean), len(self._forms[0]) - 1)
        held = next((n for n in range(longest, 0, -1) if any(form.startswith(clean[-n:]) for form in self._forms)), 0)
        self._kept = clean[len(clean) - held :]
        return clean[: len(clean) - held]

    def end(self) -> bytes:
        """What was held back."""
        rest, self._kept = self._kept, b""
        return rest
