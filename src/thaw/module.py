"""The only LightningModule: a network, a task, an optimizer and a schedule."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from thaw.distributed import FSDP
from thaw.model.network import Network, Steps
from thaw.optimizer import lay_out_like_weights
from thaw.regularization import Regularization
from thaw.scheduler import GroupSchedule, Schedule
from thaw.task.task import Task

Inputs = Tensor | Mapping[str, Tensor]
Batch = tuple[Inputs, Tensor]


class FineTuner(L.LightningModule):
    """Fine-tunes a network on a task.

    Args:
        optimizer: builds the optimizer over the network's layer groups.
        schedule: factor of every group's rate, by the share of the run done.
        monitor: full name of the metric that chooses the best epoch and drives `plateau`.
        seed: with the epoch, it fixes what dropout and mixing draw.
        config: the resolved configuration, as plain containers, stored in every checkpoint.
        regularization: its penalty is added to what is minimised; `train/loss` stays the task's own, so that curves
            with and without it compare, and the penalty is told as `train/penalty`.

    Attributes:
        gradient_norms: of each gradient of a step (parameters,), where they are known before it is clipped.
    """

    gradient_norms: Tensor | None = None

    def __init__(
        self,
        network: Network,
        task: Task,
        optimizer: Callable[[Network], Optimizer],
        schedule: Schedule,
        monitor: str = "val/accuracy",
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        regularization: Regularization | None = None,
    ) -> None:
        super().__init__()
        self.network, self.task, self.optimizer, self.schedule = network, task, optimizer, schedule
        self.monitor, self.seed = monitor, seed
        self.regularization = regularization or Regularization()
        self.regularization.start(network)
        self._sharded = False
        # a row of predictions.csv for each sample of an evaluation after the training
        self.predictions: list[dict[str, Any]] = []
        optimizer(network)  # a wrong option must show before the run begins
        self.save_hyperparameters(dict(config or {}))

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes twice around each hook which it is, and a module's own way looks for tensors first.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, inputs: Inputs) -> Tensor | Steps:
        return self.network(inputs)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(self.network)
        optimizer.register_step_post_hook(lambda *_: self.regularization.after_step(self.network, optimizer))
        scheduler = GroupSchedule(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def configure_model(self) -> None:
        if not isinstance(self.trainer.strategy, FSDP):  # which takes no weights laid out otherwise
            self.network.lay_out(self.trainer.strategy.root_device)
        elif not self._sharded:
            self.trainer.strategy.shard(self.network)
            self._sharded = True

    def on_train_start(self) -> None:
        # Asked any earlier, Lightning would let the loader's workers fetch epoch 0 before it restores a checkpoint.
        self.lr_schedulers().set_steps(int(self.trainer.estimated_stepping_batches))
        lay_out_like_weights(self.optimizers().optimizer)
        if self.trainer.fit_loop.restarted_mid_epoch:
            # Lightning tells nobody that the epoch goes on, and what trains in it would stay unset.
            for callback in self.trainer.callbacks:
                callback.on_train_epoch_start(self.trainer, self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout and mixing draw the same after a resume as without it, and nothing need be remembered for that.
        seed = batch_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        # Not `torch.manual_seed`, which writes down a traceback for each kind of device that is not there.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:  # as torch does it, without its records for a profiler
            for parameter in group["params"]:
                parameter.grad = None

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        norms, self.gradient_norms = self.gradient_norms, None
        if norms is None or not gradient_clip_val or gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:  # as torch does it, which would compute the norms once more
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            clip_grads_with_norm_(parameters, gradient_clip_val, torch.linalg.vector_norm(norms))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, penalty = self._step("train", batch)[0], self.regularization.penalty(self.network)
        return loss + penalty if isinstance(penalty, Tensor) else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._keep(self._step("val", batch)[1], batch[1])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._keep(self._step("test", batch)[1], batch[1])

    def _keep(self, outputs: Tensor | Steps, targets: Tensor) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.predictions += self.task.rows(outputs, targets)

    def _step(self, split: str, batch: Batch) -> tuple[Tensor, Tensor | Steps]:
        inputs, targets = batch
        outputs = self.network(inputs)
        loss = self.task.loss(outputs, targets)
        self.task.update(split, loss, outputs, targets)
        return loss, outputs

    def on_train_epoch_end(self) -> None:
        self._log("train")
        self.log_dict(self.regularization.measure(self.network))

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def _log(self, split: str) -> None:
        metrics = self.task.compute(split)
        self.log_dict(metrics)
        if self.monitor in metrics and self.trainer.state.fn == TrainerFn.FITTING:
            self.schedule.observe(float(metrics[self.monitor]), self.task.direction(self.monitor))

    def on_test_epoch_end(self) -> None:
        self._log("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        metrics = self.trainer.callback_metrics
        checkpoint["metrics"] = {name: float(metrics[name]) for name in metrics if name.startswith(("train/", "val/"))}
        checkpoint["gathered"] = self.task.gathered("train")
        checkpoint["should_stop"] = self.trainer.should_stop  # else a run that has stopped early trains another epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0:  # it was gathered from all ranks
            self.task.load_gathered("train", checkpoint["gathered"])
        self.trainer.should_stop = checkpoint["should_stop"]


def batch_seed(seed: int, epoch: int, batch: int, rank: int = 0) -> int:
    """What dropout and mixing draw a batch by."""
    return hash((seed, epoch, batch, rank)) & 0x7FFF_FFFF_FFFF_FFFF
