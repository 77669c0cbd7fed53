"""Rules for what a user leaves open, each printed with the value it gave."""

import math
from collections.abc import Mapping
from typing import Any

import torch

EPOCHS, STEPS, MOST_EPOCHS = 20, 300, 100
BATCH_SIZE, SMALLEST_BATCH, STEPS_AN_EPOCH = 32, 8, 15


def default_batch_size(samples: int) -> int:
    """32, or less where an epoch would have fewer than 15 steps, down to 8."""
    return min(BATCH_SIZE, max(SMALLEST_BATCH, samples // STEPS_AN_EPOCH))


def default_epochs(steps: int) -> int:
    """20 epochs, or as many as make 300 steps where there are few steps in one, up to 100.

    With fewer steps the new head has not even arrived when the rate is gone (arXiv:2006.05987).
    """
    return min(MOST_EPOCHS, max(EPOCHS, math.ceil(STEPS / steps)))


def default_precision(accelerator: str) -> str:
    """`bf16-mixed` on a GPU that computes in it, else `32-true`."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def settled(trainer: Mapping[str, Any], steps: int) -> tuple[str, int]:
    """(precision, epochs) of a run with these trainer settings and so many optimizer steps an epoch."""
    precision = trainer.get("precision") or default_precision(trainer.get("accelerator") or "auto")
    return precision, trainer.get("max_epochs") or default_epochs(steps)
