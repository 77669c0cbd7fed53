"""The layers of a network that an attribution looks at, and what a pass through all of them costs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from thaw.model.network import Network

COARSEST = 5  # cells a side of a map that still tells where


def last_map(network: Network, images: Tensor) -> nn.Module | None:
    """What gives the last map of the image that still tells where, if it is in the later half of the network."""
    groups = list(network.groups)
    depth = {id(p): index for index, ps in enumerate(network.groups.values()) for p in ps.values()}
    calls: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            calls.append((module, output.shape[1:]))

    handles = [module.register_forward_hook(note) for module in network.body.modules()]
    try:
        with torch.no_grad():
            network.forward(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    fine = [
        (at, shape)
        for at, (module, shape) in enumerate(calls)
        if isinstance(module, nn.Conv2d) and min(shape[1:]) >= COARSEST
        if depth[id(module.weight)] >= (len(groups) - 1) / 2  # later than the patches of a transformer
    ]
    if not fine:
        return None
    at, shape = fine[-1]
    return [module for module, found in calls[at:] if found == shape][-1]


def embedding(network: Network, inputs: Mapping[str, Tensor]) -> nn.Module:
    """The module that turns the tokens into vectors: the first of its kind that runs."""
    called: list[nn.Module] = []
    modules = [module for module in network.body.modules() if isinstance(module, nn.Embedding)]

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and torch.equal(given[0], inputs["input_ids"][:1]):
            called.append(module)

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        with torch.no_grad():
            network.forward({name: values[:1] for name, values in inputs.items()})
    finally:
        for handle in handles:
            handle.remove()
    return called[0]


def operations(network: Network, inputs: Tensor | Mapping[str, Tensor]) -> float:
    """Floating-point operations of one forward pass, for each thread that shares in them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network.forward(inputs)
    return max(counted.get_total_flops() / torch.get_num_threads(), 1.0)
