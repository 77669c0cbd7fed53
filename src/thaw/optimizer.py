"""Optimizers over one named parameter group for each layer group and kind of decay."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from thaw.errors import UserError, did_you_mean
from thaw.model.network import Network

# Those of torch that can update all weights in one pass on every device, as timm's factory makes them: timm itself is
# imported for the others alone.
FUSED: Mapping[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
}
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(gt=0, le=1)]


def _known_optimizer(name: str) -> str:
    if name in FUSED:
        return name
    from timm import optim

    known = optim.list_optimizers()
    if name in known and optim.get_optimizer_info(name).second_order:
        raise ValueError("must need first derivatives only", "Write e.g. optimizer.name=adamw.")
    if name not in known:
        raise ValueError("must be an optimizer of timm", did_you_mean(name, known))
    return name


def param_groups(
    network: Network, lr: float, weight_decay: float, layer_decay: float = 1.0, head_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Every parameter of the network in exactly one group, named `block03/decay` or `block03/no_decay`.

    The rate of a group at depth d below the head is `lr × layer_decay^d` (arXiv:2106.08254); the head's, at depth 0,
    is `lr × head_lr_scale` if it is new. A strategy that trains a small part of the body may scale the body's rates.
    Vectors (biases, norms) and the body's own `no_decay` names get no weight decay.
    """
    result = []
    layers = list(network.groups.items())
    for index, (layer, parameters) in enumerate(layers):
        new = layer == "head" and network.new_head
        scale = head_lr_scale if new else network.lr_scale * layer_decay ** (len(layers) - 1 - index)
        kinds: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
        for name, parameter in parameters.items():
            kinds["no_decay" if parameter.ndim <= 1 or name in network.no_decay else "decay"].append(parameter)
        for kind, members in kinds.items():
            if members:
                decay = weight_decay if kind == "decay" else 0.0
                result.append({"name": f"{layer}/{kind}", "params": members, "lr": lr * scale, "weight_decay": decay})
    return result


def create_optimizer(
    network: Network,
    name: Annotated[str, AfterValidator(_known_optimizer)] = "adamw",
    lr: Rate | None = None,
    weight_decay: Annotated[float, Field(ge=0)] = 0.05,
    layer_decay: Decay = 1.0,
    head_lr_scale: Rate = 10.0,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Any optimizer of timm's factory (torch's own among them) over `param_groups`.

    Args:
        lr: rate of the body's last block, to which every other is relative; None takes the model's own.
        weight_decay: for matrices and filters alone.
        layer_decay: factor from each layer group to the one before it; 1 means the same rate everywhere.
        head_lr_scale: the new head starts from nothing and can take a larger rate than the pretrained body.
        options: further keyword arguments of the optimizer, e.g. `{betas: [0.9, 0.98]}`.

    Raises:
        UserError: the optimizer has no such option.
    """
    lr = lr or network.lr
    groups = param_groups(network, lr, weight_decay, layer_decay, head_lr_scale)
    try:
        optimizer = _created(name, groups, {"lr": lr, "weight_decay": weight_decay}, dict(options or {}))
        # Else Lightning would refuse to clip: gradients must be unscaled before that, and so not in the step itself.
        optimizer._step_supports_amp_scaling = False
        if not torch.accelerator.is_available():
            # Adam asks in each step whether a GPU records it, and looks for the GPU's driver on the disk to find out.
            optimizer._accelerator_graph_capture_health_check = lambda: None
        return optimizer
    except (AssertionError, ImportError) as error:
        raise UserError(f"optimizer.name must be able to run on this machine; got '{name}' ({error}).") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.options must fit '{name}': {error}. Leave it out.") from None


def _created(name: str, groups: list[dict[str, Any]], rates: Mapping[str, float], options: dict[str, Any]) -> Optimizer:
    if name in FUSED:
        target, given = FUSED[name]
        _assert_options(target, options)
        # One pass over the weights rather than a dozen: ten times as fast on a CPU.
        fused = {} if {"fused", "foreach"} & options.keys() else {"fused": True}
        return target(groups, **rates, **(given | fused | options))
    from timm import optim

    _assert_options(optim.get_optimizer_class(name, bind_defaults=False), options)
    return optim.create_optimizer_v2(groups, opt=name, **rates, **options)


def _assert_options(target: type[Optimizer], options: Mapping[str, Any]) -> None:
    known = inspect.signature(target).parameters
    if unknown := [option for option in options if option not in known]:
        raise TypeError(f"it has no option {unknown[0]!r}")


def lay_out_like_weights(optimizer: Optimizer) -> None:
    """Give the state of each weight its order in memory, which a checkpoint of another device may have otherwise.

    A fused step takes them for the same.
    """
    for weight, state in optimizer.state.items():
        for name, held in state.items():
            if isinstance(held, Tensor) and held.shape == weight.shape and held.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=held.dtype, requires_grad=False).copy_(held)
