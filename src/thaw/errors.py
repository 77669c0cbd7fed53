"""The exceptions a run may end with, and the search for what was meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One or more problems, each saying what must hold, what was given and what to write instead.

    `train.py` prints the problems without a traceback and exits with code 2.
    """

    def __init__(self, *problems: str) -> None:
        # A DataLoader worker re-raises with its whole traceback as the message; only our own words matter.
        super().__init__(*(problem.rpartition("thaw.errors.UserError: ")[2].strip() for problem in problems))

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


class FreezeContractError(RuntimeError):
    """The freeze contract does not hold; the message names the parameter or module."""


class Interrupted(SystemExit):
    """A signal has ended a run between two steps.

    Args:
        reason: which signal, as people know it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


class RunError(RuntimeError):
    """A run that cannot go on, for a reason and with advice in words, at most six lines.

    `train.py` prints them without a traceback, which `error.log` holds, and exits with code 1.
    """


class NonFiniteError(RunError):
    """The loss, a gradient or a weight is not finite, or the loss is absurd."""


class MemoryShortError(RunError):
    """The memory of the device or of the computer is not enough."""


class LoaderError(RunError):
    """A process that loads data was killed, or gives none."""


class ProcessError(RunError):
    """Another process of the same run has ended, or does not answer."""


def did_you_mean(given: str, known: Iterable[str], shown: int = 8) -> str:
    """The closest known name as a question, or else the known names as a list."""
    known = list(known)
    if longer := [name for name in known if given and name.startswith(given)]:
        return f"Did you mean '{min(longer, key=len)}'?"
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    listed = ", ".join(known[:shown]) + (", …" if len(known) > shown else "")
    return f"Choose one of: {listed}."


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:most].rstrip(".:") if lines else type(error).__name__
