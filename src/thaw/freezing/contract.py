"""The freeze contract, checked while it runs: frozen means no gradient and eval mode, in exactly one group."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from thaw.errors import FreezeContractError
from thaw.model.modes import active_dropout
from thaw.model.network import BatchNormPolicy, Network
from thaw.model.partition import modules_within


@dataclass(frozen=True)
class GroupState:
    """What one layer group does from now on: a row of the plan table.

    Args:
        trainable: parameters that train; fewer than `parameters` where only biases, norms or adapters do.
        lr: rate of the group at full warm-up, before the schedule's factor.
        weight_decay: of its matrices and filters.
        mode: `train`, `eval`, or `mixed` where a part is frozen.
        dropout: highest rate of a dropout that is active now.
    """

    group: str
    parameters: int
    trainable: int
    lr: float
    weight_decay: float
    mode: str
    dropout: float

    @property
    def trains(self) -> bool:
        return self.trainable > 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def assert_contract(
    network: Network,
    optimizer: Optimizer,
    trains: Collection[str],
    batch_norm: BatchNormPolicy = "frozen",
    lr: float | None = None,
) -> list[GroupState]:
    """Check all that freezing promises, in train mode, and return one row for each layer group.

    Args:
        trains: layer groups that train.
        lr: rate that holds in place of the optimizer's own.

    Raises:
        FreezeContractError: a parameter outside the optimizer or in it twice, under another group's name, with a
            gradient or an optimizer's state where frozen, without a gradient where not, or a module in the wrong mode.
    """
    owner = _torch_groups(network, optimizer)
    norms = {id(p) for m in network.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    trained: dict[int, bool] = {}
    for group, parameters in network.groups.items():
        for name, parameter in parameters.items():
            torch_group = owner.pop(id(parameter), None)
            if torch_group is None:
                raise FreezeContractError(f"Parameter '{name}' is not in the optimizer.")
            if torch_group["name"].partition("/")[0] != group:
                raise FreezeContractError(f"Parameter '{name}' of '{group}' has the rate of '{torch_group['name']}'.")
            trained[id(parameter)] = group in trains and name not in network.fixed
            expected = trained[id(parameter)] or (batch_norm == "train" and id(parameter) in norms)
            if parameter.requires_grad != expected:
                raise FreezeContractError(f"Parameter '{name}' must {'' if expected else 'not '}require a gradient.")
            if not parameter.requires_grad and parameter.grad is not None:
                raise FreezeContractError(f"Parameter '{name}' is frozen and still holds a gradient.")
            if not parameter.requires_grad and parameter in optimizer.state:
                raise FreezeContractError(f"Parameter '{name}' is frozen and still has a state in the optimizer.")
    if owner:
        raise FreezeContractError(f"The optimizer holds {len(owner)} parameters that the network does not have.")
    _assert_modes(network, "", trained, batch_norm, inherited=True)
    scale = lr / optimizer.defaults["lr"] if lr else 1.0
    return [_state(network, optimizer, group, scale) for group in network.groups]


def _torch_groups(network: Network, optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    owner: dict[int, dict[str, Any]] = {}
    for torch_group in optimizer.param_groups:
        for parameter in torch_group["params"]:
            if id(parameter) in owner:
                names = [name for name, p in network.named_parameters() if p is parameter]
                raise FreezeContractError(f"Parameter '{names[0]}' is twice in the optimizer.")
            owner[id(parameter)] = torch_group
    return owner


def _state(network: Network, optimizer: Optimizer, group: str, scale: float) -> GroupState:
    torch_groups = [g for g in optimizer.param_groups if g["name"].partition("/")[0] == group]
    parameters = network.groups[group].values()
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    members = [m for whole in modules_within(network, {id(p) for p in parameters}) for m in whole.modules()]
    modes = {module.training for module in members if next(module.parameters(), None) is not None}
    dropouts = [active_dropout(module) for module in members]
    return GroupState(
        group=group,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=trainable,
        lr=scale * max(g.get("initial_lr", g["lr"]) for g in torch_groups) if trainable else 0.0,
        weight_decay=max(g["weight_decay"] for g in torch_groups) if trainable else 0.0,
        mode="mixed" if len(modes) == 2 else "train" if True in modes else "eval",
        dropout=max(dropouts, default=0.0),
    )


def _assert_modes(
    module: nn.Module, name: str, trained: Mapping[int, bool], batch_norm: BatchNormPolicy, inherited: bool
) -> None:
    """Train mode where a parameter trains; what has none, such as dropout, as the module that holds it."""
    own = [trained[id(parameter)] for parameter in module.parameters()]
    mode = any(own) if own else inherited
    if isinstance(module, _BatchNorm) and batch_norm != "frozen":
        mode = True
    if module.training != mode:
        raise FreezeContractError(f"Module '{name}' must be in {'train' if mode else 'eval'} mode.")
    for child_name, child in module.named_children():
        _assert_modes(child, f"{name}.{child_name}".lstrip("."), trained, batch_norm, mode)
