"""What a sweep leaves to be read: results.csv, results.md and one page with its pictures."""

import base64
import html
import io
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from thaw.run.unfinished import replacing
from thaw.search.compare import Configuration, cell, difference, folded, ranked, short, verdict
from thaw.search.ledger import Row, write_csv

MOST_SHOWN = 50  # configurations in results.md and on the page; results.csv has all


def write(
    folder: Path,
    rows: Sequence[Row],
    study: optuna.Study | None = None,
    title: str = "Runs",
    default: Mapping[str, str] | None = None,
) -> None:
    """Write the three files into a folder; the pictures of the search need its study.

    Args:
        default: setting → value of what is swept, in the configuration as it is.
    """
    write_csv(folder / "results.csv", rows)
    lines = summary(rows, default)
    with replacing(folder / "results.md") as file:
        file.write("\n".join([f"# {title}", "", *lines, ""]))
    with replacing(folder / "report.html") as file:
        file.write(_page(title, rows, study, default))


def summary(rows: Sequence[Row], default: Mapping[str, str] | None = None) -> list[str]:
    """The table of configurations, the best first, what can be said of the best, and what has failed, as Markdown."""
    monitor, mode = next(((row.monitor, row.mode) for row in rows if row.monitor), ("", "max"))
    order = ranked(folded(rows), monitor, mode)
    head, cells = _table(order, rows, monitor)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in cells[:MOST_SHOWN]]
    if len(cells) > MOST_SHOWN:
        lines.append(f"\n{len(cells) - MOST_SHOWN} more in results.csv.")
    lines = lines * bool(cells) + ["", *conclusions(order, rows, monitor, mode, default)]
    for row in rows:
        if row.status == "failed":
            settings = " ".join(f"{key}={short(value)}" for key, value in row.settings.items())
            lines.append(f"- FAIL {settings} seed={row.seed}: {row.reason}")
    return lines


def conclusions(
    order: Sequence[Configuration],
    rows: Sequence[Row],
    monitor: str,
    mode: str,
    default: Mapping[str, str] | None = None,
) -> list[str]:
    """What the figures allow to say."""
    counts = ", ".join(f"{count} {status}" for status, count in Counter(row.status for row in rows).items())
    lines = [f"- {len(rows)} run{'s' * (len(rows) != 1)}: {counts}."]
    if order:
        best, read = order[0], sum(row.read_test for row in rows)
        lines.append(f"- Chosen by {monitor} of the best epoch. The test split was read by {read} of the runs.")
        test = sorted({name for row in best.rows.values() for name in row.metrics if name.startswith("test/")})
        measured = ", ".join(f"{name} {cell(best.values(name))}" for name in test)
        lines.append(f"- Best, 1: {best.name}: {monitor} {cell(best.values(monitor))}{measured and ', '}{measured}.")
        own = _number_of(default, order)
        if own == 1:
            lines.append("- It is the configuration as it was before the sweep.")
        elif own:
            lines.append(f"- {own} is the configuration as it was: {monitor} {cell(order[own - 1].values(monitor))}.")
        compared = sorted({2, 3, 4, own or 2} - {1})
        pairs = [(number, order[number - 1]) for number in compared if number <= len(order)]
        lines += [
            f"- {verdict(best, other, monitor, mode, ('1', str(number)))}"
            for number, other in pairs
            if difference(best, other, monitor)
        ]
        if len(order) > 1 and len(best.rows) < 2:
            lines.append("- One seed each: how much of their order is chance is not known. Write seed=0,1,2.")
    return lines


def _number_of(default: Mapping[str, str] | None, order: Sequence[Configuration]) -> int | None:
    """Which of the configurations, from 1 on, is the one as it was; None where it was not tried."""
    found = (
        number
        for number, configuration in enumerate(order, 1)
        if default and all(configuration.settings.get(key, value) == value for key, value in default.items())
    )
    return next(found, None)


def _table(order: Sequence[Configuration], rows: Sequence[Row], monitor: str) -> tuple[list[str], list[list[str]]]:
    keys = list(dict.fromkeys(key for configuration in order for key in configuration.settings))
    tests = sorted({name for row in rows for name in row.metrics if name.startswith("test/")})[:1]
    total = sum(row.seconds for row in rows) or 1.0
    cells = []
    for configuration in order:
        seconds = sum(row.seconds for row in configuration.rows.values())
        figures = [cell(configuration.values(name)) for name in (monitor, *tests)]
        own = [short(configuration.settings.get(key, "")) for key in keys]
        cost = [str(len(configuration.rows)), f"{seconds:.0f}", f"{seconds / total:.0%}"]
        cells.append([str(len(cells) + 1), *own, *figures, *cost])
    return ["", *keys, monitor, *tests, "seeds", "seconds", "of all"], cells


def _page(title: str, rows: Sequence[Row], study: optuna.Study | None, default: Mapping[str, str] | None) -> str:
    monitor, mode = next(((row.monitor, row.mode) for row in rows if row.monitor), ("", "max"))
    order = ranked(folded(rows), monitor, mode)
    head, cells = _table(order, rows, monitor)
    said = "".join(
        f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in conclusions(order, rows, monitor, mode, default)
    )
    table = _html_table(head, cells[:MOST_SHOWN])
    failed = [[row.folder.name, row.reason, row.command] for row in rows if row.status == "failed"]
    commands = [[row.folder.name, row.status, row.command] for row in rows]
    parts = [
        f"<h1>{html.escape(title)}</h1><ul>{said}</ul>{table}",
        *_pictures(rows, study, monitor),
        f"<h2>Failed</h2>{_html_table(['run', 'reason', 'command'], failed)}" if failed else "",
        f"<h2>Every run again</h2>{_html_table(['run', 'status', 'command'], commands)}",
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>{STYLE}'
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}'


STYLE = (
    "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:left;border-bottom:1px solid #ccc"
    ";font-variant-numeric:tabular-nums}img{max-width:100%}code,td:last-child{overflow-wrap:anywhere}</style>"
)


def _html_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    def line(kind: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in texts) + "</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', texts) for texts in cells)}</table>"


def _pictures(rows: Sequence[Row], study: optuna.Study | None, monitor: str) -> list[str]:
    matplotlib.use("Agg")
    pictures: list[tuple[str, Callable[[], Figure]]] = [("Learning curves", lambda: learning_curves(rows, monitor))]
    if study is not None and len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))) > 2:
        from optuna.visualization import matplotlib as drawn

        pictures += [
            ("History", lambda: drawn.plot_optimization_history(study, target_name=monitor).figure),
            ("Importances (fANOVA)", lambda: drawn.plot_param_importances(study, target_name=monitor).figure),
            ("Parallel coordinates", lambda: _plain(drawn.plot_parallel_coordinate(study, target_name=monitor))),
            ("Slices", lambda: _plain(drawn.plot_slice(study, target_name=monitor))),
        ]
    parts = []
    for name, draw in pictures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                figure = draw()
            except (ValueError, RuntimeError):  # too few different values for it
                continue
            data = io.BytesIO()
            figure.savefig(data, format="png", dpi=110, bbox_inches="tight")
            matplotlib.pyplot.close(figure)
        image = base64.b64encode(data.getvalue()).decode()
        parts.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{image}">')
    return parts


def learning_curves(rows: Sequence[Row], monitor: str) -> Figure:
    """The monitored metric of every run, epoch by epoch; those that were pruned in grey."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for row in rows:
        values = [float("nan") if value is None else value for value in row.history]
        grey = row.status != "finished"
        axes.plot(
            range(1, len(values) + 1), values, color="0.75" if grey else None, lw=1 if grey else 1.4, zorder=not grey
        )
    axes.set(xlabel="epoch", ylabel=monitor)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    return figure


def _plain(axes: Any) -> Figure:
    """Optuna's picture without the lines and labels that lie over one another in it."""
    figure = (axes if hasattr(axes, "figure") else next(iter(axes.flat))).figure
    for each in figure.axes:
        each.grid(False)
        if each.get_xscale() == "log":
            each.xaxis.set_minor_formatter(NullFormatter())
    return figure
