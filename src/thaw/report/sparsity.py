"""Which weights an L1 penalty has drawn to exactly zero."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from thaw.model.network import Network
from thaw.report.evidence import Evidence
from thaw.report.ink import INK, ORANGE, WIDTH, panels
from thaw.report.section import Picture, Section, Table

ROWS = 15  # of the table
NUMBERED = 10  # matrices of a group up to which every cell has its number


class Zeros(NamedTuple):
    """How many weights of one matrix or filter bank are exactly zero."""

    group: str
    name: str
    zeros: int
    weights: int

    @property
    def share(self) -> float:
        return self.zeros / self.weights


def sparsity(evidence: Evidence) -> Section | None:
    """A map of the share of zeros in every matrix, of runs with `regularization=l1`."""
    if not str(evidence.settings["regularization"].get("_target_")).endswith(".L1"):
        return None
    found = zeros(evidence.module.network)
    total, weights = sum(each.zeros for each in found), sum(each.weights for each in found)
    told = f"{total:,} of {weights:,} weights ({total / weights:.1%}) are exactly zero."
    if not total:
        return Section("Sparsity", text=[f"{told} A larger regularization.strength brings more to zero."])
    ordered = sorted(found, key=lambda each: -each.share)
    rows = [(each.name, each.group, f"{each.weights:,}", f"{each.share:.1%}") for each in ordered[:ROWS]]
    most = f" The sparsest is {ordered[0].name} of {ordered[0].group}, {ordered[0].share:.1%}."
    caption = (
        "Each row is a layer group, each cell one of its matrices or filter banks in forward order, with its share of "
        "zeros in per cent. Biases and norms are left alone by the penalty, and what never trained keeps its weights."
    )
    tables = [Table(("matrix", "layer group", "weights", "zero"), rows, "The sparsest." if len(found) > ROWS else "")]
    return Section("Sparsity", text=[told], tables=tables, pictures=[Picture(draw(found), told + most, caption)])


def zeros(network: Network) -> list[Zeros]:
    """Of everything that the penalty may draw to zero."""
    return [
        Zeros(group, name.removeprefix("body."), int((parameter == 0).sum()), parameter.numel())
        for group, parameters in network.groups.items()
        for name, parameter in parameters.items()
        if parameter.ndim > 1 and name not in network.no_decay
    ]


def draw(found: Sequence[Zeros]) -> Figure:
    groups = list(dict.fromkeys(each.group for each in found))
    rows = [[each.share for each in found if each.group == group] for group in groups]
    width = max(map(len, rows))
    shares = np.array([row + [np.nan] * (width - len(row)) for row in rows])
    figure, axes = panels(WIDTH, max(1.4, 0.34 * len(groups) + 0.5))
    alpha = np.where(np.isnan(shares), 0, 0.06 + 0.85 * np.nan_to_num(shares))
    tints = np.concatenate([np.broadcast_to(to_rgb(ORANGE), (*shares.shape, 3)), alpha[..., None]], axis=2)
    axes.imshow(tints, aspect="auto", interpolation="nearest")
    if width <= NUMBERED:
        for row, column in np.argwhere(~np.isnan(shares)):
            share = shares[row, column]
            color = "white" if share > 0.7 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_xticks([])
    axes.set_xlabel("matrices of the group, in forward order")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
