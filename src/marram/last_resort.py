"""What reaches a person when something fails: one line and an exit status, never a traceback.

Every program of ours (the command line, the agent, a replica) runs its whole life inside `ended`. What only we can mend
goes with its traceback to a file that the line names. It must never raise, whatever the disk or the terminal does.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from marram.schema.errors import MarramError
from marram.schema.words import first_line

FAULT, UNEXPECTED, INTERRUPTED = 2, 70, 130

log = logging.getLogger("marram")


def ended(program: Callable[[], int], *, tell: Callable[[str], None] | None = None, details: Path | None = None) -> int:
    """Run `program`; its exit status, or 2 for a MarramError (its message is told), 130 for Ctrl-C, 70 for a bug.

    `tell` shows a MarramError's message; default: a line on stderr. `details`: the file that a bug's traceback replaces
    (what restarts by itself must not fill a disk); default: a new temporary one.
    """
    with _in_a_line():
        try:
            status = program()
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be written is found out here, not by the interpreter as it ends
            return status
        except MarramError as error:
            # Where nobody reads what is told (rich then ends the program), the status still tells.
            with contextlib.suppress(OSError, SystemExit):
                (tell or _to_stderr)(str(error))
            return FAULT
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            _silence()  # the reader of a pipe (`| head`) went away: no fault
            return 0
        except Exception as error:  # noqa: BLE001 - the outermost supervisor: a person gets a line, the trace goes to a file
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                _to_stderr(f"cannot write: {error.strerror}. Make room.")
                _silence()
                return FAULT
            where = _kept(error, details)
            _to_stderr(
                f"unexpected {type(error).__name__}: {first_line(error)}. This is a fault of Marram's"
                + (f"; details: {where}" if where else "")
            )
            return UNEXPECTED


class OneLine(logging.Formatter):
    """For what a person watches: an exception is its kind, its words and its place, not its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        if not record.exc_info and not record.exc_text:
            return super().format(record)
        # A copy: another handler, which writes a file, wants it whole.
        bare = copy.copy(record)
        error = record.exc_info[1] if record.exc_info else None
        bare.exc_info = bare.exc_text = bare.stack_info = None
        line = super().format(bare).partition("\n")[0]
        return f"{line}: {in_a_line(error)}" if error is not None else line


def in_a_line(error: BaseException) -> str:
    """`ValueError: the words (file.py:12)`: where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _silence() -> None:
    """Whichever of our two outputs takes nothing more leads nowhere now: the interpreter's last flush fails no more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _kept(error: BaseException, details: Path | None) -> Path | None:
    """The file that has the traceback now; None where none can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        if details is not None:
            details.write_text(text, encoding="utf-8", errors="backslashreplace")
            return details
        with tempfile.NamedTemporaryFile(
            "w", prefix="marram-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
        return Path(file.name)
    except OSError:
        return None


@contextlib.contextmanager
def _in_a_line() -> Iterator[None]:
    """What Python itself prints with a traceback becomes a line: of threads, finalisers, loggers nobody set up."""

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = args.thread.name if args.thread else "?"
            log.error("the thread %s ended", name, exc_info=_info(args.exc_value))

    def of_finaliser(args: Any) -> None:
        if args.exc_value is not None:
            log.error("%s", args.err_msg or "ignored", exc_info=_info(args.exc_value))

    before = threading.excepthook, sys.unraisablehook, logging.raiseExceptions
    last = logging.lastResort
    formatter = last.formatter if last is not None else None
    threading.excepthook, sys.unraisablehook = of_thread, of_finaliser
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) is no reason for a traceback
    if last is not None:
        last.setFormatter(OneLine())
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook, logging.raiseExceptions = before
        if last is not None:
            last.setFormatter(formatter)


def _info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    return type(error), error, error.__traceback__
