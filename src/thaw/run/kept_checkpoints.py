"""Which checkpoints a run keeps: the best epoch by the monitor, and the last state."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from thaw.errors import RunError
from thaw.run import checksum
from thaw.run.checkpoint import AtomicCheckpointIO

# How many times what a save takes may pass before the next, where epochs are shorter than it.
TIMES = 10


class KeptCheckpoint(ModelCheckpoint):
    """A checkpoint under one name, of which a later process need not know.

    Attributes:
        saved_at: (epoch, step) of the last save in this process.
    """

    saved_at: tuple[int, int] | None = None

    def is_of(self, trainer: L.Trainer) -> bool:
        """Whether it has saved what the trainer is at now."""
        return self.saved_at == (trainer.current_epoch, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self._write(trainer, filepath)
        self.saved_at = (trainer.current_epoch, trainer.global_step)

    def _write(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)


class BestCheckpoint(KeptCheckpoint):
    """Keeps the best epoch, and of equal ones the last: a small validation set has many, some before the last thaw.

    An epoch whose metric is not finite, or that was not validated, is never the best, also where there is no other. Its
    file is found again where the run's directory has been moved.
    """

    _validated: int | None = None  # the last epoch that was; Lightning tells its metrics in those after it too

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validated == trainer.current_epoch or not self.monitor.startswith("val/"):
            super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return ModelCheckpoint.state_dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: self._here(state[key]) for key in paths}
        kept = {self._here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state | moved | {"dirpath": self.dirpath, "best_k_models": kept})
        self.current_score = state["current_score"]  # of the last epoch that was kept, which Lightning forgets
        if self.best_model_path and checksum.damage(Path(self.best_model_path)):
            # A score without its weights would keep out every epoch to come.
            self.best_k_models, self.best_model_score, self.kth_best_model_path = {}, None, ""

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath) / Path(path).name) if path else path

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if current is not None and not current.isfinite():
            return False
        tied = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        return tied or super().check_monitor_top_k(trainer, current)

    @property
    def path(self) -> str:
        """Where the best epoch lies.

        Raises:
            RunError: there is none.
        """
        if self.best_model_path:
            return self.best_model_path
        raise RunError(
            f"monitor must be a number in some epoch; {self.monitor} was NaN or Inf in all, and so none is the best.\n"
            f"The last lies in {self.dirpath}/last.ckpt. Write another monitor, e.g. monitor=val/loss."
        )


class LastCheckpoint(KeptCheckpoint):
    """Keeps the last epoch; one that has just been saved as the best is copied.

    Where batches come from the cache, an epoch may take less time than to save it. Until the last one, no more than a
    tenth of the time then goes into this, and a kill costs what was done in ten times a save's time, and an epoch.

    Args:
        best: stands before it.
    """

    def __init__(self, best: BestCheckpoint, **checkpoint: Any) -> None:
        super().__init__(**checkpoint)
        self.best, self._due = best, 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        began = time.monotonic()
        cached = "train" in getattr(trainer.datamodule, "ready", {})
        ends = trainer.should_stop or trainer.max_steps > 0 or trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.strategy.reduce_boolean_decision(not cached or ends or began >= self._due, all=False):
            super().on_train_epoch_end(trainer, pl_module)
            self._due = time.monotonic() + TIMES * (time.monotonic() - began)

    def _write(self, trainer: L.Trainer, filepath: str) -> None:
        files = trainer.strategy.checkpoint_io
        if not self.best.is_of(trainer) or not isinstance(files, AtomicCheckpointIO):
            super()._write(trainer, filepath)
            return
        if trainer.is_global_zero:
            files.copy_checkpoint(Path(self.best.path), Path(filepath))
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)
        trainer.strategy.barrier("LastCheckpoint")
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath


class StepCheckpoint(KeptCheckpoint):
    """Saves between two steps of an epoch; not after its last, where Lightning would take it for validated."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        if between_steps(trainer):
            super().on_train_batch_end(trainer, pl_module, *batch)


def between_steps(trainer: L.Trainer) -> bool:
    """Whether, after a batch, no gradient is gathered and more steps of the epoch are to come."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return not trainer.is_last_batch and done % trainer.accumulate_grad_batches == 0


def checkpoints(
    folder: Path,
    monitor: str,
    mode: Literal["min", "max"],
    every_n_steps: int | None = None,
    every_minutes: float | None = None,
) -> list[ModelCheckpoint]:
    """Callbacks that keep `best.ckpt`, by the monitor, and `last.ckpt`, after each epoch and within it.

    Two callbacks, because `save_last` beside a monitor is not the last state but the last one that was best.
    """
    always: Mapping[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    best = BestCheckpoint(**always, filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True)
    last = LastCheckpoint(best, **always, filename="last", save_on_train_epoch_end=True)
    kept = [best, last]
    if every_n_steps is not None:
        kept.append(StepCheckpoint(**always, filename="last", every_n_train_steps=every_n_steps))
    if every_minutes is not None:
        interval = timedelta(minutes=every_minutes)
        kept.append(StepCheckpoint(**always, filename="last", train_time_interval=interval))
    return kept
