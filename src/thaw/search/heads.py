"""Many heads on the same features, trained in one pass: each ends as it would alone."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from thaw.model.network import Network

# Optimizers whose step is the rate times a direction, element by element; and whether their decay goes beside it, or
# into the gradient.
DECOUPLED = {"adamw": True, "adam": False, "sgd": False, "rmsprop": False}


class Heads(nn.Module):
    """The linear layers of heads that begin alike.

    Args:
        linear: what each begins with.
        dropout: share of the features that each drops, in ascending order.
    """

    def __init__(self, linear: nn.Linear, dropout: Sequence[float]) -> None:
        super().__init__()
        self.rates = [(rate, len(list(same))) for rate, same in groupby(dropout)]
        self.weight = nn.Parameter(linear.weight.detach().repeat(len(dropout), 1, 1))  # (heads, outputs, width)
        self.bias = nn.Parameter(linear.bias.detach().repeat(len(dropout), 1))  # (heads, outputs)

    def forward(self, features: Tensor, seed: int) -> Tensor:
        """Outputs (heads, batch, outputs) of features (batch, width), dropped as by each head alone after this seed."""
        counts = [count for _, count in self.rates]
        outputs = []
        parts = zip(self.rates, self.weight.split(counts), self.bias.split(counts), strict=True)
        for (rate, count), weight, bias in parts:
            torch.manual_seed(seed)
            dropped = F.dropout(features, rate)
            outputs.append(F.linear(dropped, weight.flatten(0, 1), bias.flatten()).unflatten(1, (count, -1)))
        return torch.cat(outputs, dim=1).transpose(0, 1)


class EachAtItsRate:
    """Lets each head go where one optimizer says, at a rate and with a decay of its own.

    The optimizer holds no weights: of rate 1 and without decay, it moves a zero to the direction of every weight.

    Args:
        create: makes the optimizer, as for a single network.
        lr, weight_decay: of each head (heads,); biases do not decay.
        decoupled: see `DECOUPLED`.
        clip: largest norm of the gradient of a head, or with `value` of each of its elements; None is no limit.
    """

    def __init__(
        self,
        heads: Heads,
        create: Callable[..., Optimizer],
        lr: Tensor,
        weight_decay: Tensor,
        decoupled: bool,
        clip: float | None = None,
        algorithm: Literal["norm", "value"] = "norm",
    ) -> None:
        self.heads, self.lr, self.weight_decay, self.decoupled = heads, lr, weight_decay, decoupled
        self.clip, self.algorithm = clip, algorithm
        self.directions = nn.ParameterDict({name: torch.zeros_like(p) for name, p in heads.named_parameters()})
        stand_in = Network(nn.Identity(), self.directions, {})
        self.optimizer = create(stand_in, lr=1.0, weight_decay=0.0, head_lr_scale=1.0)

    @torch.no_grad()
    def step(self, factors: Tensor) -> Tensor:
        """Go one step by the gradients that the heads hold.

        Args:
            factors: of each head's rate (heads,).

        Returns:
            the norm of each head's gradient (heads,).
        """
        rates, decay = (self.lr * factors)[:, None, None], self.weight_decay[:, None, None]
        weight, bias = self.heads.weight, self.heads.bias
        norms = torch.stack([weight.grad.flatten(1).norm(dim=1), bias.grad.norm(dim=1)]).norm(dim=0)
        if self.clip is not None and self.algorithm == "value":
            weight.grad.clamp_(-self.clip, self.clip), bias.grad.clamp_(-self.clip, self.clip)
        elif self.clip is not None:
            kept = (self.clip / (norms + 1e-6)).clamp(max=1.0)  # as torch clips
            weight.grad.mul_(kept[:, None, None]), bias.grad.mul_(kept[:, None])
        if self.decoupled:
            weight.mul_(1 - rates * decay)
        else:
            weight.grad.add_(decay * weight)
        for name, parameter in self.heads.named_parameters():
            self.directions[name].grad = parameter.grad
            parameter.grad = None
        self.optimizer.step()
        weight.add_(rates * self.directions["weight"])
        bias.add_(rates[:, :, 0] * self.directions["bias"])
        for direction in self.directions.values():
            direction.zero_()
        return norms
