"""How well the probabilities tell a class from all others, at every threshold."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from thaw.report.answers import Answers
from thaw.report.confusion import shortened
from thaw.report.evidence import Evidence
from thaw.report.ink import CYCLE, INK, panels
from thaw.report.section import Picture, Section

CURVES = 6  # of so many classes each has its own; of more, the worst of them
POINTS = 200  # of a curve: more cannot be seen


@dataclass(frozen=True)
class Ranked:
    """The curves of one class against the rest, or of all of them together.

    Args:
        roc: false and true positive rate (2, points).
        pr: recall and precision (2, points).
    """

    auroc: float
    average_precision: float
    roc: np.ndarray
    pr: np.ndarray


def ranking(evidence: Evidence) -> Section | None:
    """ROC and precision-recall curves: one of two classes, one against the rest of more, each label by itself."""
    answers = evidence.answers
    if answers.probabilities is None:
        return None
    found = ranked(answers)
    if not found:
        return None
    macro = float(np.mean([each.auroc for each in found.values()]))
    precision = float(np.mean([each.average_precision for each in found.values()]))
    worst = min(found, key=lambda name: found[name].auroc)
    if len(found) > 1:
        lowest = f"the lowest is that of {worst}, {found[worst].auroc:.4f}"
        told = f"Mean AUROC over {len(found)} classes, each against the rest: {macro:.4f}; {lowest}."
    else:
        told = f"AUROC of {worst}: {macro:.4f}."
    shown = dict(sorted(found.items(), key=lambda pair: pair[1].auroc)[:CURVES])
    if len(found) > CURVES:
        shown = {f"all {len(found)} (micro)": together(answers)} | dict(list(shown.items())[: CURVES - 1])
    elif len(found) > 1:
        shown = {name: found[name] for name in found}
    note = f"Of {len(found)} classes the {CURVES - 1} with the lowest AUROC. " if len(found) > CURVES else ""
    roc = Picture(
        draw(shown, "roc"),
        alt=f"ROC curves. {told}",
        caption=f"{note}ROC: the nearer to the upper left corner, the better; the dotted line is chance.",
    )
    pr = Picture(
        draw(shown, "pr"),
        alt=f"Precision-recall curves: mean average precision {precision:.4f}.",
        caption="Precision over recall: of rare classes it tells more than ROC does.",
    )
    told += f" Mean average precision: {precision:.4f}." if len(found) > 1 else f" Average precision: {precision:.4f}."
    return Section("ROC and precision-recall", text=[told], pictures=[roc, pr])


def held(answers: Answers) -> np.ndarray:
    """Which sample has which class or label (samples, classes)."""
    return answers.truth if answers.kind == "labels" else np.eye(len(answers.classes), dtype=int)[answers.truth]


def ranked(answers: Answers) -> dict[str, Ranked]:
    """Class → its curves, of those that some samples have and others have not; of two classes the second alone."""
    truth = held(answers)
    names = list(enumerate(answers.classes))
    if answers.kind == "class" and len(names) == 2:
        names = names[1:]
    return {
        name: _ranked(truth[:, number], answers.probabilities[:, number])
        for number, name in names
        if 0 < truth[:, number].sum() < len(truth)
    }


def together(answers: Answers) -> Ranked:
    """All classes of all samples as one question (the micro-average)."""
    return _ranked(held(answers).ravel(), answers.probabilities.ravel())


def _ranked(truth: np.ndarray, scores: np.ndarray) -> Ranked:
    false, true, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
    return Ranked(
        float(auc(false, true)),
        float(average_precision_score(truth, scores)),
        _thinned(np.stack([false, true])),
        _thinned(np.stack([recall, precision])),
    )


def _thinned(curve: np.ndarray) -> np.ndarray:
    return curve[:, np.unique(np.linspace(0, curve.shape[1] - 1, POINTS).round().astype(int))]


def draw(curves: Mapping[str, Ranked], kind: str) -> Figure:
    figure, axes = panels(4.4, 5.4)
    for number, (name, each) in enumerate(curves.items()):
        score = each.auroc if kind == "roc" else each.average_precision
        x, y = each.roc if kind == "roc" else each.pr
        axes.plot(x, y, color=CYCLE[number % len(CYCLE)], linewidth=1.6, label=f"{shortened(name, 22)}  {score:.3f}")
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
    else:
        axes.set(xlabel="recall", ylabel="precision")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    title = "AUROC" if kind == "roc" else "average precision"
    how = {"labelcolor": INK, "fontsize": 9, "frameon": False}
    legend = figure.legend(loc="outside lower center", ncols=1 if max(map(len, curves)) > 14 else 2, title=title, **how)
    legend.get_title().set(color=INK, fontsize=9)
    return figure
