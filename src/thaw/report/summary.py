"""What was done, in one sentence, and what came of it, in one table."""

from typing import Any

from thaw.plan.drawing import count, duration
from thaw.report.evidence import Evidence
from thaw.report.intervals import RESAMPLES, Interval
from thaw.report.section import Section, Table

SPLITS = {"train": "training", "val": "validation", "test": "test"}


def sentence(evidence: Evidence) -> str:
    """What was done, and how well it went."""
    record, metric = evidence.record, main_metric(evidence)
    sizes, held = record["data"]["sizes"], record.get("parameters", {})
    chosen = {group: option for group, (option, _) in evidence.choices.items()}
    network = evidence.module.network
    how = "Fine-tuned" if network.pretrained else "Trained from random weights:"
    strategy = chosen.get("freezing", "none")
    frozen = "all of it" if strategy == "none" else f"freezing strategy {strategy}"
    measured = sizes.get(evidence.split, 0)
    return (
        f"{how} {model_name(evidence)} ({count(held.get('total', 0))} parameters, {frozen}) {purpose(evidence)}, on "
        f"{sizes['train']:,} training samples of {data_name(evidence)}: {metric.partition('/')[2]} "
        f"{record['metrics'][metric]:.4f} on {measured:,} {SPLITS[evidence.split]} samples."
    )


def purpose(evidence: Evidence) -> str:
    """What the network was trained for."""
    classes = len(evidence.data.classes)
    told = {
        "class": f"to tell {classes} classes apart",
        "labels": f"to find any of {classes} labels",
        "number": f"to predict {'a number' if classes == 1 else f'{classes} numbers'}",
        "tags": f"to tag words with {classes} tags",
        "transcript": "to write down speech",
        "text": "to predict the next token",
    }
    return told[evidence.task.target]


def model_name(evidence: Evidence) -> str:
    """As its library knows it, or as its option is called."""
    name = str(evidence.settings["model"].get("name") or evidence.choices["model"][0])
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def data_name(evidence: Evidence) -> str:
    """The experiment that brings it, its option, or the end of its path."""
    settings, (option, _) = evidence.settings["data"], evidence.choices["data"]
    if place := settings.get("hub") or settings.get("root"):
        return str(place).rstrip("/").rpartition("/")[2]
    return str(option)


def main_metric(evidence: Evidence) -> str:
    """The monitored metric, on the split that was measured last."""
    name = f"{evidence.split}/{evidence.record['monitor'].partition('/')[2]}"
    return name if name in evidence.record["metrics"] else f"{evidence.split}/loss"


def facts(evidence: Evidence) -> list[tuple[str, str]]:
    """The figures to see at once."""
    record, metric = evidence.record, main_metric(evidence)
    found = [(f"{SPLITS[evidence.split]} {metric.partition('/')[2]}", f"{record['metrics'][metric]:.4f}")]
    if interval := evidence.intervals.get(metric):
        found.append(("95 % interval", between(interval, 3)))
    found.append(("best epoch", f"{record['best_epoch'] + 1} of {record['epochs']}"))
    held = record.get("parameters", {})
    training, total = held["trainable_at_end"], held["total"]
    found.append(("parameters trained", f"{count(training)} {'(all)' if training == total else f'of {count(total)}'}"))
    found.append(("time", duration(record.get("seconds", 0.0))))
    found.append(("largest memory", f"{record['peak_memory_bytes'] / 1e9:.1f} GB"))
    return found


def results(evidence: Evidence) -> Section:
    """All metrics of the best epoch, with intervals where they can be computed."""
    return Section("Results", _remarks(evidence), tables=[results_table(evidence)])


def results_table(evidence: Evidence) -> Table:
    """A row for each metric, a column for each split."""
    metrics: dict[str, Any] = evidence.record["metrics"]
    splits = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in metrics)]
    rows = []
    for name in dict.fromkeys(full.partition("/")[2] for full in metrics):
        values = [metrics.get(f"{split}/{name}") for split in splits]
        interval = evidence.intervals.get(f"{evidence.split}/{name}")
        figures = ["–" if value is None else f"{value:.4f}" for value in values]
        rows.append([name, *figures, *([between(interval)] if interval else ["–"])])
    head = ["metric", *(SPLITS[split] for split in splits), f"95 % interval, {SPLITS[evidence.split]}"]
    if not evidence.intervals:
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table(head, rows)


def between(interval: Interval, digits: int = 4) -> str:
    return f"{interval.low:.{digits}f} – {interval.high:.{digits}f}"


def _remarks(evidence: Evidence) -> list[str]:
    record = evidence.record
    epoch, monitor = record["best_epoch"] + 1, record["monitor"]
    text = [f"At epoch {epoch} of {record['epochs']}, the best by {monitor}."]
    if evidence.intervals:
        text[0] += (
            f" The interval is that of {len(evidence.rows):,} {SPLITS[evidence.split]} samples, drawn anew "
            f"{RESAMPLES:,} times; another seed, split or source of data is not in it."
        )
    if evidence.split != "test":
        text.append(
            "The test split was not read, or there is none: the figures are of validation, which also chose the epoch."
        )
    return text
