"""Regularization: penalties on the weights that train, added to the loss or applied after each optimizer step."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from thaw.errors import UserError
from thaw.model.network import Network

Strength = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Regularization:
    """None; what there is, a subclass adds. Only parameters that require a gradient now count, at every step."""

    def start(self, network: Network) -> None:
        """Take note of the network as it was built, before a checkpoint is loaded or anything is trained."""

    def penalty(self, network: Network) -> Tensor | float:
        """What is added to the loss of a training batch, a scalar; the same on every process."""
        return 0.0

    def after_step(self, network: Network, optimizer: Optimizer) -> None:
        """Change the weights that the optimizer has just moved."""

    def measure(self, network: Network) -> dict[str, Tensor | float]:
        """Metrics of the weights an epoch ends with, by full name."""
        return {}


class L2(Regularization):
    """strength/2 · ‖w‖² of the matrices and filters that train, in the gradient, not beside it as AdamW's decay is."""

    def __init__(self, strength: Strength = 1e-3) -> None:
        self.strength = strength

    def penalty(self, network: Network) -> Tensor | float:
        return self.strength / 2 * squared_norm(matrices(network))

    @torch.no_grad()
    def measure(self, network: Network) -> dict[str, Tensor | float]:
        return {"train/penalty": self.penalty(network)}


class L2SP(L2):
    """alpha/2 · ‖w − w⁰‖² towards the pretrained values + beta/2 · ‖w‖² where there are none (arXiv:1802.01483).

    Args:
        alpha: for all parameters with a pretrained value: vectors too, since nothing pulls them to zero.
        beta: for the matrices of a new head.
    """

    def __init__(self, alpha: Strength = 0.01, beta: NonNegative = 0.01) -> None:
        self.alpha, self.beta = alpha, beta
        self._pretrained: dict[int, Tensor] = {}  # by identity: names change where adapters wrap a layer

    def start(self, network: Network) -> None:
        """
        Raises:
            UserError: the network starts from random weights.
        """
        if not network.pretrained:
            raise UserError(
                "regularization=l2_sp must have pretrained weights to stay close to; this network starts from random "
                "ones. Write regularization=l2."
            )
        named = network.named_parameters()
        kept = {id(p): p for name, p in named if not (network.new_head and name.startswith("head."))}
        self._pretrained = {key: parameter.detach().clone() for key, parameter in kept.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> "L2SP":
        return self  # a copy of the module, as weight averaging makes one, must not cost these weights again

    def penalty(self, network: Network) -> Tensor | float:
        held = [p for p in network.parameters() if p.requires_grad and id(p) in self._pretrained]
        new = [p for p in matrices(network) if id(p) not in self._pretrained]
        for parameter in held:  # costs nothing once they are where the network is
            self._pretrained[id(parameter)] = self._pretrained[id(parameter)].to(parameter)
        moved = torch._foreach_sub(held, [self._pretrained[id(p)] for p in held]) if held else []
        return self.alpha / 2 * squared_norm(moved) + self.beta / 2 * squared_norm(new)


class L1(Regularization):
    """strength · ‖w‖₁ of the matrices and filters that train, as a proximal step (arXiv:0912.3522).

    After each optimizer step every weight moves towards zero by its own rate × strength, and not beyond: weights become
    exactly zero, however the optimizer scales its gradients. Adam moves a weight by its rate at most, so a strength
    of 1 outweighs every gradient.
    """

    def __init__(self, strength: Strength = 0.3) -> None:
        self.strength = strength

    @torch.no_grad()
    def after_step(self, network: Network, optimizer: Optimizer) -> None:
        regularized = {id(parameter) for parameter in matrices(network)}
        for group in optimizer.param_groups:
            if chosen := [parameter for parameter in group["params"] if id(parameter) in regularized]:
                threshold = float(group["lr"]) * self.strength
                clipped = torch._foreach_clamp_min(chosen, -threshold)
                torch._foreach_clamp_max_(clipped, threshold)
                torch._foreach_sub_(chosen, clipped)  # w − w is zero, exactly

    @torch.no_grad()
    def measure(self, network: Network) -> dict[str, Tensor | float]:
        regularized = matrices(network)
        if not regularized:
            return {"train/penalty": 0.0, "train/sparsity": 0.0}
        total = torch.stack(torch._foreach_norm(regularized, 1)).sum()
        zeros = sum((parameter == 0).sum() for parameter in regularized)
        sparsity = zeros / sum(parameter.numel() for parameter in regularized)
        return {"train/penalty": self.strength * total, "train/sparsity": sparsity}


def matrices(network: Network) -> list[nn.Parameter]:
    """Parameters that require a gradient and may be drawn to zero: no biases, no norms, none of `no_decay`."""
    named = network.named_parameters()
    return [p for name, p in named if p.requires_grad and p.ndim > 1 and name not in network.no_decay]


def squared_norm(tensors: Sequence[Tensor]) -> Tensor | float:
    """Sum of the squares of all entries, a scalar; differentiable, also at zero."""
    return _SquaredNorm.apply(*tensors) if tensors else 0.0


class _SquaredNorm(torch.autograd.Function):
    # One pass over the weights back: what autograd makes of the same expression takes two to four times as long.
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.stack(torch._foreach_norm(tensors)).square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return torch._foreach_mul(ctx.saved_tensors, 2 * gradient)
