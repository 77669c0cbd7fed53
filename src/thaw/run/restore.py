"""A finished run, built again from its directory alone: data, task and network, ready to take its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor

from thaw import config, defaults
from thaw.build import TRAINER, fine_tuner
from thaw.data.datamodule import DataModule
from thaw.departures import override
from thaw.errors import UserError, first_line
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.run.checkpoint import load_checkpoint
from thaw.run.run import MODEL_FILES, read_record, resume_command
from thaw.task.task import Task

State = Mapping[str, Tensor]
SECTIONS = ("model", "data", "task", "freezing", "optimizer", "scheduler", "checkpoint", "trainer", "run")


@dataclass(frozen=True)
class Restored:
    """What a finished run was made of.

    Args:
        record: its run.json.
        settings: its config.yaml, as plain containers.
        network: as the run began: the pretrained body under a new head; `module` holds it.
        metric: name of the validation metric to choose by: the run's monitor, or the task's where that is of training.
    """

    folder: Path
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    data: DataModule
    task: Task
    network: Network
    module: FineTuner
    trainer: L.Trainer
    metric: str

    @property
    def mode(self) -> Literal["min", "max"]:
        """Which way `metric` gets better."""
        return self.task.direction(self.metric)

    def checkpoint(self, role: str = "best") -> dict[str, Any]:
        """The run's checkpoint `best` or `last`, wherever its directory lies now."""
        return load_checkpoint(self.folder / "checkpoints" / f"{role}.ckpt")

    def load(self, state: State) -> None:
        """Put these weights into the network.

        Raises:
            UserError: they are those of another network.
        """
        try:
            self.module.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"The weights must fit the network of '{self.folder}': {first_line(error)}.") from None

    def measure(self, state: State, split: Literal["val", "test"]) -> dict[str, float]:
        """The metrics of these weights on a split, as the run itself measures them."""
        self.load(state)
        self.module.predictions.clear()
        measure = self.trainer.test if split == "test" else self.trainer.validate
        return measure(self.module, self.data, verbose=False)[0]


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(run.json, config.yaml) of a finished run, as plain containers that are not checked yet.

    Raises:
        UserError: there is no run, or it has not finished.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(f"A run must lie at '{folder}', and there is no run.json. Write a folder such as runs/mine.")
    if record.get("status") != "finished":
        again = resume_command(folder, record)
        raise UserError(f"The run must be finished; '{folder}' is {record.get('status')}. Go on with: {again}")
    try:
        settings = config.plain(config.read(folder / "config.yaml"))
        if lacking := [section for section in SECTIONS if not isinstance(settings.get(section), dict)]:
            raise ValueError(f"it has no section '{lacking[0]}'")
        return record, settings
    except Exception as error:  # a missing file, or YAML that is broken in any of its ways
        raise UserError(f"'{folder}/config.yaml' must be what a run has written: {first_line(error)}.") from None


def settings_of(folder: Path, weights: bool = True) -> Any:
    """The configuration of a finished run, made fit for this machine; it is not checked yet.

    Args:
        weights: whether the pretrained ones are wanted; without them nothing is read but the run's own directory.
    """
    cfg = config.read(folder / "config.yaml")
    cfg.run.dir, cfg.resume = str(folder), "never"
    cfg.trainer.devices, cfg.trainer.strategy, cfg.trainer.num_nodes = 1, "auto", 1
    if cfg.trainer.get("accelerator") != "cpu":
        cfg.trainer.accelerator = "auto"  # it need not be the machine that the run was on
    cfg.regularization = None  # it needs memory of its own, and nothing is trained
    if not weights and "weights" in cfg.model:
        cfg.model.weights = "none"
        if (folder / MODEL_FILES / "config.json").is_file():
            cfg.model.name = str((folder / MODEL_FILES).absolute())
    return cfg


def restore(folder: str | Path, overrides: Sequence[str] = (), weights: bool = True) -> Restored:
    """Build a finished run's data, task and network again, through the same checks as a fresh run.

    Args:
        overrides: of `data` and `paths`, for other samples than the run's own: those of the test split, or where there
            is none all of them; classes keep the run's order.
        weights: whether the network begins with its pretrained weights.

    Raises:
        UserError: no finished run, settings that do not hold (any more), or other samples than the run had.
    """
    folder = Path(folder)
    record, settings = read_run(folder)
    cfg = settings_of(folder, weights)
    if overrides:
        override(cfg, overrides)
        config.fill(cfg.data, record.get("inputs", {}))
    try:
        data, task, _ = _others(cfg, record) if overrides else config.preflight(cfg)
    except UserError as error:
        place = "" if overrides else f"'{folder}/config.yaml': "
        raise UserError(*(f"{place}{problem}" for problem in error.problems)) from None
    if not overrides and data.fingerprint != record["data"]["fingerprint"]:
        raise UserError(f"The samples and labels must be those of '{folder}'; they are others than in that run.")
    data.batch_size = record.get("settled", {}).get("batch_size", data.batch_size)  # what `auto` came to
    monitor = cfg.monitor or task.monitor
    metric = monitor if monitor.startswith("val/") else task.monitor
    module, _ = fine_tuner(cfg, data, task, metric)
    trainer = config.build(
        cfg.trainer,
        logger=False,
        precision=record.get("settled", {}).get("precision") or defaults.default_precision(cfg.trainer.accelerator),
        default_root_dir=folder,
        enable_checkpointing=False,
        **TRAINER,
    )
    return Restored(folder, record, settings, data, task, module.network, module, trainer, metric)


def _others(cfg: Any, record: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Data, task and trainer for samples that lie elsewhere: cut as the run's own where they are the same in number."""
    try:
        found = config.preflight(cfg)
        if (found[0].sizes, found[0].classes) == (record["data"]["sizes"], record["data"]["classes"]):
            return found
    except UserError:  # it need have no split of its own, nor every class
        pass
    config.fill(cfg.data, {"classes": record["data"]["classes"]})
    return config.preflight(cfg)
