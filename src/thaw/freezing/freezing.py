"""Freezing: which layer groups train now, derived from the epoch and the saved stage alone, never remembered."""

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import lightning as L
from pydantic import Field

from thaw.distributed import rewrap, share_statistics
from thaw.errors import UserError, did_you_mean
from thaw.freezing.contract import GroupState, assert_contract
from thaw.freezing.digest import assert_ranks_equal, assert_unmoved, digests, frozen
from thaw.model.network import BatchNormPolicy, Network
from thaw.scheduler import GroupSchedule

Share = Annotated[float, Field(gt=0, lt=1)]


class Stage(NamedTuple):
    """What holds from an epoch on.

    Args:
        groups: layer groups that train, in forward order.
        lr: rate in place of `optimizer.lr`; None keeps that.
    """

    epoch: int
    groups: list[str]
    lr: float | None = None


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
        self.timeline: list[Stage] = []
        self.contract: list[dict[str, Any]] = []  # what was checked at each stage of this process
        self._frozen: dict[str, bytes] = {}

    def prepare(self, network: Network) -> None:
        """Change the network as the strategy needs it, once, before an optimizer is made.

        Raises:
            UserError: the strategy does not fit the network.
        """

    @abstractmethod
    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        """The layer groups, out of all `groups` in forward order, that train in `epoch` of a run of `epochs`."""

    def lr(self, epoch: int, epochs: int) -> float | None:
        """The rate in place of `optimizer.lr` in `epoch`."""
        return None

    def last(self, groups: Sequence[str], epochs: int) -> Sequence[str]:
        """The layer groups that train at the end, if nothing stops the run before."""
        return self.trains(groups, epochs - 1, epochs)

    def ever_trains(self, groups: Sequence[str], epochs: int) -> set[str]:
        """The layer groups that train at the start or at the end: about those that an optimizer comes to know."""
        return {*self.trains(groups, 0, epochs), *self.last(groups, epochs)}

    def decision(self) -> str | None:
        """What the strategy has found out before the first step, in words; None where it had nothing to find out."""
        return None

    def assume_earliest(self, groups: Sequence[str]) -> str | None:
        """For a plan: take what would be decided while it runs as decided at the earliest, and say so in words."""
        return None

    def stages(self, groups: Sequence[str], epoch: int, epochs: int) -> list[Stage]:
        """Every stage up to `epoch`."""
        found: list[Stage] = []
        for earlier in range(epoch + 1):
            chosen, lr = set(self.trains(groups, earlier, epochs)), self.lr(earlier, epochs)
            names = [name for name in groups if name in chosen]
            if not found or found[-1][1:] != (names, lr):
                found.append(Stage(earlier, names, lr))
        return found

    def set_rates(
        self, schedule: GroupSchedule, network: Network, stages: Sequence[Stage], steps_an_epoch: int
    ) -> None:
        """Tell the schedule which layer groups train in the last of these stages, and since which step of the run."""
        since = thaw_epochs(stages)
        if self.batch_norm == "train":
            since = dict.fromkeys(network.groups_with_batch_norm, 0) | since
        schedule.set_thawed({name: start * steps_an_epoch for name, start in since.items()}, self.rewarm, stages[-1].lr)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network, schedule = pl_module.network, pl_module.lr_schedulers()
        groups, epoch, epochs = list(network.groups), trainer.current_epoch, trainer.max_epochs
        # A resumed run tells the whole timeline, also the epochs of the process before it.
        stages = self.stages(groups, epoch, epochs)
        if changed := stages != self.timeline:
            now, digest = self._assert_kept(trainer, network)
        if network.train_groups(stages[-1].groups, self.batch_norm):
            rewrap(trainer.strategy)
        if not network.training:
            network.train()
        for idle in [held for held in trainer.optimizers[0].state if not held.requires_grad]:
            del trainer.optimizers[0].state[idle]

        self.set_rates(schedule, network, stages, steps_an_epoch(trainer))
        if set(stages[-1].groups) != set(self.last(groups, epochs)):
            for stopping in trainer.early_stopping_callbacks:
                stopping.wait_count = -1  # 0 after this epoch: a plateau before the last thaw is no reason to stop
        if changed:
            self.timeline = stages
            self.states = assert_contract(
                network, trainer.optimizers[0], stages[-1].groups, self.batch_norm, stages[-1].lr
            )
            checked = {"epoch": epoch, "ranks": trainer.world_size, "digest": digest}
            self.contract.append(checked | {"groups": [state.to_dict() for state in self.states]})
            self._frozen = {name: now[name] for name in frozen(network)}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._assert_kept(trainer, pl_module.network)

    def _assert_kept(self, trainer: L.Trainer, network: Network) -> tuple[dict[str, bytes], str]:
        """The digests of all that the network holds, and that of all ranks."""
        share_statistics(trainer.strategy)
        now = digests(network)
        assert_unmoved(now, self._frozen)
        return now, assert_ranks_equal(now)


def steps_an_epoch(trainer: L.Trainer) -> int:
    """Optimizer steps of a whole epoch; `trainer.max_steps` may end the run in the middle of one."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def thaw_epochs(stages: Sequence[Stage]) -> dict[str, int]:
    """Layer group → the epoch since which it has trained without a break, for those that train in the last stage."""
    since: dict[str, int] = {}
    for stage in stages:
        since = {name: since.get(name, stage.epoch) for name in stage.groups}
    return since


def select(groups: Sequence[str], patterns: Sequence[str], option: str) -> list[str]:
    """The layer groups that a name or a pattern such as `block0[0-3]` or `block*` means, in forward order.

    Raises:
        UserError: a pattern that means no group.
    """
    found = {pattern: fnmatch.filter(groups, pattern) for pattern in patterns}
    if empty := [pattern for pattern, names in found.items() if not names]:
        raise UserError(
            *(
                f"{option} must name layer groups ({groups[0]} … {groups[-1]}); got '{pattern}'. "
                f"{did_you_mean(pattern, groups)}"
                for pattern in empty
            )
        )
    chosen = {name for names in found.values() for name in names}
    return [name for name in groups if name in chosen]
