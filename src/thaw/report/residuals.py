"""How far predicted numbers lie from the true ones."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from thaw.report.answers import Answers
from thaw.report.evidence import Evidence
from thaw.report.ink import BLUE, INK, ORANGE, WIDTH, panels
from thaw.report.section import Picture, Section, Table

MOST = 4  # numbers that are drawn
MANY = 500  # points from which a picture of dots is smaller than their list


def residuals(evidence: Evidence) -> Section | None:
    """Predicted over true numbers, and the distribution of what lies between them."""
    answers = evidence.answers
    if answers.kind != "number" or not answers.rows:
        return None
    names = list(answers.classes)
    measures = [
        (name, *(f"{measure(answers.truth[:, n], answers.guess[:, n]):.4g}" for measure in MEASURES.values()))
        for n, name in enumerate(names)
    ]
    pictures = [_picture(answers, number, name) for number, name in enumerate(names[:MOST])]
    return Section("Predicted and true", tables=[Table(("", *MEASURES), measures)], pictures=pictures)


MEASURES = {"mean absolute error": mean_absolute_error, "RMSE": root_mean_squared_error, "R²": r2_score}


def _picture(answers: Answers, number: int, name: str) -> Picture:
    truth, guess = answers.truth[:, number], answers.guess[:, number]
    off = guess - truth
    side = "above" if np.median(off) > 0 else "below"
    return Picture(
        draw(truth, guess, name),
        alt=f"{name}: {len(truth):,} predictions over the true values, R² {r2_score(truth, guess):.3f}; half of them "
        f"within {np.median(np.abs(off)):.3g} of the truth, their median {abs(np.median(off)):.3g} {side} it.",
        caption="On the dotted line a prediction is exact. Beneath: predicted minus true.",
        vector=len(truth) <= MANY,
    )


def draw(truth: np.ndarray, guess: np.ndarray, name: str) -> Figure:
    figure, (above, below) = panels(WIDTH * 0.85, 5.2, 2, height_ratios=[3, 1])
    ends = [min(truth.min(), guess.min()), max(truth.max(), guess.max())]
    above.scatter(truth, guess, s=12, color=BLUE, alpha=max(0.15, min(0.7, 60 / len(truth) ** 0.5 / 3)), linewidths=0)
    above.plot(ends, ends, color=INK, linestyle=":", linewidth=1.2)
    above.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
    below.hist(guess - truth, bins=min(40, max(8, len(truth) // 10)), color=BLUE, alpha=0.8)
    below.axvline(0, color=ORANGE, linewidth=1.2)
    below.set(xlabel="predicted − true", ylabel="count")
    return figure
