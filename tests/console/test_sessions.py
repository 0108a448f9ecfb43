"""Who may see the page: cookies that cannot be made up, codes that work once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marram.console.sessions import CODE_LIFE_S, LIFE_S, Sessions


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_cookie_opens_until_it_expires_or_the_key_changes() -> None:
    clock, key = Clock(), [b"key"]
    sessions = Sessions(lambda: key[0], clock)
    cookie = sessions.cookie()
    assert sessions.opens(cookie) and cookie != sessions.cookie()
    assert Sessions(lambda: b"key", clock).opens(cookie), "a restarted cloud still knows it"
    key[0] = b"another"
    assert not sessions.opens(cookie)
    key[0] = b"key"
    clock.now_s += LIFE_S + 1
    assert not sessions.opens(cookie)


@given(st.text(max_size=80) | st.none())
def test_nothing_made_up_opens(cookie: str | None) -> None:
    assert not Sessions(lambda: b"key").opens(cookie)


@given(st.integers(0, 200), st.characters(codec="ascii"))
def test_a_changed_cookie_does_not_open(at: int, letter: str) -> None:
    sessions = Sessions(lambda: b"key")
    cookie = sessions.cookie()
    at %= len(cookie)
    changed = cookie[:at] + letter + cookie[at + 1 :]
    assert sessions.opens(changed) == (changed == cookie)


def test_a_code_works_once_and_not_for_ever() -> None:
    clock = Clock()
    sessions = Sessions(lambda: b"key", clock)
    one, two = sessions.new_code(), sessions.new_code()
    assert sessions.take_code(one) and not sessions.take_code(one) and not sessions.take_code("")
    clock.now_s += CODE_LIFE_S + 1
    assert not sessions.take_code(two)
    codes = [sessions.new_code() for _ in range(150)]
    assert not sessions.take_code(codes[0]) and sessions.take_code(codes[-1])
