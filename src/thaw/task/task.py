"""What a network is trained for: the loss, what counts as a prediction, and the metrics."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from thaw.errors import UserError, first_line
from thaw.task.metrics import collected, counts, keeps_everything

# So many batches are measured at once, in a fraction of the time of each; larger ones by themselves.
BATCHES, LARGEST = 16, 2**16
# (batch, num_outputs), or (values (batch, steps, num_outputs), lengths (batch,)) with an output for each step.
Outputs = Tensor | tuple[Tensor, Tensor]


class MeanLoss(Metric):
    """The mean over all samples or tokens; keeps a NaN, and does not wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("number", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, losses: Sequence[Tensor], numbers: Sequence[int | Tensor]) -> None:
        """Add batches one by one: their sum is the same to the last bit however many come at once.

        Args:
            losses: the mean of each batch, scalars.
            numbers: of what each is the mean.
        """
        for loss, number in zip(losses, numbers, strict=True):
            self.total += loss.float() * number
            self.number += number

    def compute(self) -> Tensor:
        return self.total / self.number


class Task(nn.Module, ABC):
    """What a network is trained for.

    Args:
        classes: names of what is answered, in index order.
        metrics: torchmetrics over what `measured` gives, cloned for each split; the first is monitored by default.
        num_outputs: width of the network's head; None where the network brings its own.
        train_metrics: whether there are metrics of the training split, beside those that keep every prediction.
    """

    #: What the data must answer: `class`, `labels`, `number`, `tags`, `transcript` or `text`.
    target: ClassVar[str]
    #: What the network's builder must know beside the number of outputs.
    network_options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        classes: Sequence[str],
        metrics: MetricCollection,
        num_outputs: int | None = None,
        train_metrics: bool = True,
    ) -> None:
        super().__init__()
        self.classes, self.num_outputs = list(classes), num_outputs
        light = {name: m for name, m in metrics.items() if train_metrics and not keeps_everything(m)}
        clones = {
            "train_": collected(light).clone("train/"),
            "val_": metrics.clone("val/"),
            "test_": metrics.clone("test/"),
        }
        self.metrics = nn.ModuleDict(clones)
        self.losses = nn.ModuleDict({f"{split}_": MeanLoss() for split in ("train", "val", "test")})
        self._waiting: dict[str, list[tuple[Tensor, int | Tensor, Outputs, Tensor]]] = {}
        # of which splits batches put together are measured as one by one
        self._together = {split: all(map(counts, held.values())) for split, held in self.metrics.items()}

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar; with regularisation only in train mode."""

    @abstractmethod
    def measured(self, outputs: Outputs, targets: Tensor) -> tuple[Any, Any]:
        """(predictions, targets) as the metrics read them."""

    def count(self, targets: Tensor) -> int | Tensor:
        """What the loss of a batch is the mean of: samples, or the tokens that count."""
        return len(targets)

    def assert_measurable(self, outputs: Outputs, targets: Tensor) -> None:
        """Try every metric on an example batch, before anything is trained.

        Raises:
            UserError: a metric that cannot read what this task predicts.
        """
        for name, metric in self.metrics["val_"].items():
            own, probe = name.partition("/")[2], metric.clone()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an example is small
                    probe.update(*self.measured(outputs, targets))
                    probe.compute().float()
            except Exception as error:  # every metric has its own way
                kind = type(metric).__name__
                raise UserError(
                    f"task.metrics.{own} must read what this task predicts; {kind} does not ({first_line(error)}). "
                    f"Leave it out: ~task.metrics.{own}"
                ) from None

    def answers(self, outputs: Outputs, targets: Tensor) -> list[dict[str, Any]]:
        """What is predicted for each sample, by column; none where predictions are not worth keeping.

        Args:
            targets: tell which steps count, and nothing else.
        """
        return []

    def read_back(self, rows: Sequence[dict[str, Any]]) -> list[tuple[Any, Any]]:
        """What `measured` gives for each sample alone, read back from its row; none where a row does not tell it."""
        return []

    def truths(self, targets: Tensor) -> list[dict[str, Any]]:
        """What is right for each sample, by column."""
        return []

    def rows(self, outputs: Outputs, targets: Tensor) -> list[dict[str, Any]]:
        """A row of `predictions.csv` for each sample."""
        pairs = zip(self.truths(targets), self.answers(outputs, targets), strict=True)
        return [truth | answer for truth, answer in pairs]

    def per_class(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
        """Columns of `per_class.csv`, from the rows of all samples; none where there are no classes."""
        return {}

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What the network must know of the task."""
        return {"num_outputs": self.num_outputs} | self.network_options

    @property
    def monitor(self) -> str:
        """Full name of the metric that chooses the best epoch, where the user leaves it open."""
        return next(iter(self.metrics["val_"].keys()), "val/loss")

    def names(self, split: str) -> list[str]:
        """Full names of the metrics of a split, e.g. `val/accuracy`."""
        return [f"{split}/loss", *self.metrics[f"{split}_"].keys()]

    def direction(self, name: str) -> Literal["min", "max"]:
        """Which way a metric such as `val/accuracy` gets better."""
        name = name.rpartition("/")[2]
        return "min" if name == "loss" or not self.metrics["val_"][name].higher_is_better else "max"

    def update(self, split: str, loss: Tensor, outputs: Outputs, targets: Tensor) -> None:
        """Gather one batch on its own device, without waiting for it."""
        waiting = self._waiting.setdefault(split, [])
        if waiting and _shape(*waiting[0][2:]) != _shape(outputs, targets):
            self._measure(split)
        waiting.append((loss.detach(), self.count(targets), detached(outputs), targets))
        alone = not isinstance(outputs, Tensor) or outputs.numel() > LARGEST
        if alone or len(waiting) == BATCHES or not self._together[f"{split}_"]:
            self._measure(split)

    def _measure(self, split: str) -> None:
        """Update loss and metrics by the batches that wait for it."""
        waiting = self._waiting.get(split)
        if not waiting:
            return
        losses, numbers, outputs, targets = zip(*waiting, strict=True)
        waiting.clear()
        self.losses[f"{split}_"].update(losses, numbers)
        if len(self.metrics[f"{split}_"]):
            one = len(outputs) == 1
            held = (outputs[0], targets[0]) if one else (torch.cat(outputs), torch.cat(targets))
            self.metrics[f"{split}_"].update(*self.measured(*held))

    def gathered(self, split: str) -> dict[str, Any]:
        """What was gathered since the last `compute`, on all processes; empty where that is nothing."""
        self._measure(split)
        if not self.losses[f"{split}_"].update_called:
            return {}
        with ExitStack() as stack:
            for metric in self._gathering(split).values():
                stack.enter_context(metric.sync_context())
                metric.persistent(True)
                stack.callback(metric.persistent, False)
            return {name: copy.deepcopy(metric.state_dict()) for name, metric in self._gathering(split).items()}

    def load_gathered(self, split: str, state: Mapping[str, Any]) -> None:
        """Go on from what `gathered` has returned."""
        for name, metric in self._gathering(split).items() if state else ():
            metric.persistent(True)
            metric.load_state_dict(state[name])
            metric.persistent(False)

    def _gathering(self, split: str) -> dict[str, Metric]:
        # Metrics that share a state are given it here; torchmetrics else updates only the first of them.
        shared = self.metrics[f"{split}_"].items(keep_base=True, copy_state=False)
        return {"loss": self.losses[f"{split}_"], **dict(shared)}

    def compute(self, split: str) -> dict[str, Tensor]:
        """The metrics of all batches since the last call, by full name; one of several values as their mean."""
        self._measure(split)
        found = {name: value.float().mean() for name, value in self.metrics[f"{split}_"].compute().items()}
        metrics = {f"{split}/loss": self.losses[f"{split}_"].compute(), **found}
        self.losses[f"{split}_"].reset()
        self.metrics[f"{split}_"].reset()
        return metrics


def _shape(outputs: Outputs, targets: Tensor) -> tuple[torch.Size | None, torch.Size]:
    return outputs.shape[1:] if isinstance(outputs, Tensor) else None, targets.shape[1:]


def detached(outputs: Outputs) -> Outputs:
    """Outputs without their history."""
    return outputs.detach() if isinstance(outputs, Tensor) else (outputs[0].detach(), outputs[1])
