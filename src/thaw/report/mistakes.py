"""The mistakes that the network is surest of, as people see the samples."""

import os
from collections.abc import Sequence

from thaw.report.answers import Verdict, verdicts
from thaw.report.evidence import Evidence
from thaw.report.section import Picture, Section, Table
from thaw.report.thumbnails import draw, kind_of

MOST = 20
LONGEST = 280  # characters of a text, of which no more is needed to judge it


def mistakes(evidence: Evidence) -> Section | None:
    """The twenty most confident mistakes; where there is none, the right answers that were least sure."""
    answers, samples = evidence.answers, evidence.data.splits[evidence.split]
    if answers.kind == "text" or not answers.rows:
        return None
    chosen, wrong = worst(verdicts(answers))
    title, told = _words(answers.kind, len(chosen), wrong, len(answers.rows))
    indices, names = list(evidence.rows), evidence.names()
    above = shared_folder(names)
    shown = [_cut(names[indices[each.row]].removeprefix(above)) for each in chosen]
    kind = kind_of(evidence.data)
    head = ("text" if kind == "text" else "sample", "true", "answer", MEASURED.get(answers.kind, "confidence"))
    rows = [(name, each.truth, each.guess, each.told) for name, each in zip(shown, chosen, strict=True)]
    table = Table(head, rows, f"In {above}" if above else "")
    if kind == "text":
        return Section(title, text=[told], tables=[table])
    arrow = answers.kind != "number"
    labels = [
        f"{each.truth} → {each.guess}\n{each.told}" if arrow and not each.right else f"{each.truth}\n{each.told}"
        for each in chosen
    ]
    figure = draw(kind, [samples[indices[each.row]][0] for each in chosen], labels)
    alt = f"{told} The first is {rows[0][0]}: {rows[0][1]}, answered {rows[0][2]} ({rows[0][3]})."
    return Section(title, text=[told], tables=[table], pictures=[Picture(figure, alt, vector=False)])


MEASURED = {"number": "error", "transcript": "error", "tags": "wrong"}


def worst(judged: Sequence[Verdict], most: int = MOST) -> tuple[list[Verdict], int]:
    """The surest wrong answers, or without any the least sure right ones; and how many are wrong."""
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
    return title, f"{wrong:,} of {total:,} {what} {'is' if wrong == 1 else 'are'} wrong." + (
        f" {which}" if wrong > shown else ""
    )


def shared_folder(names: Sequence[str]) -> str:
    """The folder that all names begin with; empty where they are no paths."""
    if not all(os.path.isabs(name) for name in names):
        return ""
    return os.path.join(os.path.commonpath([os.path.dirname(name) for name in names]), "")


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[:LONGEST] + "…"
