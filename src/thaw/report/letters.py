"""What goes wrong in transcripts, letter by letter."""

from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import zip_longest

from thaw.report.answers import Answers, percent
from thaw.report.section import Section, Table

MOST = 15


def letters(answers: Answers) -> Section | None:
    """The letters most often mistaken, left out or put in."""
    if answers.kind != "transcript" or not answers.rows:
        return None
    pairs = [(row["target"], row["prediction"]) for row in answers.rows]
    held = Counter(letter for truth, _ in pairs for letter in truth)
    errors = Counter(error for pair in pairs for error in mistaken(*pair))
    right = sum(truth == guess for truth, guess in pairs)
    told = f"{right:,} of {len(pairs):,} transcripts are right to the letter."
    if not errors:
        return Section("Letters", text=[told])
    rows = [
        (_named(truth), _named(guess), str(often), percent(often / held[truth]) if truth else "–")
        for (truth, guess), often in errors.most_common(MOST)
    ]
    head = ("said", "written", "times", "of that letter")
    return Section("Letters", text=[told], tables=[Table(head, rows, "The most frequent errors.")])


def mistaken(truth: str, guess: str) -> Iterator[tuple[str, str]]:
    """(letter that was said, letter that was written) where the two differ; empty where there is none."""
    for kind, start, end, first, last in SequenceMatcher(None, truth, guess, autojunk=False).get_opcodes():
        if kind != "equal":
            yield from zip_longest(truth[start:end], guess[first:last], fillvalue="")


def _named(letter: str) -> str:
    return "nothing" if not letter else "space" if letter == " " else letter
