"""Linear probes that differ in rate, decay, dropout or schedule alone: from the body's features to their records."""

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from thaw import config
from thaw.build import TRAINER, fine_tuner, settle
from thaw.cache import Cache, default_folder
from thaw.errors import NonFiniteError, RunError, UserError
from thaw.memory import peak_memory
from thaw.module import batch_seed
from thaw.run import record
from thaw.run.checkpoint import AtomicCheckpointIO
from thaw.run.finite import ABSURD
from thaw.run.run import Run
from thaw.search.batchable import OF_THE_HEAD, refusals
from thaw.search.heads import DECOUPLED, EachAtItsRate, Heads
from thaw.search.probe_features import Features
from thaw.search.probe_rules import Probe

HEAD = "head.safetensors"  # of the best epoch, in the run's folder of checkpoints


class Batch:
    """The heads of several runs, trained at once.

    Args:
        configurations: name → configuration of each run; they differ in `OF_THE_HEAD` alone.
        runs: name → run, which this keeps its record of.

    Raises:
        UserError: see `refusals`.
    """

    def __init__(self, configurations: Mapping[str, Any], runs: Mapping[str, Run]) -> None:
        cfg = next(iter(configurations.values()))
        self.runs, self.seed, self.reads_test = runs, cfg.seed, cfg.test
        self.data, self.task, bare = config.preflight(cfg)
        self.monitor = cfg.monitor or self.task.monitor
        self.mode = config.monitor_direction(self.monitor, self.task)
        self.module, self.freezing = fine_tuner(cfg, self.data, self.task, self.monitor)
        precision, self.epochs = settle(cfg, self.module, self.freezing, self.data, bare)
        network, self.order = self.module.network, self.data.batches("train")
        if wrong := refusals(self.module, self.freezing, self.data):
            raise UserError(*wrong)
        if (rate := network.head.dropout.p) != cfg.model.get("dropout", rate):
            raise UserError(f"model.dropout must be the head's with search=probe; that is {rate}. Write search=grid.")
        network.train_groups(["head"])
        trainer = config.build(cfg.trainer, logger=False, precision=precision, enable_checkpointing=False, **TRAINER)
        self._to_device, self.context = trainer.strategy.batch_to_device, trainer.precision_plugin.forward_context
        device = trainer.strategy.root_device
        self.module.to(device)
        network.lay_out(device)
        self.accumulated = bare.accumulate_grad_batches
        self.steps = bare.steps_an_epoch(self.data) * self.epochs
        cache = Cache(Path(cfg.cache.dir or default_folder()), int(cfg.cache.max_gb * 1e9))
        self.features = Features(network, self.data, cache, self.on_device, self.context)
        self._describe(configurations, {"precision": precision, "max_epochs": self.epochs})

        create, schedule = config.builder(cfg.optimizer), config.builder(cfg.scheduler)
        callbacks = config.build_each(cfg.callbacks, monitor=self.monitor, mode=self.mode)
        stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]

        def probe(name: str, own: Any) -> Probe:
            """What a run of its own would build, but from one reading of what all share."""
            settings = {key: own.optimizer[key] for key in OF_THE_HEAD["optimizer"] if key in own.optimizer}
            groups = create(network, **settings).param_groups
            group = next(group for group in groups if group["name"] == "head/decay")
            return Probe(name, own.model.get("dropout", rate), group, schedule(), copy.deepcopy(stopping), self.mode)

        probes = [probe(name, own) for name, own in configurations.items()]
        self.probes = sorted(probes, key=lambda probe: probe.dropout)
        self.heads = Heads(network.head.linear, [probe.dropout for probe in self.probes]).to(device)
        self.each = EachAtItsRate(
            self.heads,
            create,
            torch.tensor([probe.lr for probe in self.probes], device=device),
            torch.tensor([probe.weight_decay for probe in self.probes], device=device),
            DECOUPLED[cfg.optimizer.name] or bool((cfg.optimizer.options or {}).get("decoupled_weight_decay")),
            cfg.trainer.get("gradient_clip_val"),
            cfg.trainer.get("gradient_clip_algorithm") or "norm",
        )
        self.best = {name: parameter.detach().clone() for name, parameter in self.heads.named_parameters()}
        self._step = 0
        self._wrong_at = torch.zeros(len(self.probes), dtype=torch.int64, device=device)  # step; 0 is none

    def on_device(self, batch: Any) -> Any:
        """As a trainer puts a batch where the network is."""
        return self.data.on_after_batch_transfer(self._to_device(batch), 0)

    def _describe(self, configurations: Mapping[str, Any], settled: Mapping[str, Any]) -> None:
        told = {"seed": self.seed, "monitor": self.monitor, "mode": self.mode}
        told["data"] = record.describe(self.data, self.data.quality())
        told["settled"] = {**settled, "batch_size": self.data.batch_size, "processes": 1}
        for name, run in self.runs.items():
            run.update(**told)
            config.write(configurations[name], run.folder / "config.yaml")

    def train(self) -> Iterator[tuple[int, dict[str, RunError | None]]]:
        """Train until all have ended, one batch at each turn.

        Yields:
            the epoch; and of those that have ended name → error, or None.
        """
        self._began = time.monotonic()
        left = {probe.name for probe in self.probes}
        for epoch in range(self.epochs):
            losses = yield from self._train_epoch(epoch)
            ended = self._end_epoch(left, losses.tolist())
            yield epoch, ended
            left -= ended.keys()
            if not left:
                return

    def _train_epoch(self, epoch: int) -> Iterator[tuple[int, dict[str, RunError | None]]]:
        """An epoch as of each head alone; returns the mean loss of each (heads,)."""
        features, variant = self.features.rows("train"), epoch % self.data.variants * self.data.sizes["train"]
        self.task.train()
        total, number = torch.zeros_like(self.each.lr), 0
        batches = self.order.batches(epoch)
        for index, batch in enumerate(batches):
            held = features[[variant + row for row in batch]], self.data.batch_targets("train", [(0, r) for r in batch])
            inputs, targets = self.on_device(held)
            with self.context():
                outputs = self.heads(inputs, batch_seed(self.seed, epoch, index))
                losses = vmap(self.task.loss, (0, None))(outputs, targets)
            (losses.sum() / self.accumulated).backward()
            losses, count = losses.detach().float(), self.task.count(targets)
            total, number = total + losses * count, number + count
            if (index + 1) % self.accumulated == 0 or index + 1 == len(batches):
                share = min(1.0, (self._step + 1) / (self.steps + 1))
                norms = self.each.step(total.new_tensor([probe.schedule(share) for probe in self.probes]))
                self._step += 1
                wrong = ~(losses.abs() < ABSURD) | ~norms.isfinite()
                self._wrong_at += self._step * (wrong & (self._wrong_at == 0))
            yield epoch, {}
        return total / number

    @torch.no_grad()
    def _end_epoch(self, left: set[str], losses: list[float]) -> dict[str, RunError | None]:
        ended: dict[str, RunError | None] = {}
        self.task.train(False)
        finite = self.heads.weight.isfinite().all(dim=(1, 2)).tolist()
        for index, (probe, wrong_at) in enumerate(zip(self.probes, self._wrong_at.tolist(), strict=True)):
            if probe.name not in left:
                continue
            if wrong_at or not finite[index]:
                ended[probe.name] = NonFiniteError(
                    f"Training must stay finite; at step {wrong_at or self._step} the loss or its gradient is not. "
                    "Write a smaller optimizer.lr, e.g. a tenth."
                )
                continue
            if probe.observe(self._monitored(index), losses[index]):
                for name, parameter in self.heads.named_parameters():
                    self.best[name][index] = parameter[index]
            if probe.stops() or len(probe.history) == self.epochs:
                ended[probe.name] = self._end(index, probe)
        return ended

    def _monitored(self, index: int) -> float:
        """The monitored metric of a head on validation."""
        outputs, targets = self._outputs("val", self.heads.weight[index], self.heads.bias[index])
        name = self.monitor.partition("/")[2]
        if name == "loss":
            return float(self.task.loss(outputs, targets))
        metric = self.task.metrics["val_"][name]
        metric.update(*self.task.measured(outputs, targets))
        value = metric.compute().float().mean()
        metric.reset()
        return float(value)

    def _outputs(self, split: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        features, targets = self.features.whole(split)
        with self.context():
            return F.linear(features, weight, bias), targets

    def _measure(self, split: str, weight: Tensor, bias: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
        """All metrics of a head on a split, its outputs, and the targets."""
        self.task.train(False)
        outputs, targets = self._outputs(split, weight, bias)
        self.task.update(split, self.task.loss(outputs, targets), outputs, targets)
        return {name: float(value) for name, value in self.task.compute(split).items()}, outputs, targets

    def _end(self, index: int, probe: Probe) -> RunError | None:
        """Write down what a head has come to."""
        if probe.best_epoch is None:
            return RunError(
                f"monitor must be a number in some epoch; {self.monitor} was NaN or Inf in all, and so none is the "
                "best. Write another monitor, e.g. monitor=val/loss."
            )
        run, network = self.runs[probe.name], self.module.network
        state = {name: held[index].clone() for name, held in self.best.items()}
        (run.folder / "checkpoints").mkdir(exist_ok=True)
        save_file(state, run.folder / "checkpoints" / HEAD)
        metrics, *_ = self._measure("val", **state)
        epochs, groups = len(probe.history), list(network.groups)
        seconds = time.monotonic() - self._began
        run.update(
            history=probe.history,
            epochs=epochs,
            steps=self.steps * epochs // self.epochs,
            samples_per_second=round(epochs * self.data.sizes["train"] / max(seconds, 1e-9), 1),
            peak_memory_bytes=peak_memory(),
            parameters={
                "total": sum(parameter.numel() for parameter in network.parameters()),
                "trainable_at_end": sum(parameter.numel() for parameter in network.head.parameters()),
            },
            timeline=[stage._asdict() for stage in self.freezing.stages(groups, 0, self.epochs)],
            best_epoch=probe.best_epoch,
            metrics={"train/loss": probe.loss} | metrics,
            split="val",
        )
        if self.reads_test:
            self.read_test(probe.name)
        return None

    @torch.no_grad()
    def read_test(self, name: str) -> None:
        """Measure a head that has ended on the test split, where there is one, and leave what any other run leaves."""
        run, linear = self.runs[name], self.module.network.head.linear
        linear.load_state_dict(load_file(run.folder / "checkpoints" / HEAD))
        split = "test" if "test" in self.data.splits else "val"
        metrics, outputs, targets = self._measure(split, linear.weight, linear.bias)
        rows = self.task.rows(outputs, targets)
        self.module.predictions = [rows[index] for batch in self.data.batches(split).batches(0) for index in batch]
        found = record.predictions(self.data, self.module, split)
        record.write_predictions(run, self.data, self.module.task, split, found)
        epoch, step, before = (run.record[key] for key in ("best_epoch", "steps", "metrics"))
        state = {"epoch": epoch, "global_step": step, "metrics": before, "state_dict": self.module.state_dict()}
        path = run.folder / "checkpoints" / "best.ckpt"
        AtomicCheckpointIO().save_checkpoint(state, path)
        run.update(metrics=before | metrics, split=split, checkpoints={"best": str(path)})
