"""Whether the network's confidence can be believed."""

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from thaw.report.answers import Answers
from thaw.report.ink import BLUE, INK, ORANGE, panels
from thaw.report.section import Picture, Section

BINS = 15  # of equal width, as of Guo et al., arXiv:1706.04599
DRAWS = 200  # of answers by the told confidence, for what the error comes to by chance


def calibration(answers: Answers) -> Section | None:
    """Reliability diagram and expected calibration error: of classes by the answer's own probability, of labels by all."""
    if answers.probabilities is None or not len(answers.rows):
        return None
    confidence, right = judged(answers)
    error, chance = expected_error(confidence, right), by_chance(confidence)
    mean, share = float(confidence.mean()), float(right.mean())
    what = "answers" if answers.kind == "class" else "labels"
    leaning = "too sure" if mean > share else "not sure enough"
    verdict = (
        f"A perfectly calibrated network would show {chance:.3f} or less in 95 of 100 samples of this size; "
        + ("so the confidence can be believed." if error <= chance else f"so the network is {leaning}.")
    )
    told = f"Expected calibration error {error:.3f}, over {BINS} bins of equal width. {verdict}"
    measure = "confidence" if answers.kind == "class" else "probability of a label"
    picture = Picture(
        draw(confidence, right, measure, "share that is right" if answers.kind == "class" else "share that has it"),
        alt=f"Reliability diagram of {len(right):,} {what}: mean {measure} {mean:.1%}, and {share:.1%} "
        f"{'are right' if answers.kind == 'class' else 'are held'}; expected calibration error {error:.3f}.",
        caption="Bars on the dotted line would be perfect; below it, the network is too sure. Beneath: how many "
        f"{what} have that {measure}.",
    )
    return Section("Calibration", text=[told], pictures=[picture])


def judged(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, whether it is so) of each answer, or of each label of each sample."""
    if answers.kind == "class":
        return answers.probabilities.max(axis=1), answers.truth == answers.guess
    return answers.probabilities.ravel(), answers.truth.ravel() > 0


def expected_error(confidence: np.ndarray, right: np.ndarray) -> float:
    return float(binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right * 1), n_bins=BINS))


def by_chance(confidence: np.ndarray) -> float:
    """What the error of a perfectly calibrated network stays below in 95 % of samples of this size."""
    draw = np.random.default_rng(0)
    errors = [expected_error(confidence, draw.random(len(confidence)) < confidence) for _ in range(DRAWS)]
    return float(np.quantile(errors, 0.95))


def draw(confidence: np.ndarray, right: np.ndarray, xlabel: str, ylabel: str) -> Figure:
    share, mean = calibration_curve(right, confidence, n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    at = (np.clip(np.searchsorted(edges, mean, side="left") - 1, 0, BINS - 1) + 0.5) / BINS
    figure, (above, below) = panels(4.4, 4.4, 2, sharex=True, height_ratios=[3, 1])
    above.bar(at, share, width=0.9 / BINS, color=BLUE, label=ylabel)
    gap = mean - share
    above.bar(at, gap, bottom=share, width=0.9 / BINS, color=ORANGE, alpha=0.45, label="gap to the confidence")
    above.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=ylabel)
    above.legend(loc="upper left", labelcolor=INK)
    below.hist(confidence, bins=edges, color=INK, alpha=0.6)
    below.set(xlabel=xlabel, ylabel="count")
    return figure
