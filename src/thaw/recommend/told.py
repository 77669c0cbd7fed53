"""The evidence and the advice as tables and sentences."""

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from thaw.recommend.evidence import Evidence
from thaw.recommend.rules import Choice

UNEQUAL = 3.0  # how many times as frequent a class must be for accuracy to hide the others


def evidence_table(candidates: Sequence[Evidence], chosen: Evidence) -> Table:
    """A column for each model: what its frozen features tell, on validation."""
    table = Table("frozen features", title="Evidence: accuracies on validation", title_justify="left")
    for candidate in candidates:
        mark = " ←" if candidate is chosen and len(candidates) > 1 else ""
        table.add_column(escape(candidate.model) + mark, justify="right")
    rows: dict[str, Callable[[Evidence], str]] = {
        "linear probe": lambda e: f"{e.probe:.1%} ± {100 * e.noise:.1f}",
        "nearest neighbours": lambda e: f"{e.neighbours:.1%}",
        "linear probe on random features": lambda e: "–" if e.untrained is None else f"{e.untrained:.1%}",
        "similarity to the pretraining": lambda e: "–" if e.untrained is None else f"{e.similarity:.2f}",
        "LogME": lambda e: f"{e.logme:.3f}",
        "parameters": lambda e: f"{e.parameters:,}",
    }
    for name, cell in rows.items():
        table.add_row(name, *map(cell, candidates))
    return table


def data_in_words(evidence: Evidence) -> str:
    """Size, classes and their balance."""
    few, many, classes = min(evidence.samples), max(evidence.samples), len(evidence.samples)
    told = f"{evidence.size:,} training samples in {classes} classes of {few:,} to {many:,}"
    return f"{told}; the most frequent is {evidence.majority:.1%} of {evidence.val_samples:,} for validation."


def advice_in_words(choices: Sequence[Choice]) -> list[str]:
    """A line of rich markup for each setting: why, and by which source."""
    return [f"[bold]{choice.override}[/]: {escape(choice.reason)} [dim]({choice.source})[/]" for choice in choices]


def remarks(evidence: Evidence) -> list[str]:
    """What else is worth a look."""
    found = []
    if evidence.imbalance >= UNEQUAL:
        found.append(
            f"[yellow]The classes are unequal.[/] The most frequent has {evidence.imbalance:.0f} times the samples "
            "of the rarest, and accuracy hides the rare: write monitor=val/f1, or task.class_weights=balanced."
        )
    if evidence.pretrained and evidence.similarity < evidence.noise:
        found.append(
            "[yellow]The pretrained features are no better than random ones.[/] Are inputs prepared as in the "
            "pretraining? Another model may suit this data."
        )
    return found
