"""Which classes are taken for which, and how good each of them is."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from thaw.report.answers import Answers, percent
from thaw.report.evidence import Evidence
from thaw.report.ink import BLUE, INK, ORANGE, WIDTH, panels
from thaw.report.section import Picture, Section, Table

NUMBERED = 15  # classes up to which every cell has its number
NAMED = 30  # classes up to which rows and columns have their name
CONFUSIONS = 10  # in the table
ROWS = 30  # classes up to which the table has them all
WORST = 20  # of more, how many it has


def classes(evidence: Evidence) -> Section | None:
    """Confusion matrix and per-class table; of labels, which exclude one another in no way, the table alone."""
    answers = evidence.answers
    if answers.kind not in ("class", "tags", "labels") or not len(answers.truth):
        return None
    table = _per_class(answers)
    if answers.kind == "labels":
        return Section("Labels", tables=[table])
    counts = counted(answers)
    confused = confusions(counts)
    what = "samples" if answers.kind == "class" else "words"
    picture = Picture(
        draw(counts, answers.classes),
        alt=_seen(counts, answers.classes, what),
        caption=f"Rows are the true class, columns the answer; numbers count {what}. Shades are shares of a row: blue "
        "where it is right, orange where it is not.",
        vector=len(counts) <= NUMBERED,
    )
    tables = [table]
    if confused and len(counts) > 2:
        support = counts.sum(axis=1)
        rows = [
            (answers.classes[true], answers.classes[guess], str(n), percent(n / support[true]))
            for true, guess, n in confused[:CONFUSIONS]
        ]
        more = len(confused) - len(rows)
        head = ("true", "taken for", what, "of the class")
        tables.insert(0, Table(head, rows, f"The biggest confusions, of {len(confused)} kinds" if more else ""))
    return Section("Classes" if answers.kind == "class" else "Tags", tables=tables, pictures=[picture])


def counted(answers: Answers) -> np.ndarray:
    """The confusion matrix (true class, predicted class), in counts."""
    return confusion_matrix(answers.truth, answers.guess, labels=range(len(answers.classes)))


def confusions(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """(true class, predicted class, how often) of all that was confused, the most frequent first."""
    off = counts * ~np.eye(len(counts), dtype=bool)
    found = [(int(true), int(guess), int(off[true, guess])) for true, guess in np.argwhere(off)]
    return sorted(found, key=lambda each: (-each[2], each))


def draw(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """A matrix that reads on light and on dark paper: what is empty is transparent."""
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(size, dtype=bool)
    cells = np.where(right[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    # Confusions are rare, and must be seen all the same.
    alpha = np.where(right, shares, np.where(counts > 0, 0.25 + 0.75 * np.sqrt(shares), 0))[..., None] * 0.9
    side = min(max(3.2, 0.4 * size), WIDTH)
    figure, axes = panels(side, side)
    axes.imshow(np.concatenate([cells, alpha], axis=2), interpolation="nearest")
    if size <= NUMBERED:
        for true, guess in np.argwhere(counts):
            color = "white" if alpha[true, guess] > 0.55 else INK
            axes.text(guess, true, f"{counts[true, guess]}", ha="center", va="center", color=color, fontsize=9)
    if size <= NAMED:
        short = [shortened(name) for name in names]
        long = size * max(map(len, short)) > 30
        axes.set_yticks(range(size), short)
        axes.set_xticks(range(size), short, rotation=60 if long else 0, ha="right" if long else "center")
        if long:
            for label in axes.get_xticklabels():
                label.set_rotation_mode("anchor")
    axes.set(xlabel="answer", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_alpha(0.4)
    return figure


def _seen(counts: np.ndarray, names: Sequence[str], what: str) -> str:
    total, wrong = counts.sum(), counts.sum() - np.trace(counts)
    told = f"Confusion matrix: {wrong} of {total} {what} {'is' if wrong == 1 else 'are'} wrong"
    if not wrong:
        return f"Confusion matrix: all {total} {what} are right."
    true, guess, often = confusions(counts)[0]
    return f"{told}; most often {names[true]} is taken for {names[guess]} ({often} of them)."


def _per_class(answers: Answers) -> Table:
    """Precision, recall, F1 and support; of many classes those with the lowest F1."""
    labels = range(len(answers.classes))
    found = precision_recall_fscore_support(answers.truth, answers.guess, labels=labels, zero_division=0)
    precision, recall, f1, support = found
    order = np.argsort(f1, kind="stable")[:WORST] if len(f1) > ROWS else labels
    rows = [
        (answers.classes[n], f"{precision[n]:.3f}", f"{recall[n]:.3f}", f"{f1[n]:.3f}", str(support[n])) for n in order
    ]
    more = "; all are in per_class.csv" if answers.kind == "class" else ""
    told = f"The {WORST} of {len(f1)} with the lowest F1{more}" if len(f1) > ROWS else ""
    return Table(("class", "precision", "recall", "F1", "support"), rows, told)


def shortened(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
