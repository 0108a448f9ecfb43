"""What has to go to make room."""

from __future__ import annotations

import pytest

from marram.schema.errors import NotReady
from marram.serving.shelf import Shelf


def test_what_was_not_used_for_long_goes_first_and_what_takes_long_to_load_stays() -> None:
    shelf = Shelf[str](100)
    shelf.put("old", 40, 1.0, 0.0)
    shelf.put("new", 40, 1.0, 50.0)
    assert shelf.outgoing(20, 60.0) == []
    assert shelf.outgoing(30, 60.0) == ["old"]
    assert shelf.outgoing(100, 60.0) == ["old", "new"]
    shelf.used("old", 59.0)
    assert shelf.outgoing(30, 60.0) == ["new"]
    shelf.put("slow", 20, 500.0, 1.0)
    assert shelf.outgoing(30, 60.0)[0] == "new"
    shelf.remove("new")
    assert "new" not in shelf and shelf.taken_bytes == 60


def test_what_can_never_have_room_is_told_how_much_it_lacks() -> None:
    shelf = Shelf[str](100_000_000)
    shelf.put("kept", 60_000_000, 1.0, 0.0)
    with pytest.raises(NotReady, match="needs 110 MB, and models may take 100 MB"):
        shelf.outgoing(50_000_000, 1.0, frozenset({"kept"}))
    assert Shelf[str](None).outgoing(10**12, 0.0) == []
