"""Freezing: which layer groups train now, derived from the epoch alone and never remembered."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import lightning as L
from pydantic import Field

from thaw.contract import GroupState, assert_contract
from thaw.model.network import BatchNormPolicy

Share = Annotated[float, Field(gt=0, lt=1)]


class Freezing(L.Callback, ABC):
    """Sets which layer groups train at every epoch start, and checks the freeze contract whenever that changes.

    Args:
        batch_norm: what BatchNorm layers of frozen groups do; see `Network.train_groups`.
        rewarm: share of the run over which the rate of a group rises after it thaws.
    """

    def __init__(
        self, batch_norm: BatchNormPolicy = "frozen", rewarm: Annotated[float, Field(ge=0, lt=1)] = 0.02
    ) -> None:
        self.batch_norm, self.rewarm = batch_norm, rewarm
        self.states: list[GroupState] = []
        self.timeline: list[tuple[int, list[str]]] = []

    @abstractmethod
    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        """The layer groups, out of all `groups` in forward order, that train in `epoch` of a run of `epochs`."""

    def stages(self, groups: Sequence[str], epoch: int, epochs: int) -> list[tuple[int, list[str]]]:
        """(epoch, groups that train from it on), for each stage up to `epoch`."""
        found: list[tuple[int, list[str]]] = []
        for earlier in range(epoch + 1):
            chosen = set(self.trains(groups, earlier, epochs))
            names = [name for name in groups if name in chosen]
            if not found or found[-1][1] != names:
                found.append((earlier, names))
        return found

    def thaw_epochs(self, groups: Sequence[str], epoch: int, epochs: int) -> dict[str, int]:
        """Layer group → the epoch since which it has trained without a break, for those that train in `epoch`."""
        since: dict[str, int] = {}
        for start, names in self.stages(groups, epoch, epochs):
            since = {name: since.get(name, start) for name in names}
        return since

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network, schedule = pl_module.network, pl_module.lr_schedulers()
        epoch, epochs = trainer.current_epoch, trainer.max_epochs
        since = self.thaw_epochs(list(network.groups), epoch, epochs)
        network.train_groups(since, self.batch_norm)
        network.train()
        steps_an_epoch = schedule.steps / epochs
        schedule.set_thawed({name: round(start * steps_an_epoch) for name, start in since.items()}, self.rewarm)

        names = network.trains
        if set(names) != set(self.trains(list(network.groups), epochs - 1, epochs)):
            for stopping in trainer.early_stopping_callbacks:
                stopping.wait_count = -1  # 0 after this epoch: a plateau before the last thaw is no reason to stop
        if not self.timeline or self.timeline[-1][1] != names:
            # A resumed run tells the whole timeline, also the epochs of the process before it.
            self.timeline = self.stages(list(network.groups), epoch, epochs)
            self.states = assert_contract(network, trainer.optimizers[0], names, self.batch_norm)


class NoFreezing(Freezing):
    """All groups train from the first step: full fine-tuning."""

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return groups


class LastN(Freezing):
    """The head and the last `n` layer groups of the body train; with `n: 0` it is a linear probe."""

    def __init__(self, n: Annotated[int, Field(ge=0)] = 1, **freezing: object) -> None:
        super().__init__(**freezing)
        self.n = n

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return groups[-1 - self.n :] if self.n < len(groups) else groups


class Gradual(Freezing):
    """The head first, then one more group at a time from the last block to the stem (arXiv:1801.06146).

    Args:
        every: epochs between two thaws; None spreads the thaws evenly over the first `over` of the run.
        over: share of the run.
    """

    def __init__(self, every: Annotated[int, Field(ge=1)] | None = None, over: Share = 0.5, **freezing: object) -> None:
        super().__init__(**freezing)
        self.every, self.over = every, over

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        thaws = len(groups) - 1
        done = epoch // self.every if self.every else int(epoch * thaws / (self.over * epochs))
        return groups[-1 - min(done, thaws) :]


class ProbeThenTune(Freezing):
    """The head alone for the first share `probe` of the run, then everything (LP-FT, arXiv:2202.10054)."""

    def __init__(self, probe: Share = 0.3, **freezing: object) -> None:
        super().__init__(**freezing)
        self.probe = probe

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return groups[-1:] if epoch < max(1, round(self.probe * epochs)) else groups
