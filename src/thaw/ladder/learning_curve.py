"""What more labels would bring: the error of probes on ever larger shares of them, and a power law through it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thaw.data.splits import stratified
from thaw.ladder.bench import Bench
from thaw.ladder.rung import Outcome, fails, passes, skips
from thaw.probing.linear_probe import probe

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
SEEDS = 5  # subsets of each size
DRAWS = 400  # of the bootstrap
EXPONENTS = np.linspace(0.05, 2.0, 40)


@dataclass(frozen=True)
class Curve:
    """Which samples of validation are told rightly from so many labels.

    Args:
        sizes: labels, ascending.
        right: for each size (subsets, samples of validation).
    """

    sizes: list[int]
    right: list[np.ndarray]

    @property
    def errors(self) -> list[np.ndarray]:
        """Error rate of each subset, for each size (subsets,)."""
        return [1 - right.mean(1) for right in self.right]

    def resampled(self, seed: int = 0) -> np.ndarray:
        """Mean error rates (draws, sizes) of a bootstrap over subsets and validation samples at once."""
        generator = np.random.default_rng(seed)
        samples = self.right[0].shape[1]
        found = np.empty((DRAWS, len(self.sizes)))
        for draw in range(DRAWS):
            columns = generator.integers(samples, size=samples)
            for number, right in enumerate(self.right):
                rows = generator.integers(len(right), size=len(right))
                found[draw, number] = 1 - right[rows][:, columns].mean()
        return found


def measure(bench: Bench) -> Curve:
    """Probes on stratified subsets of the training samples' features, by seed."""
    train, val = bench.features("train"), bench.features("val")
    strata, total = train.classes.numpy(), len(train)
    least = len(bench.data.classes)
    sizes = [size for share in SHARES if (size := round(share * total)) >= least]
    right = []
    for size in sizes:
        rows = []
        for seed in range(SEEDS if size < total else 1):
            bench.tell(f"probes on {size:,} of {total:,} samples")
            chosen = stratified(strata, total, size, seed)[1] if size < total else np.arange(total)
            rows.append((probe(train.take(chosen), val.values) == val.classes).numpy())
        right.append(np.stack(rows))
    return Curve(sizes, right)


def power_law(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Fit error = scale · size^-exponent + floor by least squares, with no negative scale or floor.

    Args:
        sizes: (sizes,).
        errors: (draws, sizes).

    Returns:
        (draws, 3) of scale, exponent and floor.
    """
    sizes = np.asarray(sizes, dtype=float)
    best = np.full((len(errors), 3), np.nan)
    least = np.full(len(errors), np.inf)
    for exponent in EXPONENTS:
        shape = sizes**-exponent
        centred = shape - shape.mean()
        scale = (errors @ centred) / (centred @ centred)
        floor = errors.mean(1) - scale * shape.mean()
        scale = np.where(floor < 0, (errors @ shape) / (shape @ shape), scale)
        floor = np.where(scale < 0, errors.mean(1), np.maximum(floor, 0))
        scale = np.maximum(scale, 0)
        misfit = np.square(errors - scale[:, None] * shape - floor[:, None]).sum(1)
        better = misfit < least
        least[better] = misfit[better]
        best[better] = np.stack([scale, np.full_like(scale, exponent), floor], axis=1)[better]
    return best


def error_at(laws: np.ndarray, size: float | np.ndarray) -> np.ndarray:
    """Error rates (draws, sizes) by power laws (draws, 3)."""
    return laws[:, :1] * np.atleast_1d(size) ** -laws[:, 1:2] + laws[:, 2:]


def gain(curve: Curve) -> tuple[float, float]:
    """What twice the labels bring, in points of accuracy, and half the width of its 95 % interval."""
    means = np.array([[errors.mean() for errors in curve.errors]])
    total = curve.sizes[-1]

    def brought(errors: np.ndarray) -> np.ndarray:
        laws = power_law(np.array(curve.sizes), errors)
        return 100 * (error_at(laws, total) - error_at(laws, 2 * total))[:, 0]

    low, high = np.percentile(brought(curve.resampled()), [2.5, 97.5])
    return float(brought(means)[0]), float((high - low) / 2)


def learning_curve(bench: Bench, picture: Path, title: str) -> Outcome:
    """More labels must not make it worse, and what twice as many would bring is told."""
    if bench.refusal:
        return skips(bench.refusal)
    if len(bench.features("train")) * SHARES[-3] < len(bench.data.classes):
        return skips("there are too few samples a class for a share of them")
    curve = measure(bench)
    points, width = gain(curve)
    draw(curve, bench.majority, title, picture)
    accuracies = [100 * (1 - errors.mean()) for errors in curve.errors]
    told = " → ".join(f"{value:.1f}" for value in accuracies)
    told = f"accuracy {told} % with {' → '.join(f'{size:,}' for size in curve.sizes)} labels (probes)"
    drawn = curve.resampled()
    if np.percentile(drawn[:, -1] - drawn[:, 0], 2.5) > 0:
        return fails(
            f"{told}: it falls; picture: {picture}",
            "Look at the labels: a part of them may be wrong, or sorted by where they come from.",
        )
    return passes(f"{told}; twice the labels: {points:+.1f} ± {width:.1f} points; picture: {picture}")


def draw(curve: Curve, majority: float, title: str, path: Path) -> None:
    """Draw the accuracies, and the power law with its interval up to four times the labels, into a PNG."""
    from matplotlib import colormaps  # takes a second
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    dark, light = colormaps["viridis"](0.15), colormaps["viridis"](0.7)
    sizes, total = np.array(curve.sizes), curve.sizes[-1]
    laws = power_law(sizes, curve.resampled())
    law = power_law(sizes, np.array([[errors.mean() for errors in curve.errors]]))
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    seen, ahead = np.geomspace(sizes[0], total, 60), np.geomspace(total, 4 * total, 40)
    for span, style in ((seen, "-"), (ahead, "--")):
        low, high = np.percentile(100 * (1 - error_at(laws, span)), [2.5, 97.5], axis=0)
        axes.fill_between(span, low, high, color=light, alpha=0.18, linewidth=0)
        axes.plot(span, 100 * (1 - error_at(law, span))[0], style, color=dark, linewidth=2)
    for size, errors in zip(curve.sizes, curve.errors, strict=True):
        axes.plot([size] * len(errors), 100 * (1 - errors), "o", color=light, markersize=5, alpha=0.7, linewidth=0)
    points, width = gain(curve)
    axes.axvline(2 * total, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
    value = 100 * (1 - error_at(law, 2 * total))[0, 0]
    axes.plot(2 * total, value, "o", color=dark, markersize=7)
    axes.annotate(
        f"twice the labels:\n{points:+.1f} ± {width:.1f} points",
        (2 * total, value),
        (8, -30),
        textcoords="offset points",
        fontsize=9,
    )
    axes.set_xscale("log")
    ticks = [*sizes, 2 * total, 4 * total]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
    worst = 100 * (1 - max(errors.max() for errors in curve.errors))
    if 100 * majority > worst - 25:
        axes.axhline(100 * majority, color="0.5", linewidth=1)
        axes.annotate("majority class", (sizes[0], 100 * majority), (0, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="labels", ylabel="validation accuracy of a linear probe, %")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
