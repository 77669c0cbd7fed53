"""A Network: a headless body, our own head, and an ordered partition of the parameters into layer groups."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thaw.model.modes import set_mode
from thaw.model.partition import assert_partition, group_around

if TYPE_CHECKING:
    from thaw.model.cut import Cut

BatchNormPolicy = Literal["frozen", "adapt", "train"]


class Steps(NamedTuple):
    """One vector for each step of a sequence, where a task wants an answer at every token or frame.

    Args:
        values: (batch, steps, width); what lies beyond a sample's length is padding.
        lengths: real steps of each sample (batch,).
    """

    values: Tensor
    lengths: Tensor


# Weights of filters for each pixel of an image. With more, channels last was slower on a CPU (ResNet-18 to 50 at 32 px:
# 11,000 and above), with less faster (ResNet-18 at 64 px, MobileNet, EfficientNet, DenseNet at 32 px: 2,000 to 7,000).
FILTERS_A_PIXEL = 8_000


class Cached(NamedTuple):
    """A batch of which the frozen part of the body has been computed before; see `Network.cut`.

    Args:
        activations: (batch, …) where the network is cut; without a cut its features (batch, width).
        inputs: what the rest of the body still reads, such as masks; None where that is nothing.
    """

    activations: Tensor
    inputs: Tensor | Mapping[str, Tensor] | None = None


class Head(nn.Sequential):
    """Dropout and one linear layer, on features (batch, width) or on each of the steps."""

    def __init__(self, linear: nn.Linear, dropout: float = 0.0) -> None:
        super().__init__()
        self.add_module("dropout", nn.Dropout(dropout))
        self.add_module("linear", linear)

    @classmethod
    def new(cls, width: int, num_outputs: int, dropout: float = 0.0) -> "Head":
        linear = nn.Linear(width, num_outputs)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return cls(linear, dropout)

    def forward(self, features: Tensor | Steps) -> Tensor | Steps:
        if isinstance(features, Steps):
            return Steps(super().forward(features.values), features.lengths)
        return super().forward(features)


class Network(nn.Module):
    """A pretrained body under a new head, cut into layer groups `stem, block00 … blockNN, head` in forward order.

    Args:
        body: maps inputs to features (batch, width), or to Steps.
        head: maps features (batch, width) to outputs (batch, num_outputs), or Steps to Steps.
        groups: names of the body's parameters by layer group, in forward order, without the head.
        preprocessing: what the data must do to its inputs for this body; `kind` is `image`, `text` or `waveform`.
        no_decay: names of body parameters that never get weight decay, beside all vectors.
        lr: a rate that suits the body's last block under AdamW, for those who leave the rate open.
        new_head: whether the head starts from nothing and may take a larger rate than the body.
        pretrained: whether the body's weights are worth freezing.

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
        lr: float = 3e-4,
        new_head: bool = True,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.preprocessing = dict(preprocessing or {})
        self.no_decay = {f"body.{name}" for name in no_decay}
        self.lr, self.new_head, self.pretrained = lr, new_head, pretrained
        self._names = {group: [f"body.{name}" for name in names] for group, names in groups.items()}
        # A weight that the head shares with the body counts once, in the body's group.
        names = [name for name, _ in self.named_parameters()]
        if own := [name for name in names if name.startswith("head.")]:
            self._names["head"] = own
        self.fixed: set[str] = set()
        self.lr_scale = 1.0  # of the body's rates, where a strategy trains a small part of it
        self.batch_norm: BatchNormPolicy = "frozen"
        self.channels_last = False
        self.cut: Cut | None = None  # where the activations of a Cached batch come in
        self._trains: set[str] = set(self._names)
        assert_partition(self._names, names)
        self.train()  # what a library hands over in eval mode would stay there

    @property
    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Layer group → parameter name → parameter, in forward order; every parameter exactly once."""
        parameters = dict(self.named_parameters())
        return {group: {name: parameters[name] for name in names} for group, names in self._names.items()}

    @property
    def trains(self) -> list[str]:
        """Names of the groups that train now, in forward order."""
        return [group for group in self._names if group in self._trains]

    def features(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor | Steps:
        """The head's input (batch, width), or one for each step."""
        return self.body(self.laid_out(inputs))

    def forward(self, inputs: Tensor | Mapping[str, Tensor] | Cached) -> Tensor | Steps:
        if not isinstance(inputs, Cached):
            return self.head(self.features(inputs))
        return self.head(self.cut.after(*inputs) if self.cut else inputs.activations)

    def lay_out(self, device: torch.device) -> None:
        """Lay the filters of image networks, and from now on the images, out with channels last, where that is faster.

        A GPU is faster so, and so is a CPU, most of all in what is frozen; but a CPU also brings the filters into an
        order of its own at each step, and many filters on few pixels (ResNets on images of 32) lose more than they
        gain. The numbers are the same in another order, and their sums round otherwise.
        """
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        self.channels_last = bool(convolutions) and self.preprocessing.get("kind") == "image"
        if self.channels_last and device.type == "cpu":
            filters = sum(module.weight.numel() for module in convolutions if module.groups == 1)
            self.channels_last = filters <= FILTERS_A_PIXEL * self.preprocessing["size"] ** 2
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    def laid_out(self, values: Tensor | Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
        """Images or maps (batch, channels, height, width) in the order in which the filters lie."""
        if self.channels_last and isinstance(values, Tensor) and values.ndim == 4:
            return values.contiguous(memory_format=torch.channels_last)
        return values

    def fix(self, names: Iterable[str]) -> None:
        """Let these parameters never train, also where their layer group does."""
        self.fixed |= set(names)
        self.train_groups(self._trains, self.batch_norm)

    def change_body(self, change: Callable[[nn.Module], object]) -> list[str]:
        """Let `change` put modules around those of the body; return the names of the parameters that came with them.

        Each joins the layer group of the module that it was put into.
        """
        before = {id(p): (group, name) for group, ps in self.groups.items() for name, p in ps.items()}
        change(self.body)
        names: dict[str, list[str]] = {group: [] for group in self._names}
        renamed: dict[str, str] = {}
        added: list[str] = []
        for name, parameter in self.named_parameters():
            if id(parameter) in before:
                group, old = before[id(parameter)]
                renamed[old] = name
            else:
                group = group_around(self, name, before)
                added.append(name)
            names[group].append(name)
        self.fixed, self.no_decay = (
            {renamed[name] for name in old if name in renamed} for old in (self.fixed, self.no_decay)
        )
        self._names = names
        self.train_groups(self._trains, self.batch_norm)
        return added

    def train_groups(self, names: Iterable[str], batch_norm: BatchNormPolicy = "frozen") -> bool:
        """Let these groups train and freeze all others: no gradient, and eval mode.

        Args:
            names: layer groups that train, except for what is fixed.
            batch_norm: what BatchNorm layers of frozen groups do: `frozen` keeps statistics and weights,
                `adapt` lets the statistics follow the new data, `train` trains their weights as well.

        Returns:
            whether this changed what requires a gradient.

        Raises:
            ValueError: a name is no layer group of this network.
        """
        names = set(names)
        if unknown := names - set(self._names):
            raise ValueError(f"{sorted(unknown)} are no layer groups; this network has {list(self._names)}.")
        before = [parameter.requires_grad for parameter in self.parameters()]
        self._trains, self.batch_norm = names, batch_norm
        for group, parameters in self.groups.items():
            for name, parameter in parameters.items():
                parameter.requires_grad_(group in names and name not in self.fixed)
        if batch_norm == "train":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(True)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        self.train(self.training)
        return before != [parameter.requires_grad for parameter in self.parameters()]

    def train(self, mode: bool = True) -> "Network":
        """Set train or eval mode, where a module whose parameters are all frozen stays in eval mode."""
        groups = self.groups
        trained = {
            id(parameter)
            for group in self._trains
            for name, parameter in groups[group].items()
            if name not in self.fixed
        }
        set_mode(self, mode, trained)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and self.batch_norm != "frozen":
                module.training = mode
        return self

    @property
    def groups_with_batch_norm(self) -> list[str]:
        norms = {id(p) for module in self.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
        return [group for group, ps in self.groups.items() if not norms.isdisjoint(map(id, ps.values()))]
