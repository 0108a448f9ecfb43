"""Codes work once, and not for ever."""

from __future__ import annotations

from marram.console.sessions import CODE_LIFE_S, Codes


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_code_works_once_and_not_for_ever() -> None:
    clock = Clock()
    each = Codes(clock)
    one, two = each.new_code(), each.new_code()
    assert each.take_code(one) and not each.take_code(one) and not each.take_code("")
    clock.now_s += CODE_LIFE_S + 1
    assert not each.take_code(two)
    codes = [each.new_code() for _ in range(150)]
    assert not each.take_code(codes[0]) and each.take_code(codes[-1])
