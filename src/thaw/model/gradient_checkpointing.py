"""Activations computed anew in the backward pass instead of kept: less memory for more time (arXiv:1604.06174)."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from thaw.errors import UserError


def checkpoint_activations(model: nn.Module, name: str) -> None:
    """Switch it on in a model of timm or transformers, block by block; batch norm still counts each batch once.

    Raises:
        UserError: the model has no way to do so.
    """
    try:
        if hasattr(model, "set_grad_checkpointing"):
            model.set_grad_checkpointing(True)
        else:
            enable = getattr(model, "activation_checkpointing_enable", None)  # its name in newer releases
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except (AttributeError, AssertionError, NotImplementedError, ValueError):
        raise UserError(
            f"model.gradient_checkpointing must be false for '{name}', whose library cannot compute its activations "
            "anew. Write a smaller data.batch_size with trainer.accumulate_grad_batches."
        ) from None
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_look_away)
            module.register_forward_hook(_look_again, always_call=True)


def _look_away(module: nn.Module, inputs: Any) -> None:
    # Within a backward pass the same batch comes a second time.
    if module.training and torch._C._current_graph_task_id() != -1:
        module.counted_at, module.momentum = (module.momentum,), 0.0


def _look_again(module: nn.Module, inputs: Any, outputs: Any) -> None:
    if counted_at := getattr(module, "counted_at", None):
        (module.momentum,), module.counted_at = counted_at, None
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.sub_(1)
