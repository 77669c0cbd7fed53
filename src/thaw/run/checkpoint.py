"""Checkpoints: written so that a crash leaves the previous one whole, loaded so that no code in them runs."""

import contextlib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from thaw.errors import RunError, UserError
from thaw.run import checksum, disk
from thaw.run.claims import assert_plausible, assert_within
from thaw.run.unfinished import private, publish, unfinished


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames, because Lightning's own way goes through `TMPDIR` and is then no rename.

    A checksum lies beside each file. A kill at any point leaves the earlier file or the new one, and its sum.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save tensors and plain containers.

        Raises:
            RunError: the folder takes no such file; the earlier one is as it was.
            TypeError: the checkpoint holds what could not be loaded without running code.
        """
        path = Path(path)
        written, writer = unfinished(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(written, "xb", opener=private) as file:
                writer = checksum.HashingWriter(file)
                torch.save(checkpoint, writer)
                publish(file)
                file.flush()
                os.fsync(file.fileno())
            if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(written):
                raise TypeError(f"A checkpoint must hold tensors and plain containers; it holds {', '.join(foreign)}.")
            checksum.put(written, path, writer.digest)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else writer and writer.error
            if not cause:
                raise
            written.unlink(missing_ok=True)  # first, so that what it took counts as free
            raise RunError(disk.refusal(cause, path.parent, tensor_bytes(checkpoint))) from error
        finally:
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        for gone in (Path(path), checksum.sidecar(Path(path))):
            gone.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load tensors and plain containers onto the CPU; anything else in the file is refused, never run.

    Raises:
        UserError: no such file, one that does not fit its checksum, or no checkpoint of plain containers.
    """
    path = Path(path)
    if wrong := checksum.damage(path):
        raise UserError(_refused(path, wrong))
    return _load(path, mmap=False)


def peek(path: Path) -> dict[str, Any]:
    """The content of a file that is known to be whole; its tensors stay on the disk until they are looked at.

    Raises:
        UserError: no checkpoint of plain containers.
    """
    return _load(path, mmap=True)


def _load(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        assert_plausible(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        assert_within(loaded, path)
        return loaded
    except Exception as error:  # unpickling a hostile file raises almost anything
        raise UserError(_refused(path, f"holds something else ({type(error).__name__})")) from None


def _refused(path: Path, wrong: str) -> str:
    return (
        f"'{path}' must be a checkpoint of tensors and plain containers; it {wrong}. "
        "Run again with resume=never to start afresh."
    )


def tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(tensor_bytes, content.values()))
    return sum(map(tensor_bytes, content)) if isinstance(content, (list, tuple)) else 0


class KeptCheckpoint(ModelCheckpoint):
    """Finds its files again where the run's directory has been moved."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: self._here(state[key]) for key in paths}
        kept = {self._here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state | moved | {"dirpath": self.dirpath, "best_k_models": kept})
        self.current_score = state["current_score"]  # of the last epoch that was kept, which Lightning forgets

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath) / Path(path).name) if path else path


class BestCheckpoint(KeptCheckpoint):
    """Keeps the best epoch, and of equal ones the last: a small validation set has many, some before the last thaw.

    An epoch whose metric is not finite is never the best, also where there is no other.
    """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.best_model_path and checksum.damage(Path(self.best_model_path)):
            # A score without its weights would keep out every epoch to come.
            self.best_k_models, self.best_model_score, self.kth_best_model_path = {}, None, ""

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
    last = KeptCheckpoint(**always, filename="last", save_on_train_epoch_end=True)
    kept = [best, last]
    if every_n_steps is not None:
        kept.append(StepCheckpoint(**always, filename="last", every_n_train_steps=every_n_steps))
    if every_minutes is not None:
        interval = timedelta(minutes=every_minutes)
        kept.append(StepCheckpoint(**always, filename="last", train_time_interval=interval))
    return kept
