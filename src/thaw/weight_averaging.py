"""Averages of the weights along a run: Lightning's callback, kept to what it does to frozen weights and checkpoints."""

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from pydantic import Field
from torch import Tensor

Share = Annotated[float, Field(gt=0, le=1)]


class AveragedWeights(WeightAveraging):
    """Validates, keeps as `best` and tests the average; trains on, also from `last`, with the weights themselves.

    Running statistics of BatchNorm are averaged as the weights are. Recomputing them (`update_bn`) would reset those of
    frozen layers, put frozen modules in train mode, and cost a pass over the training data for each validation; on
    digits with 800 labels it made no difference to the accuracy, at the model's own rate and at ten times it.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def weight(self, averaged: int) -> float:
        """How far the average moves towards the current weights, after it has been updated `averaged` times."""
        raise NotImplementedError

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether to update the average after this optimizer step."""
        raise NotImplementedError

    @torch.no_grad()
    def _average(self, average: list[Tensor], current: list[Tensor], averaged: Tensor) -> None:
        if average[0].is_floating_point():
            # Exact where both are equal: frozen weights stay what they were. torch's `get_ema_avg_fn`, which Lightning
            # takes, is d·w + (1 − d)·w, and that is not w.
            torch._foreach_lerp_(average, current, self.weight(int(averaged)))
        else:  # counters and position ids have no average; torch's own stops a counter, and divides integers on a GPU
            torch._foreach_copy_(average, current)

    @property
    def _has_average(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning copies the module in `setup`, before it is on its device: the average would stay on the CPU.
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step and self.is_due(trainer):
            self._average_model.update_parameters(pl_module)
            self._latest_update_step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning would update here, after the validation: `best` would hold other weights than were measured.
        pass

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Only in a fit: a validation after it measures the weights that were loaded for it. And only an average that
        # has begun: Lightning would measure the weights the run started from.
        if trainer.state.fn == TrainerFn.FITTING and self._has_average:
            self._swap_models(pl_module)

    on_validation_epoch_end = on_validation_epoch_start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._has_average:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._has_average:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None and "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class EMA(AveragedWeights):
    """An exponential moving average over all steps (arXiv:2411.18704).

    Args:
        decay: of the average, at most; it rises as (1 + n) / (10 + n) with the steps, so that a short run's average
            forgets the head it started from.
    """

    def __init__(self, decay: Annotated[float, Field(gt=0, lt=1)] = 0.999) -> None:
        super().__init__()
        self.decay = decay

    def weight(self, averaged: int) -> float:
        return 1 - min(self.decay, (1 + averaged) / (10 + averaged))

    def is_due(self, trainer: L.Trainer) -> bool:
        return True


class SWA(AveragedWeights):
    """The mean of the weights after each of the last epochs (stochastic weight averaging, arXiv:1803.05407).

    The rate stays what `scheduler` says. Early stopping and `best` count from the first averaged epoch on.

    Args:
        share: of the epochs.
    """

    def __init__(self, share: Share = 0.25) -> None:
        super().__init__()
        self.share = share

    def weight(self, averaged: int) -> float:
        return 1 / (averaged + 1)

    def first_epoch(self, epochs: int) -> int:
        """The epoch, counted from 0, after which the average begins."""
        return epochs - max(1, round(self.share * epochs))

    def is_due(self, trainer: L.Trainer) -> bool:
        return trainer.is_last_batch and trainer.current_epoch >= self.first_epoch(trainer.max_epochs)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        first = self.first_epoch(trainer.max_epochs)
        for stopping in trainer.early_stopping_callbacks:
            if trainer.current_epoch < first:
                stopping.wait_count = -1  # 0 after this epoch: a run that stops now has no average
            elif trainer.current_epoch == first:
                _forget_best(stopping)
        if trainer.current_epoch == first:
            for checkpoint in trainer.checkpoint_callbacks:
                _forget_best(checkpoint)


def _forget_best(callback: L.Callback) -> None:
    if isinstance(callback, EarlyStopping):
        worst = torch.inf if callback.monitor_op is torch.lt else -torch.inf
        callback.best_score, callback.wait_count = torch.tensor(worst), 0
    elif isinstance(callback, ModelCheckpoint) and callback.monitor:
        callback.best_k_models, callback.best_model_score, callback.kth_best_model_path = {}, None, ""
