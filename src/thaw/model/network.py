"""A Network: a headless body, our own head, and an ordered partition of the parameters into layer groups."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormPolicy = Literal["frozen", "adapt", "train"]


class Network(nn.Module):
    """A pretrained body under a new head, cut into layer groups `stem, block00 … blockNN, head` in forward order.

    Args:
        body: maps inputs to features (batch, width).
        head: maps features (batch, width) to outputs (batch, num_outputs).
        groups: names of the body's parameters by layer group, in forward order, without the head.
        preprocessing: what the data must do to its inputs for this body, as plain values.
        no_decay: names of body parameters that never get weight decay, beside all vectors.

    Raises:
        ValueError: a parameter stands in no group, or in two.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        groups: Mapping[str, Iterable[str]],
        preprocessing: Mapping[str, Any] | None = None,
        no_decay: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.preprocessing = dict(preprocessing or {})
        self.no_decay = {f"body.{name}" for name in no_decay}
        self._names = {group: [f"body.{name}" for name in names] for group, names in groups.items()}
        self._names["head"] = [f"head.{name}" for name, _ in head.named_parameters()]
        self._batch_norm: BatchNormPolicy = "frozen"
        self._trains: set[str] = set(self._names)
        _assert_partition(self._names, (name for name, _ in self.named_parameters()))

    @property
    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Layer group → parameter name → parameter, in forward order; every parameter exactly once."""
        parameters = dict(self.named_parameters())
        return {group: {name: parameters[name] for name in names} for group, names in self._names.items()}

    @property
    def trains(self) -> list[str]:
        """Names of the groups that train now, in forward order."""
        return [group for group in self._names if group in self._trains]

    def features(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The head's input (batch, width), and the only cut at which activations may be cached."""
        return self.body(inputs)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        return self.head(self.features(inputs))

    def train_groups(self, names: Iterable[str], batch_norm: BatchNormPolicy = "frozen") -> None:
        """Let these groups train and freeze all others: no gradient, and eval mode.

        Args:
            names: layer groups that train.
            batch_norm: what BatchNorm layers of frozen groups do: `frozen` keeps statistics and weights,
                `adapt` lets the statistics follow the new data, `train` trains their weights as well.

        Raises:
            ValueError: a name is no layer group of this network.
        """
        names = set(names)
        if unknown := names - set(self._names):
            raise ValueError(f"{sorted(unknown)} are no layer groups; this network has {list(self._names)}.")
        self._trains, self._batch_norm = names, batch_norm
        for group, parameters in self.groups.items():
            for parameter in parameters.values():
                parameter.requires_grad_(group in names)
        if batch_norm == "train":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(True)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        """Set train or eval mode, where a module whose parameters are all frozen stays in eval mode."""
        trained = {id(p) for group, ps in self.groups.items() if group in self._trains for p in ps.values()}
        _set_mode(self, mode, trained)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and self._batch_norm != "frozen":
                module.training = mode
        return self


def _set_mode(module: nn.Module, mode: bool, trained: set[int]) -> None:
    # A module without parameters (dropout, activation) follows the module that holds it.
    parameters = [id(parameter) for parameter in module.parameters()]
    module.training = mode and (not parameters or not trained.isdisjoint(parameters))
    for child in module.children():
        _set_mode(child, module.training, trained)


def _assert_partition(groups: Mapping[str, Iterable[str]], parameters: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name in seen:
                raise ValueError(f"Parameter '{name}' stands in two layer groups, '{seen[name]}' and '{group}'.")
            seen[name] = group
    expected = set(parameters)
    if missing := sorted(expected - seen.keys()):
        raise ValueError(f"Parameter '{missing[0]}' stands in no layer group ({len(missing)} such).")
    if extra := sorted(seen.keys() - expected):
        raise ValueError(f"Group '{seen[extra[0]]}' names '{extra[0]}', which the network does not have.")
