"""The mistakes that the network is surest of, as people see the samples."""

from collections.abc import Sequence

from thaw.data.datamodule import DataModule
from thaw.data.loaders import Split
from thaw.report.answers import Answers, Verdict, verdicts
from thaw.report.section import Picture, Section, Table
from thaw.report.thumbnails import draw, kind_of

MOST = 20
LONGEST = 280  # characters of a text, of which no more is needed to judge it


def mistakes(answers: Answers, data: DataModule, split: Split, indices: Sequence[int]) -> Section | None:
    """The twenty most confident mistakes; where there is none, the right answers that were least sure.

    Args:
        indices: of the sample of the split that each row tells of.
    """
    if answers.kind == "text" or not answers.rows:
        return None
    chosen, wrong = worst(verdicts(answers))
    total = len(answers.rows)
    title, told = _words(answers.kind, len(chosen), wrong, total)
    names = list(data.names(data.splits[split]))
    rows = [
        (_cut(names[indices[each.row]]), each.truth, each.guess, each.told) for each in chosen
    ]
    kind = kind_of(data)
    head = ("text" if kind == "text" else "sample", "true", "answer", MEASURED.get(answers.kind, "confidence"))
    table = Table(head, rows)
    if kind == "text":
        return Section(title, text=[told], tables=[table])
    labels = [f"{each.truth} → {each.guess}\n{each.told}" if not each.right else f"{each.truth}\n{each.told}" for each in chosen]
    samples = [data.splits[split][indices[each.row]][0] for each in chosen]
    alt = f"{told} The first: {rows[0][0]}, {rows[0][1]}, answered {rows[0][2]} ({rows[0][3]})."
    figure = draw(kind, samples, labels)
    return Section(title, text=[told], tables=[table], pictures=[Picture(figure, alt, vector=False)])


MEASURED = {"number": "error", "transcript": "error", "tags": "wrong"}


def worst(judged: Sequence[Verdict], most: int = MOST) -> tuple[list[Verdict], int]:
    """The wrong answers of the highest confidence first, and how many are wrong; without any the least sure right ones."""
    wrong = sorted((each for each in judged if not each.right), key=lambda each: (-each.confidence, each.row))
    right = sorted((each for each in judged if each.right), key=lambda each: (each.confidence, each.row))
    return (wrong or right)[:most], len(wrong)


def _words(kind: str, shown: int, wrong: int, total: int) -> tuple[str, str]:
    if kind == "number":
        return "Largest errors", f"The {shown} of {total:,} predictions that lie furthest from the truth."
    what = {"class": "samples", "labels": "samples", "tags": "sentences", "transcript": "transcripts"}[kind]
    if not wrong:
        return "Least confident answers", f"None of {total:,} {what} is wrong. These {shown} were the closest calls."
    title = "Most confident mistakes" if kind in ("class", "labels") else "Worst answers"
    which = f"These {shown} are the surest." if kind in ("class", "labels") else f"These {shown} are the worst."
    return title, f"{wrong:,} of {total:,} {what} are wrong. " + (which if wrong > shown else "")


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[:LONGEST] + "…"
