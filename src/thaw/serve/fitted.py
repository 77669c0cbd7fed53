"""A finished run's network with its weights, from the run's directory alone: no data, no pretrained weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw import config, defaults
from thaw.build import fine_tuner
from thaw.data.inputs import Inputs, inputs_of
from thaw.errors import UserError, first_line
from thaw.model.files import fingerprint
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.run.checkpoint import load_checkpoint
from thaw.run.restore import read_run, settings_of
from thaw.task.task import Task


@dataclass(frozen=True)
class Fitted:
    """What a run has come to.

    Args:
        record: its run.json.
        settings: its config.yaml, as plain containers; the model's without pretrained weights.
        inputs: prepares samples as the run did.
        module: holds task and network, with the weights of the checkpoint, in eval mode on the CPU.
    """

    folder: Path
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    inputs: Inputs
    module: FineTuner

    @property
    def task(self) -> Task:
        return self.module.task

    @property
    def network(self) -> Network:
        return self.module.network

    @property
    def precision(self) -> str:
        """What the run computed in."""
        accelerator = self.settings["trainer"].get("accelerator", "auto")
        return self.record.get("settled", {}).get("precision") or defaults.default_precision(accelerator)


def fitted(folder: str | Path, role: str = "best") -> Fitted:
    """Build a finished run's network and load its checkpoint.

    Args:
        role: `best` or `last`.

    Raises:
        UserError: no finished run, one that was changed since, or a checkpoint that does not fit it.
    """
    folder = Path(folder)
    record, _ = read_run(folder)
    cfg = settings_of(folder, weights=False)
    cfg.model.update({"gradient_checkpointing": False} if "gradient_checkpointing" in cfg.model else {})
    # The samples need not be there.
    if problems := [problem for problem in config.validate(cfg) if not problem.startswith(("data.", "paths."))]:
        raise UserError(*(f"'{folder}/config.yaml': {problem}" for problem in problems))
    kind = config.find_target(cfg.task._target_)
    inputs, classes = inputs_of(record.get("inputs"), kind.target), _classes(folder, record)
    # Counts and the spread of numbers are of the training; the checkpoint holds what predicting needs of them.
    ones = [1] * len(classes)
    known = {"classes": classes, "class_counts": ones, "samples": len(classes), "mean": ones, "std": ones}
    task = config.build(cfg.task, **config.fitting(cfg.task, known))
    module, _ = fine_tuner(cfg, inputs, task, record.get("monitor") or task.monitor)
    if fingerprint(module.network.preprocessing) != inputs.known["preprocessing"]:
        raise UserError(
            f"The inputs of '{folder}' must be prepared as they were in training; its files or libraries do it "
            "otherwise now. Copy the whole directory of the run again, or install the versions in its run.json."
        )
    state = load_checkpoint(folder / "checkpoints" / f"{role}.ckpt").get("state_dict")
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [first_line(error)]
        raise UserError(
            f"'{folder}/checkpoints/{role}.ckpt' must fit the network and the {len(classes)} classes of the run: "
            f"{lines[-1][:200]}"
        ) from None
    return Fitted(folder, record, config.plain(cfg), inputs, module.train(False))


def _classes(folder: Path, record: Mapping[str, Any]) -> list[str]:
    classes = record.get("data", {}).get("classes") if isinstance(record.get("data"), Mapping) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"'{folder}/run.json' must name the classes; copy the whole directory of the run again.")
    return classes
