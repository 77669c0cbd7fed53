"""What a sweep leaves to be read: results.csv, results.md and one page with its pictures."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna

from thaw.report.section import Picture, Section, Table
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
    from thaw.report.page import render  # matplotlib takes a second

    monitor, mode = next(((row.monitor, row.mode) for row in rows if row.monitor), ("", "max"))
    order = ranked(folded(rows), monitor, mode)
    said = [line.removeprefix("- ") for line in conclusions(order, rows, monitor, mode, default)]
    head, cells = _table(order, rows, monitor)
    more = len(cells) - MOST_SHOWN
    caption = f"The best {MOST_SHOWN}; {more} more in results.csv" if more > 0 else "The best first"
    found = [Section("Configurations", said[1:], [Table(head, cells[:MOST_SHOWN], caption)] if cells else [])]
    if pictures := _pictures(rows, study, monitor, mode):
        found.append(Section("How it went", pictures=pictures))
    if failed := [(row.folder.name, row.reason, row.command) for row in rows if row.status == "failed"]:
        found.append(Section("Failed", tables=[Table(("run", "reason", "command"), failed)]))
    again = [(row.folder.name, row.status, row.command) for row in rows]
    found.append(Section("Every run again", tables=[Table(("run", "status", "command"), again)]))
    return render(title, found, said[0], _facts(order, rows, monitor))


def _facts(order: Sequence[Configuration], rows: Sequence[Row], monitor: str) -> list[tuple[str, str]]:
    from thaw.plan.drawing import duration

    found = [("runs", str(len(rows))), ("computing time", duration(sum(row.seconds for row in rows)))]
    if order:
        values = order[0].values(monitor)
        found = [(f"best {monitor.replace('val/', 'validation ')}", f"{values.mean():.4f}"), *found]
        found.insert(1, ("seeds of the best", str(len(values))))
    return found


def _pictures(rows: Sequence[Row], study: optuna.Study | None, monitor: str, mode: str) -> list[Picture]:
    from matplotlib import rc_context

    from thaw.report.ink import STYLE
    from thaw.search import pictures as drawn

    draw: list[Callable[[], Picture]] = [lambda: drawn.learning_curves(rows, monitor)]
    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)) if study is not None else []
    if len(trials) > 2 and trials[0].params:
        log = [name for name, kind in trials[0].distributions.items() if getattr(kind, "log", False)]
        points = [
            drawn.Point(trial.params, trial.value) for trial in trials if trial.params.keys() == trials[0].params.keys()
        ]
        draw += [
            lambda: drawn.history(points, monitor, mode),
            lambda: drawn.parallel(points, monitor, log, mode),
            lambda: drawn.slices(points, monitor, log),
            lambda: drawn.importances(optuna.importance.get_param_importances(study), monitor),
        ]
    found = []
    for picture in draw:
        with warnings.catch_warnings(), rc_context(STYLE):
            warnings.simplefilter("ignore")
            try:
                found.append(picture())
            except (ValueError, RuntimeError):  # too few different values for it
                continue
    return found
