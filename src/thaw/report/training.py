"""How the training went: its curves with the thaws in them, what trained when, and at which rates."""

from typing import Any

from matplotlib.axes import Axes

from thaw.plan.drawing import draw_rates, draw_timeline, duration, ranges
from thaw.report.evidence import Evidence
from thaw.report.history import History, finite
from thaw.report.ink import BLUE, INK, ORANGE, WIDTH, panels
from thaw.report.section import Picture, Section, Table

MOST_NAMED = 8  # thaws whose groups are named in a curve


def curves(evidence: Evidence) -> Section | None:
    """Loss and the metrics of each epoch, in train and validation."""
    history, monitor = History(evidence.folder, evidence.record), evidence.record["monitor"]
    first = monitor.partition("/")[2]
    names = list(dict.fromkeys(["loss", first, *evidence.record["metrics"]]))
    shown = [name for name in names if "/" not in name and history.curve(f"val/{name}")[0]][:2]
    if not shown:
        return None
    pictures = [_curve(history, name, evidence.record["mode"] if name == first else "") for name in shown]
    stage = {epoch: ranges(groups, list(history.parameters)) for epoch, groups in history.thaws.items()}
    told = "; ".join(f"{groups} after epoch {epoch}" for epoch, groups in stage.items())
    text = [f"Dashed lines are thaws: {told}."] if told else []
    return Section("Training", text, pictures=pictures)


def _curve(history: History, name: str, mode: str) -> Picture:
    figure, axes = panels(WIDTH, 3.1)
    ends = {}
    for split, color in (("train", BLUE), ("val", ORANGE)):
        epochs, values = history.curve(f"{split}/{name}")
        if epochs:
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, values, color=color, linewidth=2, marker=marker, markersize=4, label=split)
            ends[split] = (epochs, values)
    epochs, values = ends["val"]
    if history.best in epochs:
        best = values[epochs.index(history.best)]
        axes.plot([history.best], [best], "o", color=ORANGE, markersize=8, markerfacecolor="none", markeredgewidth=1.6)
    _mark_thaws(axes, history, falls=mode != "max")
    axes.set(xlabel="epoch", ylabel=name, xlim=(0, history.epochs * 1.02))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.22, color=INK)
    axes.legend(loc="upper right" if mode != "max" else "lower right", ncols=2)
    known = finite(values)
    told = f"from {known[0]:.4g} to {known[-1]:.4g}" if known else "not finite"
    extreme = f", at best {(max if mode == 'max' else min)(known):.4g}" if known and mode else ""
    alt = f"{name} of train and validation over {history.epochs} epochs; validation goes {told}{extreme}."
    caption = f"{name}; the ring is the best epoch, {history.best}." if history.best in epochs else name
    return Picture(figure, alt, caption)


def _mark_thaws(axes: Axes, history: History, falls: bool) -> None:
    """With the names of what thaws, where a curve that falls, or one that rises, leaves room for them."""
    order = list(history.parameters)
    for epoch, groups in history.thaws.items():
        axes.axvline(epoch, color=INK, linewidth=0.9, linestyle=(0, (3, 3)), alpha=0.8)
        if len(history.thaws) <= MOST_NAMED:
            label: dict[str, Any] = {
                "rotation": 90,
                "va": "top" if falls else "bottom",
                "ha": "right",
                "fontsize": 8,
                "color": INK,
            }
            axes.annotate(
                ranges(groups, order), (epoch, 0.97 if falls else 0.03), xycoords=("data", "axes fraction"), **label
            )


def schedule(evidence: Evidence) -> Section | None:
    """Groups × epochs, and the rate of each group over time."""
    history = History(evidence.folder, evidence.record)
    if not history.states:
        return None
    bars = history.bars
    # As high as its rows ask for, between what reads well and what a screen holds.
    figure, axes = panels(WIDTH, min(0.8 + 0.3 * len(bars), 8.0))
    draw_timeline(axes, bars, history.parameters, history.epochs, INK)
    axes.set(xlabel="epoch", xlim=(0, history.epochs))
    axes.xaxis.get_major_locator().set_params(integer=True)
    always = [
        group
        for group, spans in bars.items()
        if spans and sum(end - start for start, end, _ in spans) >= history.epochs
    ]
    never = [group for group, spans in bars.items() if not spans]
    order = list(bars)
    alt = f"Timeline of {len(bars)} layer groups over {history.epochs} epochs: " + "; ".join(
        [f"{ranges(always, order)} trained throughout"] * bool(always)
        + [f"{ranges(groups, order)} from epoch {epoch + 1}" for epoch, groups in history.thaws.items()]
        + [f"{ranges(never, order)} stayed frozen"] * bool(never)
    )
    partly = any(not whole for spans in bars.values() for _, _, whole in spans)
    pale = " Pale: a part of the group, such as biases or adapters." if partly else ""
    pictures = [Picture(figure, f"{alt}.", f"What trained when, from the stem to the head.{pale}")]
    at, rates = history.rates
    if any(value > 0 for values in rates.values() for value in values):
        figure, axes = panels(WIDTH, 3.1)
        draw_rates(axes, at, rates)
        axes.set_xlim(0, history.epochs)
        for epoch in history.thaws:
            axes.axvline(epoch, color=INK, linewidth=0.9, linestyle=(0, (3, 3)), alpha=0.8)
        tops = ", ".join(f"{group} {max(values):.2g}" for group, values in rates.items() if max(values) > 0)
        alt = f"Learning rate of each layer group over {history.epochs} epochs; the largest: {tops}."
        pictures.append(Picture(figure, alt, "Learning rate of each layer group, in the same colors."))
    return Section("What trained when", pictures=pictures)


def cost(evidence: Evidence) -> Section:
    """Time, speed, memory."""
    record = evidence.record
    rows = [("time, training and measuring", duration(record.get("seconds", 0.0)))]
    if "samples_per_second" in record:
        rows.append(("training samples a second", f"{record['samples_per_second']:,.4g}"))
    if "data_wait" in record:
        rows.append(("share of the training spent waiting for data", f"{record['data_wait']:.1%}"))
    if "peak_memory_bytes" in record:
        rows.append(("largest memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"))
    rows.append(("optimizer steps", f"{record.get('steps', 0):,}"))
    if held := record.get("parameters"):
        rows.append(("parameters that train at the end", f"{held['trainable_at_end']:,} of {held['total']:,}"))
    processes = record.get("settled", {}).get("processes", 1)
    rows += [("processes", str(processes))] * (processes > 1)
    return Section("Cost", tables=[Table(("what", "how much"), rows)])
