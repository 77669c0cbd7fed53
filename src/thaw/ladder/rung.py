"""What a rung of the ladder ends with."""

from dataclasses import dataclass
from typing import Literal

import torch

from thaw.model.network import Steps
from thaw.task.task import Outputs


@dataclass(frozen=True)
class Outcome:
    """Whether a rung holds, and why.

    Args:
        reason: with the figures that it was decided by.
        advice: what to do where it fails.
    """

    status: Literal["pass", "FAIL", "skip"]
    reason: str
    advice: str = ""


def passes(reason: str) -> Outcome:
    return Outcome("pass", reason)


def fails(reason: str, advice: str) -> Outcome:
    return Outcome("FAIL", reason, advice)


def skips(reason: str) -> Outcome:
    return Outcome("skip", reason)


def silent(outputs: Outputs) -> Outputs:
    """Outputs that say nothing, in the shape of these: all classes alike, and of numbers the mean."""
    if isinstance(outputs, tuple):
        return Steps(torch.zeros_like(outputs[0]), outputs[1])
    return torch.zeros_like(outputs)
