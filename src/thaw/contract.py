"""The freeze contract, checked while it runs: frozen means no gradient and eval mode, in exactly one group."""

from collections.abc import Collection
from dataclasses import dataclass

from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from thaw.model.network import BatchNormPolicy, Network


class FreezeContractError(RuntimeError):
    """The freeze contract does not hold; the message names the parameter or module."""


@dataclass(frozen=True)
class GroupState:
    """What one layer group does from now on: a row of the plan table.

    Args:
        lr: rate of the group at full warm-up, before the schedule's factor.
        weight_decay: of its matrices and filters.
        mode: `train`, `eval`, or `mixed` where BatchNorm adapts inside a frozen group.
    """

    group: str
    parameters: int
    trains: bool
    lr: float
    weight_decay: float
    mode: str


def assert_contract(
    network: Network, optimizer: Optimizer, trains: Collection[str], batch_norm: BatchNormPolicy = "frozen"
) -> list[GroupState]:
    """Check all that freezing promises, in train mode, and return one row for each layer group.

    Raises:
        FreezeContractError: a parameter outside the optimizer or in it twice, under another group's name, with a
            gradient where frozen or without where not, or a module in the wrong mode.
    """
    owner: dict[int, dict] = {}
    for torch_group in optimizer.param_groups:
        for parameter in torch_group["params"]:
            if id(parameter) in owner:
                names = [name for name, p in network.named_parameters() if p is parameter]
                raise FreezeContractError(f"Parameter '{names[0]}' is twice in the optimizer.")
            owner[id(parameter)] = torch_group

    norms = {id(p) for m in network.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    states = []
    for group, parameters in network.groups.items():
        for name, parameter in parameters.items():
            torch_group = owner.pop(id(parameter), None)
            if torch_group is None:
                raise FreezeContractError(f"Parameter '{name}' is not in the optimizer.")
            if torch_group["name"].partition("/")[0] != group:
                raise FreezeContractError(f"Parameter '{name}' of '{group}' has the rate of '{torch_group['name']}'.")
            expected = group in trains or (batch_norm == "train" and id(parameter) in norms)
            if parameter.requires_grad != expected:
                raise FreezeContractError(f"Parameter '{name}' must {'' if expected else 'not '}require a gradient.")
            if not expected and parameter.grad is not None:
                raise FreezeContractError(f"Parameter '{name}' is frozen and still holds a gradient.")
        states.append(_state(network, optimizer, group, group in trains))
    if owner:
        raise FreezeContractError(f"The optimizer holds {len(owner)} parameters that the network does not have.")
    _assert_modes(network, trains, batch_norm)
    return states


def _state(network: Network, optimizer: Optimizer, group: str, trains: bool) -> GroupState:
    torch_groups = [g for g in optimizer.param_groups if g["name"].partition("/")[0] == group]
    ids = {id(p) for p in network.groups[group].values()}
    modes = {
        module.training
        for module in network.modules()
        if (own := [id(p) for p in module.parameters()]) and ids.issuperset(own)
    }
    return GroupState(
        group=group,
        parameters=sum(parameter.numel() for parameter in network.groups[group].values()),
        trains=trains,
        lr=max(g.get("initial_lr", g["lr"]) for g in torch_groups) if trains else 0.0,
        weight_decay=max(g["weight_decay"] for g in torch_groups) if trains else 0.0,
        mode="mixed" if len(modes) == 2 else "train" if True in modes else "eval",
    )


def _assert_modes(network: Network, trains: Collection[str], batch_norm: BatchNormPolicy) -> None:
    trained = {id(p) for group, ps in network.groups.items() if group in trains for p in ps.values()}
    for name, module in network.named_modules():
        own = [id(parameter) for parameter in module.parameters()]
        if not own or (isinstance(module, _BatchNorm) and batch_norm != "frozen"):
            continue
        expected = not trained.isdisjoint(own)
        # Below a frozen module nothing may be in train mode either, dropout least of all.
        wrong = module.training != expected or (
            not expected and any(m.training for m in module.modules() if not isinstance(m, _BatchNorm))
        )
        if wrong:
            raise FreezeContractError(f"Module '{name}' must be in {'train' if expected else 'eval'} mode.")
