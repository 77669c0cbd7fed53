"""How a command ends where it fails: the problem or the traceback without secrets, and the exit code."""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from thaw.errors import RunError, UserError
from thaw.redaction import redacted

LONGEST = 1500  # characters of a message; a value may be of any length


class _Redacting(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redacted(text))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def without_secrets(task: Callable[[], Any]) -> Any:
    """Run a task whose libraries also write to standard error, e.g. the overrides of a job that has failed."""
    with contextlib.redirect_stderr(_Redacting(sys.stderr)):
        return task()


def end(error: Exception) -> NoReturn:
    """Say what went wrong: in words with code 2 what the user can mend, in words with 1 what is known, else in full."""
    if isinstance(error, UserError | RunError):
        for problem in error.problems if isinstance(error, UserError) else [str(error)]:
            said = redacted(f"error: {problem}")
            print(said if len(said) <= LONGEST else f"{said[:LONGEST]} …", file=sys.stderr)
    else:
        print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    sys.exit(2 if isinstance(error, UserError) else 1)


def reached(root: Path, error: Exception) -> bool:
    """Whether the error comes from code below `root`, or from a library that had not called any yet."""
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)[1:]]
    ours = [path for path in frames if path.is_relative_to(root) and path != Path(__file__)]
    return any("site-packages" not in path.parts for path in ours)
