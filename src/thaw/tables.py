"""What a run shows in tables: its data and what is wrong with it, the plan, the results."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from thaw.data.quality import RARE, Leak, Quality
from thaw.freezing.contract import GroupState

CUT = 60  # characters of a sample or a class that are shown


def data_table(quality: Quality) -> Table:
    """A row for each split: samples, and what is known of classes, numbers and lengths."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("data")
    table.add_column("samples", justify="right")
    optional = {
        "classes": {split: _classes(counts) for split, counts in quality.class_counts.items()},
        "targets, min – median – max": {split: _range(numbers) for split, numbers in quality.numbers.items()},
        f"{quality.unit or 'length'}, min – median – 95 % – max": {
            split: _range(lengths, "p95") for split, lengths in quality.lengths.items()
        },
    }
    columns = {header: cells for header, cells in optional.items() if any(cells.values())}
    for header in columns:
        table.add_column(header, justify="right")
    for split, size in quality.sizes.items():
        table.add_row(split, f"{size:,}", *(cells.get(split, "") for cells in columns.values()))
    return table


def findings(quality: Quality, shown: int = 5) -> list[str]:
    """One line of rich markup for each thing found; none where nothing was."""
    lines = []
    for leak in quality.leaks:
        lines.append(f"[yellow]{leak.samples:,} of {leak.later} also in {leak.earlier}[/]" + _examples(leak))
    if doubled := [f"{count:,} in {split}" for split, count in quality.duplicates.items() if count]:
        lines.append(f"duplicates: {', '.join(doubled)}")
    if skipped := [f"{count:,} {_cut(reason)}" for reason, count in quality.skipped.items() if count]:
        lines.append(f"skipped: {', '.join(skipped)}")
    if truncated := [f"{count:,} of {split}" for split, count in quality.truncated.items() if count]:
        lines.append(f"truncated: {', '.join(truncated)}")
    if rare := quality.rare_classes:
        named = [f"{_cut(name)} {count}" for name, count in list(rare.items())[:shown]]
        lines.append(f"under {RARE} training samples: {_some(named, len(rare))}")
    for split, names in quality.lacking.items():
        lines.append(f"[yellow]no sample in {split}[/]: {_some([_cut(name) for name in names[:shown]], len(names))}")
    return lines


def _examples(leak: Leak) -> str:
    if leak.texts:
        return ": " + "; ".join(f"“{_cut(text)}”" for text in leak.texts)
    return ": " + "; ".join(f"{leak.later} {b} = {leak.earlier} {a}" for a, b in leak.examples)


def _some(named: list[str], count: int) -> str:
    return ", ".join(named) + (f" and {count - len(named):,} more" if count > len(named) else "")


def _cut(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return escape(plain if len(plain) <= CUT else plain[: CUT - 1] + "…")


def _classes(counts: Mapping[str, int]) -> str:
    held = [count for count in counts.values() if count]
    return f"{len(held)} ({min(held):,} – {max(held):,} each)" if held else ""


def _range(summarised: Mapping[str, float], *between: str) -> str:
    names = ("min", "median", *between, "max")
    return " – ".join(f"{summarised[name]:,.4g}" for name in names) if summarised else ""


def plan_table(states: Sequence[GroupState], title: str = "Plan") -> Table:
    """The layer groups, and what each does from now on."""
    table = Table("layer group", title=title, title_justify="left")
    for column in ("parameters", "trains", "lr", "weight decay", "mode"):
        table.add_column(column, justify="right" if column in ("parameters", "lr", "weight decay") else "left")
    for state in states:
        rates = (f"{state.lr:.2g}", f"{state.weight_decay:g}") if state.trains else ("–", "–")
        part = "yes" if state.trainable == state.parameters else f"{state.trainable:,}"
        trains = f"[green]{part}[/]" if state.trains else "[blue]frozen[/]"
        table.add_row(state.group, f"{state.parameters:,}", trains, *rates, state.mode)
    table.add_section()
    total, training = parameter_counts(states)
    table.add_row("all", f"{total:,}", f"{training:,}", "", "", "")
    return table


def parameter_counts(states: Sequence[GroupState]) -> tuple[int, int]:
    """Parameters in all, and those that train."""
    return sum(state.parameters for state in states), sum(state.trainable for state in states)


def results_table(metrics: Mapping[str, float], best_epoch: int | None) -> Table:
    """Rows of metrics, a column for each split that was measured."""
    splits = [split for split in ("train", "val", "test") if any(name.startswith(f"{split}/") for name in metrics)]
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    title = "Results" if best_epoch is None else f"Results at the best epoch ({best_epoch + 1})"
    table = Table("metric", *splits, title=title, title_justify="left")
    for name in names:
        values = [metrics.get(f"{split}/{name}") for split in splits]
        table.add_row(name, *("–" if value is None else f"{value:.4f}" for value in values))
    return table


def per_class_table(classes: Sequence[str], columns: Mapping[str, Sequence[float]], split: str) -> Table:
    """Precision, recall, F1 and support of each class."""
    table = Table("class", *columns, title=f"Per class ({split})", title_justify="left")
    for number, name in enumerate(classes):
        values = [column[number] for column in columns.values()]
        table.add_row(escape(name), *(str(value) if isinstance(value, int) else f"{value:.4f}" for value in values))
    return table
