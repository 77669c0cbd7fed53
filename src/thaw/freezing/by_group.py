"""Strategies that choose whole layer groups by the epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Required

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from pydantic import Field
from typing_extensions import TypedDict

from thaw.distributed import load_whole
from thaw.errors import UserError
from thaw.freezing.freezing import Freezing, Share, select
from thaw.model.network import Network
from thaw.run.checkpoint import load_checkpoint


class NoFreezing(Freezing):
    """All groups train from the first step: full fine-tuning."""

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return groups


class LastN(Freezing):
    """The head and the last `n` layer groups of the body train; with `n: 0` it is a linear probe."""

    def __init__(self, n: Annotated[int, Field(ge=0)] = 1, **freezing: Any) -> None:
        super().__init__(**freezing)
        self.n = n

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return groups[-1 - self.n :] if self.n < len(groups) else groups


class ProbeThenTune(Freezing):
    """The head alone for the first share `probe` of the run, then everything (LP-FT, arXiv:2202.10054)."""

    def __init__(self, probe: Share = 0.3, **freezing: Any) -> None:
        super().__init__(**freezing)
        self.probe = probe

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return groups[-1:] if epoch < max(1, round(self.probe * epochs)) else groups


class Gradual(Freezing):
    """The head first, then one more group at a time from the last block to the stem (arXiv:1801.06146).

    Args:
        on: `epoch` thaws by the clock, `plateau` whenever the monitored metric has not improved for `patience` epochs.
        every: epochs between two thaws; None spreads the thaws evenly over the first `over` of the run.
        over: share of the run.
        roll_back: whether each thaw on a plateau starts from the weights of the best epoch so far.
    """

    def __init__(
        self,
        on: Literal["epoch", "plateau"] = "epoch",
        every: Annotated[int, Field(ge=1)] | None = None,
        over: Share = 0.5,
        patience: Annotated[int, Field(ge=1)] = 2,
        roll_back: bool = False,
        **freezing: Any,
    ) -> None:
        super().__init__(**freezing)
        if roll_back and on == "epoch":
            raise UserError("freezing.roll_back must go with freezing.on=plateau; got on=epoch. Leave it out.")
        self.on, self.every, self.over, self.patience, self.roll_back = on, every, over, patience, roll_back
        self.thaws: list[int] = []  # the epochs that a plateau has chosen
        self._best: float | None = None
        self._waited = 0
        self._value: float | None = None  # of this epoch, once it is validated

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.on == "plateau" and pl_module.monitor.startswith("train/"):  # known only after the epoch is saved
            raise UserError(
                f"monitor must be of validation with freezing.on=plateau; got '{pl_module.monitor}'. "
                "Write e.g. monitor=val/loss."
            )

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        most = len(groups) - 1
        if self.on == "plateau":
            done = sum(thaw <= epoch for thaw in self.thaws)
        else:
            done = epoch // self.every if self.every else int(epoch * most / (self.over * epochs))
        return groups[-1 - min(done, most) :]

    def last(self, groups: Sequence[str], epochs: int) -> Sequence[str]:
        return groups if self.on == "plateau" else super().last(groups, epochs)

    def assume_earliest(self, groups: Sequence[str]) -> str | None:
        if self.on == "epoch":
            return None
        # The first epoch sets the value to improve on.
        self.thaws = [1 + self.patience * number for number in range(1, len(groups))]
        return (
            f"freezing.on=plateau decides while it runs: these thaws are the earliest possible, each after "
            f"{self.patience} epochs without improvement."
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.on == "plateau" and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._value = float(trainer.callback_metrics[pl_module.monitor])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value, self._value = self._value, None
        if value is None:
            return
        sign = 1 if pl_module.task.direction(pl_module.monitor) == "max" else -1
        if math.isfinite(value) and (self._best is None or sign * value > sign * self._best):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited < self.patience or len(self.thaws) >= len(pl_module.network.groups) - 1:
            return
        self.thaws.append(trainer.current_epoch + 1)
        self._waited = 0
        # Now, before this epoch is saved, so that a resumed run finds the weights it goes on from.
        if self.roll_back and value != self._best:
            _roll_back(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"thaws": list(self.thaws), "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.thaws, self._best, self._waited = list(state["thaws"]), state["best"], state["waited"]


def _roll_back(trainer: L.Trainer, module: L.LightningModule) -> None:
    best = next((keep.best_model_path for keep in trainer.checkpoint_callbacks if keep.monitor), "")
    if not best:
        raise UserError("freezing.roll_back must find the best epoch's checkpoint, and none is kept. Leave it out.")
    load_whole(module, load_checkpoint(best)["state_dict"])


class Phase(TypedDict, total=False):
    """What trains from a point of the run on.

    Args:
        at: an epoch (int), or a share of the run (float).
        groups: names of layer groups, or patterns such as `block0[0-3]` or `*`.
        lr: rate in place of `optimizer.lr` for this phase.
    """

    at: Required[Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]]
    groups: Required[list[str]]
    lr: Annotated[float, Field(gt=0)] | None


class Phases(Freezing):
    """Explicit phases, each with the groups that train in it and, if wanted, a rate of its own."""

    def __init__(self, phases: Annotated[list[Phase], Field(min_length=1)], **freezing: Any) -> None:
        super().__init__(**freezing)
        if phases[0]["at"] != 0:
            raise UserError(f"freezing.phases must begin at 0; the first is at {phases[0]['at']}. Write at: 0.")
        self.phases = phases

    def prepare(self, network: Network) -> None:
        groups = list(network.groups)
        problems: list[str] = []
        for number, phase in enumerate(self.phases):
            try:
                if not select(groups, phase["groups"], f"freezing.phases[{number}].groups"):
                    problems.append(f"freezing.phases[{number}].groups must name a layer group. Write e.g. [head].")
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*problems)

    def _phase(self, epoch: int, epochs: int) -> Phase:
        # Of two that begin in one epoch, as in a short run, the one written later holds.
        ordered = sorted(self.phases, key=lambda phase: _epoch(phase["at"], epochs))
        return [phase for phase in ordered if _epoch(phase["at"], epochs) <= epoch][-1]

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        return select(groups, self._phase(epoch, epochs)["groups"], "freezing.phases")

    def lr(self, epoch: int, epochs: int) -> float | None:
        return self._phase(epoch, epochs).get("lr")


def _epoch(at: int | float, epochs: int) -> int:
    return at if isinstance(at, int) else round(at * epochs)
