"""Steps without what Lightning pays for hooks that nobody has defined, and for looking up what does not change."""

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler

# The hooks of a step, which Lightning enters by a profiler's context for each callback, empty or not.
PER_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Unprofiled(PassThroughProfiler):
    """Measures nothing, by one context for all."""

    _context: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        return self._context


def lean(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Take what has nothing to do in a step from the callbacks and the module: Lightning passes over what is None."""
    if type(trainer.profiler) is PassThroughProfiler:
        trainer.profiler = Unprofiled()
    for held, kind in [(module, L.LightningModule), *((callback, L.Callback) for callback in trainer.callbacks)]:
        for hook in PER_STEP:
            if getattr(type(held), hook) is getattr(kind, hook):
                vars(held)[hook] = None
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint) and _saves_between_epochs_alone(callback):
            vars(callback)["on_train_batch_end"] = None
    trainer.fit_loop.epoch_loop._build_kwargs = _arguments


def _saves_between_epochs_alone(callback: ModelCheckpoint) -> bool:
    own = type(callback).on_train_batch_end is not ModelCheckpoint.on_train_batch_end
    return not own and callback._every_n_train_steps < 1 and callback._train_time_interval is None


def _arguments(given: MutableMapping[str, Any], batch: Any, batch_idx: int) -> MutableMapping[str, Any]:
    """Those of `training_step`, whose signature Lightning would read anew for each batch."""
    return given | {"batch": batch, "batch_idx": batch_idx}
