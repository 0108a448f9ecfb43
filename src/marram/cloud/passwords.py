"""Passwords: which may be chosen, how one is kept, whether one is right.

argon2id with OWASP's parameters (Password Storage Cheat Sheet: 19 MiB, 2 passes, 1 lane). Hashes are made one at a time
in a process, whoever asks: a flood of attempts costs one core and 19 MiB, and the other core works on. A password is
its NFKC form (NIST SP 800-63B-4, 3.1.1.2), so that it is the same typed on any keyboard. Nothing here may log, keep or
repeat a password.
"""

from __future__ import annotations

import re
import threading
import unicodedata

from argon2 import PasswordHasher, Type
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

from marram.schema.errors import Invalid, Retryable

LEAST_LETTERS = 12
MOST_LETTERS = 256
_LEAST_DIFFERENT = 5
# NFKC can make eighteen letters of one.
_MOST_BYTES = 4 * MOST_LETTERS
MEMORY_KIB, PASSES = 19 * 1024, 2


class Passwords:
    """Hashes and checks, one at a time. Blocking (about 40 ms each); safe from any thread."""

    def __init__(self, memory_kib: int = MEMORY_KIB, passes: int = PASSES) -> None:
        self._hasher = PasswordHasher(passes, memory_kib, parallelism=1, hash_len=32, salt_len=16, type=Type.ID)
        self._one_at_a_time = threading.Lock()
        self._of_nobody = ""

    def hash(self, password: str) -> str:
        """What is kept of it: parameters, salt and hash. Whether it is a good one, `chosen` says."""
        with self._one_at_a_time:
            try:
                return self._hasher.hash(_normal(password))
            except HashingError as error:
                raise _no_room() from error

    def proves(self, password: str, kept: str | None) -> bool:
        """Whether `kept` was made of `password`. `kept` None (no such person) takes the same work, and is False."""
        if not self._of_nobody:
            self._of_nobody = self.hash("nobody has this password")
        given = _normal(password)
        with self._one_at_a_time:
            try:
                right = bool(self._hasher.verify(kept or self._of_nobody, given))
            except (VerifyMismatchError, InvalidHashError):
                right = False
            except VerificationError as error:  # a damaged hash, or no memory: only the second one is not an answer
                if "memory" in str(error).lower():
                    raise _no_room() from error
                right = False
        return right and kept is not None

    def is_old(self, kept: str) -> bool:
        """Whether it was made with other parameters than are used now: hash the password anew."""
        return self._hasher.check_needs_rehash(kept)


def chosen(password: str, name: str) -> str:
    """The normal form of a new password for the person `name`. Raises Invalid, which never repeats it."""
    normal = _normal(password)
    fault = ""
    if len(normal) < LEAST_LETTERS:
        fault = f"is shorter than {LEAST_LETTERS} letters"
    elif len(password) > MOST_LETTERS or len(normal.encode()) > _MOST_BYTES:
        fault = f"is longer than {MOST_LETTERS} letters"
    elif any(unicodedata.category(letter) in ("Cc", "Cs", "Cn") for letter in password):
        fault = "has control characters"
    elif len(set(normal)) < _LEAST_DIFFERENT:
        fault = f"has fewer than {_LEAST_DIFFERENT} different letters"
    elif normal.isdecimal() or re.sub(r"[\W\d_]", "", normal.casefold()) in ("password", "marram", name):
        fault = "is one that would be guessed"
    if fault:
        raise Invalid(f"the password {fault}", hint="A few words in a row are easy to keep and hard to guess.")
    return normal


def _no_room() -> Retryable:
    return Retryable(f"no {MEMORY_KIB // 1024} MiB of memory to look at a password", hint="What else runs here?")


def _normal(password: str) -> str:
    # What is longer is nobody's password, and is not worth the work of its normal form.
    return unicodedata.normalize("NFKC", password[: MOST_LETTERS + 1]).encode("utf-8", "replace").decode("utf-8")
