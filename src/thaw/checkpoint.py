"""Checkpoints: written so that a crash leaves the previous one whole, loaded so that no code in them runs."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from thaw.errors import UserError


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames, because Lightning's own way goes through `TMPDIR` and is then no rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(unfinished, "xb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load tensors and plain containers onto the CPU; anything else in the file is refused, never run.

    Raises:
        UserError: no such file, or no checkpoint of plain containers.
    """
    try:
        return torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"A checkpoint must exist at '{path}'. Run again with resume=never to start afresh.") from None
    except Exception as error:  # unpickling a broken or hostile file raises almost anything
        raise UserError(
            f"'{path}' must be a checkpoint of tensors and plain containers; it is broken or holds something else "
            f"({type(error).__name__}). Run again with resume=never to start afresh."
        ) from None


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch, and of equal ones the last: a small validation set has many, some before the last thaw."""

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        tied = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        return tied or super().check_monitor_top_k(trainer, current)


def checkpoints(
    folder: Path, monitor: str, mode: Literal["min", "max"], every_n_steps: int | None = None
) -> list[ModelCheckpoint]:
    """Callbacks that keep `best.ckpt`, by the monitor, and `last.ckpt`, after each epoch and every n steps.

    Two callbacks, because `save_last` beside a monitor is not the last state but the last one that was best.
    """
    always: Mapping[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    best = BestCheckpoint(**always, filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True)
    last = ModelCheckpoint(**always, filename="last", save_on_train_epoch_end=True)
    if every_n_steps is None:
        return [best, last]
    return [best, last, ModelCheckpoint(**always, filename="last", every_n_train_steps=every_n_steps)]
