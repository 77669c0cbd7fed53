"""Rules for what a user leaves open, each printed with the value it gave."""

import math

import torch

EPOCHS, STEPS, MOST_EPOCHS = 20, 1_000, 100


def default_epochs(samples: int, batch_size: int) -> int:
    """20 epochs, or as many as make 1,000 steps where the data is small, up to 100.

    Few labels need more passes: with too few steps the new head has not even arrived when the rate is gone
    (arXiv:2006.05987).
    """
    steps = math.ceil(samples / batch_size)
    return min(MOST_EPOCHS, max(EPOCHS, math.ceil(STEPS / steps)))


def default_precision(accelerator: str) -> str:
    """`bf16-mixed` on a GPU that computes in it, else `32-true`."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
