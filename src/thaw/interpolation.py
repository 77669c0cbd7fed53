"""Between pretrained and fine-tuned weights: WiSE-FT (arXiv:2109.01903)."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from thaw.errors import UserError
from thaw.run.checkpoint import AtomicCheckpointIO
from thaw.run.restore import Restored


@dataclass(frozen=True)
class Curve:
    """The validation metric along the way from the pretrained (alpha 0) to the fine-tuned body (alpha 1).

    Args:
        chosen: the alpha of the best value; of equal ones the largest, which is nearest to the run itself.
        test: metrics on the test split at the chosen alpha and at 1; none where there is no such split.
    """

    metric: str
    values: dict[float, float]
    chosen: float
    test: dict[float, dict[str, float]]


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """start + alpha · (end − start) of all weights and running statistics, exact where both are equal and at 0 and 1.

    Counters, and what only `end` has, are those of `end`.
    """
    return {
        name: torch.lerp(start[name], value, alpha) if name in start and value.is_floating_point() else value
        for name, value in end.items()
    }


def wise_ft(run: Restored, steps: int = 11) -> Curve:
    """Choose on validation how far to go from the pretrained to the tuned body, and keep it as `interpolated.ckpt`.

    A new head has no pretrained value: it is the tuned one throughout.

    Args:
        run: just restored, its network still as it began.
        steps: values of alpha, evenly from 0 to 1.

    Raises:
        UserError: fewer than two steps, or a network that began from random weights.
    """
    if steps < 2:
        raise UserError(f"--steps must be at least 2, for both ends; got {steps}.")
    if not run.network.pretrained:
        raise UserError(f"The run must have pretrained weights to go back to; '{run.folder}' began from random ones.")
    best = run.checkpoint("best")
    new = "network.head." if run.network.new_head else None
    state = copy.deepcopy(run.module.state_dict())  # measuring puts others in its place
    start = {name: value for name, value in state.items() if not (new and name.startswith(new))}

    def mixed(alpha: float) -> dict[str, Tensor]:
        return interpolate(start, best["state_dict"], alpha)

    alphas = [step / (steps - 1) for step in range(steps)]
    values = {alpha: run.measure(mixed(alpha), "val")[run.metric] for alpha in alphas}
    sign = 1 if run.mode == "max" else -1
    chosen = max(alphas, key=lambda alpha: (-math.inf if math.isnan(values[alpha]) else sign * values[alpha], alpha))
    ends = dict.fromkeys((chosen, 1.0)) if "test" in run.data.splits else {}
    test = {alpha: run.measure(mixed(alpha), "test") for alpha in ends}

    kept = {name: best[name] for name in ("pytorch-lightning_version", "hyper_parameters", "epoch", "global_step")}
    kept |= {"state_dict": mixed(chosen), "alpha": chosen, "metrics": {run.metric: values[chosen]}}
    AtomicCheckpointIO().save_checkpoint(kept, run.folder / "checkpoints" / "interpolated.ckpt")
    return Curve(run.metric, values, chosen, test)


def draw(curve: Curve, path: Path) -> None:
    """Draw the curve into a PNG."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(curve.values), list(curve.values.values()), marker="o")
    axes.axvline(curve.chosen, linestyle="--", color="grey", label=f"chosen: {curve.chosen:g}")
    axes.set(xlabel="alpha (0: pretrained body, 1: fine-tuned)", ylabel=curve.metric)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)
