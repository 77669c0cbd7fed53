"""In which mode a module is, train or eval, and what that does."""

from torch import nn


def active_dropout(module: nn.Module) -> float:
    """The rate of a dropout or stochastic depth that draws now; 0 of any other module."""
    # timm's DropPath has its own name for the rate.
    rate = getattr(module, "p", None) if isinstance(module, nn.modules.dropout._DropoutNd) else None
    return float(rate or getattr(module, "drop_prob", None) or 0.0) if module.training else 0.0


def set_mode(module: nn.Module, mode: bool, trained: set[int]) -> None:
    """Train mode for what holds a trained parameter, told by its id, and eval mode for what holds frozen ones alone."""
    holds: dict[nn.Module, bool | None] = {}  # whether a module holds what trains; None where it holds no parameter

    def look(module: nn.Module) -> bool | None:
        own = [id(parameter) in trained for parameter in module.parameters(recurse=False)]
        found = [held for held in (*own, *map(look, module.children())) if held is not None]
        holds[module] = any(found) if found else None
        return holds[module]

    def put(module: nn.Module, mode: bool) -> None:
        # A module without parameters (dropout, activation) follows the module that holds it.
        module.training = mode and holds[module] is not False
        for child in module.children():
            put(child, module.training)

    look(module)
    put(module, mode)
