"""Strategies that train one kind of parameter in every layer group, and the new head as a whole."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from thaw.errors import UserError
from thaw.freezing.freezing import Freezing
from thaw.model.network import Network


class PartOnly(Freezing):
    """A small part of each layer group of the body trains.

    Args:
        lr_scale: factor of the body's rates; few parameters want a larger rate than all of them.
    """

    def __init__(self, lr_scale: Annotated[float, Field(gt=0)] = 10.0, **freezing: Any) -> None:
        super().__init__(**freezing)
        self.lr_scale = lr_scale
        self._with_part: set[str] = set()

    def fix_all_but(self, network: Network, kept: set[str], kind: str) -> None:
        """Let only these of the body's parameters train.

        Raises:
            UserError: there are none.
        """
        if not kept:
            raise UserError(f"freezing must find {kind} in the network; there are none. Write e.g. freezing=gradual.")
        network.fix(set(body_parameters(network)) - kept)
        network.lr_scale = self.lr_scale
        self._with_part = {group for group, ps in network.groups.items() if group == "head" or kept & ps.keys()}

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return [group for group in groups if group in self._with_part]


class BiasOnly(PartOnly):
    """The biases of the body and the head train (BitFit, arXiv:2106.10199)."""

    def prepare(self, network: Network) -> None:
        self.fix_all_but(network, {name for name in body_parameters(network) if name.endswith("bias")}, "biases")


class NormOnly(PartOnly):
    """The scales and shifts of the body's normalisation layers and the head train (arXiv:2003.00152)."""

    def prepare(self, network: Network) -> None:
        norms = {
            f"{path}.{name}"
            for path, module in network.named_modules()
            if _normalises(module)
            for name, _ in module.named_parameters(recurse=False)
        }
        self.fix_all_but(network, norms & set(body_parameters(network)), "normalisation layers")


def _normalises(module: nn.Module) -> bool:
    # Libraries have norms of their own (LlamaRMSNorm, LayerNorm2d, …), which share only the word and the shape.
    own = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(own) and all(p.ndim <= 1 for p in own)


def body_parameters(network: Network) -> list[str]:
    """Names of all parameters that are not of a new head."""
    return [name for group, ps in network.groups.items() if group != "head" for name in ps]
