"""Whether the network's confidence can be believed."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from thaw.report.answers import Answers
from thaw.report.evidence import Evidence
from thaw.report.ink import BLUE, INK, ORANGE, TEAL, panels
from thaw.report.section import Picture, Section

BINS = 15  # of equal width, as of Guo et al., arXiv:1706.04599
FEW = 20  # answers in a bin, of which fewer say little
DRAWS = 100  # of answers by the told confidence, for what the error comes to by chance


def calibration(evidence: Evidence) -> Section | None:
    """Reliability diagram and expected calibration error: of the chosen class, or of every label."""
    answers = evidence.answers
    if answers.probabilities is None or not len(answers.rows):
        return None
    confidence, right = judged(answers)
    error, chance = expected_error(confidence, right), by_chance(confidence)
    mean, share = float(confidence.mean()), float(right.mean())
    what = "answers" if answers.kind == "class" else "labels"
    verdict = (
        "no more than chance gives a network that is calibrated perfectly"
        if error <= chance
        else f"more than chance gives one that is calibrated perfectly: it is {'too' if mean > share else 'not'} sure"
        f"{'' if mean > share else ' enough'}"
    )
    told = f"Expected calibration error {error:.4f}, over {BINS} bins of equal width; {verdict} (95 %: {chance:.4f})."
    measure = "confidence" if answers.kind == "class" else "probability of a label"
    picture = Picture(
        draw(confidence, right, measure, "share that is right" if answers.kind == "class" else "share that has it"),
        alt=f"Reliability diagram of {len(right):,} {what}: mean {measure} {mean:.1%}, and {share:.1%} "
        f"{'are right' if answers.kind == 'class' else 'are held'}; expected calibration error {error:.4f}.",
        caption="On the dotted line a bar would be perfect; bars of fewer than "
        f"{FEW} are pale. Beneath: how many {what} have that {measure}.",
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
    bins = np.clip(np.searchsorted(edges, mean, side="left") - 1, 0, BINS - 1)
    counts = np.histogram(confidence, edges)[0][bins]
    figure, (above, below) = panels(4.4, 4.4, 2, sharex=True, height_ratios=[3, 1])
    alphas = 0.25 + 0.75 * np.minimum(counts / FEW, 1)
    for at, low, high, sure, alpha in zip(bins, np.minimum(share, mean), share, mean, alphas, strict=True):
        place = {"x": (at + 0.5) / BINS, "width": 0.9 / BINS, "alpha": alpha}
        above.bar(height=low, color=BLUE, **place)
        above.bar(height=abs(high - sure), bottom=low, color=ORANGE if sure > high else TEAL, **place)
    above.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=ylabel)
    hands = [Patch(color=color) for color in (BLUE, ORANGE, TEAL)]
    above.legend(hands, [ylabel, "too sure by", "not sure enough by"], loc="upper left", labelcolor=INK, frameon=False)
    below.hist(confidence, bins=edges, color=INK, alpha=0.6, log=True)
    below.set(xlabel=xlabel, ylabel="count")
    return figure
