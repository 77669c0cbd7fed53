"""What goes wrong in transcripts, letter by letter."""

from collections import Counter

from thaw.report.answers import percent
from thaw.report.evidence import Evidence
from thaw.report.section import Section, Table

MOST = 15
EXAMINED = 1000  # wrong transcripts: the errors of more are the same


def letters(evidence: Evidence) -> Section | None:
    """The letters most often mistaken, left out or put in."""
    answers = evidence.answers
    if answers.kind != "transcript" or not answers.rows:
        return None
    pairs = [(row["target"], row["prediction"]) for row in answers.rows]
    held = Counter(letter for truth, _ in pairs for letter in truth)
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    errors = Counter(error for pair in wrong[:EXAMINED] for error in mistaken(*pair))
    right = len(pairs) - len(wrong)
    told = f"{right:,} of {len(pairs):,} transcripts are right to the letter."
    if not errors:
        return Section("Letters", text=[told])
    rows = [
        (_named(truth), _named(guess), str(often), percent(often / held[truth]) if truth else "–")
        for (truth, guess), often in errors.most_common(MOST)
    ]
    head = ("said", "written", "times", "of that letter")
    return Section(
        "Letters",
        text=[told],
        tables=[Table(head, rows, f"The most frequent errors of {min(len(wrong), EXAMINED):,} transcripts.")],
    )


def mistaken(truth: str, guess: str) -> list[tuple[str, str]]:
    """(letter said, letter written) where the two differ, by the fewest edits; empty where there is none."""
    rows, columns = len(truth) + 1, len(guess) + 1
    edits = [[row + column for column in range(columns)] for row in range(rows)]
    for row in range(1, rows):
        for column in range(1, columns):
            edits[row][column] = min(
                edits[row - 1][column - 1] + (truth[row - 1] != guess[column - 1]),
                edits[row - 1][column] + 1,
                edits[row][column - 1] + 1,
            )
    found, row, column = [], rows - 1, columns - 1
    while row or column:
        said, written = truth[row - 1 : row], guess[column - 1 : column]
        if row and column and edits[row][column] == edits[row - 1][column - 1] + (said != written):
            row, column = row - 1, column - 1
        elif row and edits[row][column] == edits[row - 1][column] + 1:
            row, written = row - 1, ""
        else:
            column, said = column - 1, ""
        if said != written:
            found.append((said, written))
    return found[::-1]


def _named(letter: str) -> str:
    return "nothing" if not letter else "space" if letter == " " else letter
