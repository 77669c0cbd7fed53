"""What a run would do, told before it: its phases, the rate of each layer group at each step, its time and memory."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lightning as L

from thaw.build import TRAINER
from thaw.data.datamodule import DataModule
from thaw.freezing.contract import GroupState, assert_contract
from thaw.freezing.freezing import Freezing, Stage, steps_an_epoch
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.scheduler import GroupSchedule
from thaw.task.task import Task

# As many as a picture of a long run can show.
POINTS = 2_000


@dataclass(frozen=True)
class Cost:
    """What a phase takes, by its first batches.

    Args:
        step: seconds of a training batch, its loading and its share of optimizer steps included.
        validation: seconds of a validation batch.
        memory: peak in bytes; of the GPU where one is used, else of this process so far.
    """

    step: float
    validation: float
    memory: int


@dataclass(frozen=True)
class Phase:
    """Epochs in which the same layer groups train at the same rates before the schedule.

    Args:
        end: the epoch after its last.
    """

    stage: Stage
    end: int
    states: list[GroupState]

    @property
    def epochs(self) -> str:
        """Its epochs as people count them, from 1."""
        first = self.stage.epoch + 1
        return f"epoch {first}" if first == self.end else f"epochs {first}–{self.end}"


@dataclass
class Plan:
    """A whole run before it begins.

    Args:
        steps: optimizer steps.
        batches: training and validation batches of an epoch.
        rates: layer group → its rate at each of the steps `at`; 0 where it is frozen.
        costs: one for each phase, once measured.
        remarks: what the run decides otherwise than shown here, in words.
        device: its kind.
    """

    epochs: int
    steps: int
    batches: tuple[int, int]
    phases: list[Phase]
    at: list[int]
    rates: dict[str, list[float]]
    remarks: list[str]
    device: str
    costs: list[Cost] = field(default_factory=list)

    def epoch_seconds(self, cost: Cost) -> float:
        """Seconds of an epoch of a phase: training and validation."""
        return self.batches[0] * cost.step + self.batches[1] * cost.validation

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        pairs = zip(self.phases, self.costs, strict=True)
        return sum((phase.end - phase.stage.epoch) * self.epoch_seconds(cost) for phase, cost in pairs)


def trainer_for(
    build: Callable[..., L.Trainer], precision: str, epochs: int, processes: int = 1
) -> Callable[..., L.Trainer]:
    """What makes the run's trainer for a plan: of several processes one, and without a trace on disk or screen."""
    one = {"devices": 1, "num_nodes": 1, "strategy": "auto"} if processes > 1 else {}
    return functools.partial(
        build,
        **one,
        precision=precision,
        min_epochs=None,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        **TRAINER,
    )


def rates_at(
    freezing: Freezing,
    network: Network,
    schedule: GroupSchedule,
    epochs: int,
    epoch_steps: int,
    at: Sequence[int],
) -> dict[str, list[float]]:
    """Group of the optimizer → its rate at each of the optimizer steps `at`, by the code that a run goes through.

    Args:
        epoch_steps: optimizer steps of an epoch.
    """
    groups, epoch = list(network.groups), None
    found: dict[str, list[float]] = {group["name"]: [] for group in schedule.optimizer.param_groups}
    for step in at:
        if epoch != step // epoch_steps:
            epoch = step // epoch_steps
            freezing.set_rates(schedule, network, freezing.stages(groups, epoch, epochs), epoch_steps)
        schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step})  # as a run resumed at this step
        for group in schedule.optimizer.param_groups:
            found[group["name"]].append(group["lr"])
    return found


def make_plan(module: FineTuner, freezing: Freezing, data: DataModule, make_trainer: Callable[..., L.Trainer]) -> Plan:
    """Plan a run; nothing is trained.

    Args:
        make_trainer: see `trainer_for`.
    """
    look = _Look(freezing)
    trainer = make_trainer(callbacks=[look])
    trainer.fit(module, data)
    epochs, network, groups = trainer.max_epochs, module.network, list(module.network.groups)
    epoch_steps = steps_an_epoch(trainer)
    remarks = [remark] if (remark := freezing.assume_earliest(groups)) else []

    optimizer = module.optimizer(network)
    schedule = GroupSchedule(optimizer, module.schedule, look.steps)
    if module.schedule.state_dict():
        remarks.append("The scheduler lowers the rate while it runs; the rates shown are those without that.")
    last = math.ceil(look.steps / epoch_steps)  # fewer than its epochs where trainer.max_steps ends it before
    stages = freezing.stages(groups, last - 1, epochs)
    phases = []
    for stage, end in zip(stages, [*(later.epoch for later in stages[1:]), last], strict=True):
        enter(network, freezing, stage)
        states = assert_contract(network, optimizer, stage.groups, freezing.batch_norm, stage.lr)
        phases.append(Phase(stage, end, states))
    at = sorted({*range(0, look.steps, max(1, look.steps // POINTS)), look.steps - 1})
    rates = rates_at(freezing, network, schedule, epochs, epoch_steps, at)
    # Matrices and vectors of a layer group have the same rate.
    by_layer = {name.partition("/")[0]: values for name, values in rates.items()}
    by_layer = {group: by_layer[group] for group in groups}
    batches = (int(trainer.num_training_batches), int(sum(trainer.num_val_batches)))
    return Plan(last, look.steps, batches, phases, at, by_layer, remarks, trainer.strategy.root_device.type)


def files(task: Task, logger: str | None, report: bool) -> list[str]:
    """What a run leaves in its directory.

    Args:
        logger: target of the logger beside metrics.csv.
        report: whether it writes one.
    """
    found = ["run.json", "config.yaml", "metrics.csv", "hparams.yaml"]
    found += ["predictions.csv"] * (type(task).answers is not Task.answers)
    found += ["per_class.csv"] * (type(task).per_class is not Task.per_class)
    found += ["report.html", "README.md"] * report
    found += [f"checkpoints/{role}.ckpt{end}" for role in ("best", "last") for end in ("", ".sha256")]
    return found + [folder + "/" for folder in ("wandb", "tensorboard") if logger and folder in logger.lower()]


def enter(network: Network, freezing: Freezing, stage: Stage) -> None:
    """Let train what trains in this stage, as at the epoch's start in a run."""
    network.train_groups(stage.groups, freezing.batch_norm)
    network.train()


class _Look(L.Callback):
    """Stops a run before its first step, when its length is known and what is decided before it has been decided."""

    def __init__(self, freezing: Freezing) -> None:
        self.freezing, self.steps = freezing, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.freezing.on_train_start(trainer, pl_module)
        self.steps = int(trainer.estimated_stepping_batches)
        trainer.should_stop = True
