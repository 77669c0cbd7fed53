"""NaN, Inf or an absurd loss stops a run within a few steps, and never reaches `last` or `best`."""

import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from thaw.console import say
from thaw.data.datamodule import DataModule
from thaw.data.sampler import EpochBatches
from thaw.distributed import gathered
from thaw.errors import NonFiniteError
from thaw.model.network import Network
from thaw.run.run import Run

# Steps between two looks: a look waits for the device, and in several processes for all of them.
LOOK_EVERY = 8
# Losses are means over samples, of numbers in standard deviations or nats: more than this is no loss but a runaway.
ABSURD = 1e8
# Steps in a row that a GradScaler may skip: sixteen halvings take it from the scale it begins with to 1.
SKIPS = 20
# Names on the screen; run.json holds all.
SHOWN = 8


@dataclass
class Step:
    """What is needed to tell of a step, should it be the one.

    Args:
        seen: the losses of its batches, and the norm of each gradient (batches + parameters,), on the device.
    """

    number: int
    epoch: int
    batches: list[int]
    lr: float
    seen: Tensor
    groups: list[str]


class Finite(L.Callback):
    """Watches every loss and gradient on the device, and looks at what it saw every few steps and before each save.

    On one CPU it looks before every optimizer step, so that not even the weights in memory are touched. What a
    GradScaler skips is its own business, until it skips twenty steps in a row.
    """

    def __init__(self, run: Run, data: DataModule) -> None:
        self.run, self.data = run, data
        self._losses: list[Tensor] = []
        self._batches: list[int] = []
        self._steps: list[Step] = []
        self._skipped, self._stopped, self._each = 0, False, False
        self._metrics: dict[str, list[int]] = dict(run.record.get("not_finite", {}))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._each = looks_each_step(trainer)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float())
        self._batches.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        held = [(group["name"], p.grad) for group in optimizer.param_groups for p in group["params"]]
        groups, gradients = zip(*[(name, _local(grad)) for name, grad in held if grad is not None], strict=True)
        seen = torch.stack([*self._losses, *torch._foreach_norm(gradients, 2, torch.float32)])
        if not any(isinstance(grad, DTensor) for _, grad in held):  # else these are norms of shards
            pl_module.gradient_norms = seen[len(self._losses) :]
        lr = max(group["lr"] for group in optimizer.param_groups)
        number = trainer.global_step + 1
        self._steps.append(Step(number, trainer.current_epoch, self._batches, lr, seen, list(groups)))
        self._losses, self._batches = [], []
        if self._each or len(self._steps) >= LOOK_EVERY:
            self._look(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._stopped or trainer.state.fn != TrainerFn.FITTING:
            return
        self._look(trainer)
        # A finite step may still be too long for the weights.
        group = _not_finite(pl_module.network)
        if trainer.strategy.reduce_boolean_decision(group is not None, all=False):
            lr = max(torch_group["lr"] for torch_group in trainer.optimizers[0].param_groups)
            fact = {"step": trainer.global_step, "epoch": trainer.current_epoch, "lr": lr, "group": group}
            self._stop(trainer, fact | {"what": f"weights of '{group}' are not", "samples": []} if group else None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        for name, value in metrics.items():
            if not math.isfinite(value):
                self._metrics.setdefault(name, []).append(trainer.current_epoch + 1)
                chosen = ", and never best" if name == pl_module.monitor else ""
                say(f"[yellow]epoch {trainer.current_epoch + 1}: {name} is {value}{chosen}.[/]")
        if self._metrics:
            self.run.update(not_finite=self._metrics)

    def _look(self, trainer: L.Trainer) -> None:
        steps, self._steps = self._steps, []
        found = None
        scaled = _scaler(trainer) is not None
        limit = math.inf if scaled else ABSURD  # scaled losses are large by intent
        values = torch.cat([step.seen for step in steps]).tolist() if steps else []  # the only wait for the device
        for step in steps:
            seen, values = values[: len(step.seen)], values[len(step.seen) :]
            losses, norms = seen[: len(step.batches)], seen[len(step.batches) :]
            fine = all(abs(loss) < limit for loss in losses) and all(map(math.isfinite, norms))
            self._skipped = 0 if fine else self._skipped + 1
            if self._skipped > (SKIPS if scaled else 0):
                found = self._fact(step, losses, norms)
                break
        if trainer.strategy.reduce_boolean_decision(found is not None, all=False):
            self._stop(trainer, found)

    def _fact(self, step: Step, losses: list[float], norms: list[float]) -> dict[str, Any]:
        runaway = [loss for loss in losses if not abs(loss) < ABSURD]
        # Of several that are not finite the last in forward order: there the backward pass met it first.
        worst = max(
            range(len(norms)), key=lambda n: (not math.isfinite(norms[n]), norms[n] if math.isfinite(norms[n]) else n)
        )
        guilty = [b for b, loss in zip(step.batches, losses, strict=True) if not runaway or not abs(loss) < ABSURD]
        return {
            "step": step.number,
            "epoch": step.epoch,
            "batches": guilty,
            "lr": step.lr,
            "loss": losses[0] if not runaway else runaway[0],
            "group": step.groups[worst].partition("/")[0],
            "gradient_norm": norms[worst],
            "what": f"loss is {runaway[0]:.3g}" if runaway else f"gradient is {norms[worst]}, the loss {losses[0]:.3g}",
            "samples": self._samples(step.epoch, guilty),
        }

    def _samples(self, epoch: int, batches: list[int]) -> list[str]:
        """Names of the samples; of a stream, which has no order to ask for, none."""
        order = self.data.batches("train")
        if not isinstance(order, EpochBatches):
            return []
        names, cut = list(self.data.names(self.data.splits["train"])), order.batches(epoch)
        return [names[index] for batch in batches for index in cut[batch]]

    def _stop(self, trainer: L.Trainer, fact: dict[str, Any] | None) -> None:
        self._stopped = True
        facts = gathered([fact] if fact else [])
        # The gradient is of all ranks; the loss tells which of them began.
        facts = [fact for fact in facts if fact["what"].startswith("loss")] or facts
        fact = facts[0] | {"samples": [name for each in facts for name in each["samples"]]}
        self.run.update(failure=fact)
        crash = self.run.folder / "checkpoints" / "crash.ckpt"
        try:
            trainer.save_checkpoint(crash)
            kept = f"The state lies in {crash}; nothing of it is in last.ckpt or best.ckpt."
        except Exception as error:  # what went wrong first is what must be told
            kept = f"{crash} could not be written ({type(error).__name__}); last.ckpt and best.ckpt are untouched."
        shown = ", ".join(f"'{name}'" for name in fact["samples"][:SHOWN])
        rest = len(fact["samples"]) - SHOWN
        more = f" and {rest} more (run.json)" if rest > 0 else ""
        norm = f" ({fact['gradient_norm']:.3g})" if "gradient_norm" in fact else ""
        batch = f", batch {fact['batches'][0] + 1}" if fact.get("batches") else ""
        lines = [
            f"Training must stay finite; at step {fact['step']} (epoch {fact['epoch'] + 1}{batch}) the {fact['what']}.",
            f"Largest gradient: {fact['group']}{norm}. Highest rate: {fact['lr']:.3g}.",
            f"Samples of the batch: {shown}{more}." if shown else "",
            kept,
            "Write a smaller optimizer.lr, e.g. a tenth, or trainer.precision=32-true; or look at the samples.",
        ]
        raise NonFiniteError("\n".join(line for line in lines if line))


def looks_each_step(trainer: L.Trainer) -> bool:
    """Whether a look has nothing to wait for."""
    return trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1


def _scaler(trainer: L.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _not_finite(network: Network) -> str | None:
    """The first layer group whose weights, or BatchNorm whose statistics, have moved to what is not finite.

    What is frozen is proven not to move. There is one wait for the device.
    """
    held = [(group, _local(p)) for group, ps in network.groups.items() for p in ps.values() if p.requires_grad]
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.training and module.running_var is not None:
            held += [(name, module.running_mean), (name, module.running_var)]
    held = [(name, tensor.detach()) for name, tensor in held if tensor.numel()]
    if not held:  # of a shard
        return None
    largest = torch.stack(torch._foreach_norm([tensor for _, tensor in held], torch.inf, torch.float32)).tolist()
    return next((name for (name, _), value in zip(held, largest, strict=True) if not math.isfinite(value)), None)
