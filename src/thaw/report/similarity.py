"""How far fine-tuning has turned what each layer group tells of the samples: linear CKA (arXiv:1905.00414)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor, nn

from thaw.errors import first_line
from thaw.model.network import Network
from thaw.model.partition import modules_within
from thaw.report.attribution import undisturbed
from thaw.report.evidence import Evidence
from thaw.report.explanation import read
from thaw.report.ink import BLUE, INK, WIDTH, panels
from thaw.report.section import Picture, Section

MOST, AT_ONCE, FEWEST = 512, 32, 8  # samples
NUMBERED = 14  # groups up to which every cell has its number
TITLE = "Representations before and after"


def similarity(evidence: Evidence) -> Section | None:
    """CKA of every layer group as the run began with every one as it ended; of `report.depth=full` alone."""
    if evidence.depth != "full":
        return None
    size = len(evidence.data.splits[evidence.split])
    if size < FEWEST:
        return Section(TITLE, text=[f"Left out: {size} samples are too few to compare representations by."])
    try:
        start = evidence.start
    except Exception as error:  # weights that are no longer where they were, and whatever else building can meet
        return Section(TITLE, text=[f"Left out: the network of the start cannot be built again ({first_line(error)})."])
    indices = np.unique(np.linspace(0, size - 1, min(size, MOST)).round().astype(int)).tolist()
    before, after = (_represented(network, evidence, indices) for network in (start, evidence.module.network))
    groups = [group for group in before if group in after]
    found = np.array([[cka(before[one], after[other]) for other in groups] for one in groups])
    own = found.diagonal()
    least = int(np.nanargmin(own))
    began = "pretrained" if start.pretrained else "random"
    ends = f"{groups[0]} has {own[0]:.3f}, {groups[-1]} {own[-1]:.3f}"
    told = f"Least like itself is {groups[least]}, {own[least]:.3f}; {ends}."
    caption = (
        f"Linear CKA (arXiv:1905.00414; the unbiased estimate of arXiv:2010.15327) of {len(indices)} samples of "
        f"{evidence.split}, each group's output as its mean over space or time. Rows: as the run began, with {began} "
        "weights; columns: as it ended. 1 is the same but for rotation and scale, 0 unlike; near 1 on the diagonal, "
        "fine-tuning kept what the group told."
    )
    picture = Picture(draw(found, groups), f"Similarity of layer groups before and after. {told}", caption)
    return Section(TITLE, text=[told], pictures=[picture])


def _represented(network: Network, evidence: Evidence, indices: Sequence[int]) -> dict[str, Tensor]:
    """Layer group → what it tells of each of these samples (samples, width)."""
    parts: dict[str, list[Tensor]] = {}
    with undisturbed(network) as quiet, torch.no_grad():
        for start in range(0, len(indices), AT_ONCE):
            inputs = read(quiet, evidence.data, evidence.split, indices[start : start + AT_ONCE])
            for group, values in group_outputs(quiet, inputs).items():
                parts.setdefault(group, []).append(values)
    return {group: torch.cat(values) for group, values in parts.items()}


def group_outputs(network: Network, inputs: Any) -> dict[str, Tensor]:
    """The last output of each of the body's layer groups, as one vector a sample (batch, width)."""
    last: dict[str, Tensor] = {}

    def keep(group: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else next((v for v in output if isinstance(v, Tensor)), None)
            if value is not None and value.ndim > 1:
                last[group] = value

        return hook

    handles = [
        module.register_forward_hook(keep(group))
        for group, parameters in network.groups.items()
        if group != "head"
        for module in modules_within(network.body, [id(p) for p in parameters.values()])
    ]
    try:
        network.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return {group: _pooled(last[group], mask).float().cpu() for group in network.groups if group in last}


def _pooled(values: Tensor, mask: Tensor | None) -> Tensor:
    if values.ndim == 4:  # maps are square, with their channels first or last
        return values.mean(dim=(2, 3) if values.shape[2] == values.shape[3] else (1, 2))
    if values.ndim == 3 and mask is not None and mask.shape[1] == values.shape[1]:
        return (values * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return values.mean(dim=1) if values.ndim == 3 else values.flatten(1)


def cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA of two representations (samples, width) of the same samples, at least four of them."""
    first, second = (_gram(values.double()) for values in (one, other))
    scale = (_hsic(first, first) * _hsic(second, second)).sqrt()
    return float(_hsic(first, second) / scale)


def _gram(values: Tensor) -> Tensor:
    values = values - values.mean(dim=0)
    return (values @ values.T).fill_diagonal_(0)


def _hsic(one: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimate, of Gram matrices whose diagonals are zero (Song et al., 2012, eq. 5)."""
    n = len(one)
    traced = (one * other).sum()
    product = one.sum() * other.sum() / ((n - 1) * (n - 2))
    return (traced + product - 2 / (n - 2) * (one.sum(dim=0) @ other.sum(dim=1))) / (n * (n - 3))


def draw(found: np.ndarray, groups: Sequence[str]) -> Figure:
    side = min(max(3.2, 0.5 * len(groups)), WIDTH)
    figure, axes = panels(side, side)
    shares = np.clip(np.nan_to_num(found), 0, 1)
    colors = np.broadcast_to(to_rgb(BLUE), (*found.shape, 3))
    axes.imshow(np.concatenate([colors, 0.9 * shares[..., None] ** 2], axis=2))
    if len(groups) <= NUMBERED:
        for row, column in np.ndindex(found.shape):
            color = "white" if shares[row, column] > 0.75 else INK
            told = f"{found[row, column]:.2f}".removeprefix("0")
            axes.text(column, row, told, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(groups)), groups, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(groups)), groups)
    axes.set(xlabel="as it ended", ylabel="as it began")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
