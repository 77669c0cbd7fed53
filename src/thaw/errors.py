"""The exception for mistakes a user can mend, the one for promises not kept, and the search for what was meant."""

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
