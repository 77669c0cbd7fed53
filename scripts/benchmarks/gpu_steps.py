"""Seconds of one step on a GPU: by the trainer of a run, by a bare PyTorch loop, and by the Trainer of transformers."""

import copy
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

import thaw.trainer
from benchmarks.networks import CLASSES, Example
from thaw.build import TRAINER
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.scheduler import constant
from thaw.task.classification import Classification

CLIP = 1.0


class Case(NamedTuple):
    """What is trained on one batch, again and again."""

    network: Network
    inputs: Any
    targets: torch.Tensor
    steps: int
    device: torch.device

    @property
    def precision(self) -> str:
        """A CPU has no fast bf16; there the code is tried and nothing measured."""
        return "bf16-mixed" if self.device.type == "cuda" else "32-true"

    def copied(self) -> Network:
        return copy.deepcopy(self.network).to(self.device)


def thaw_step(case: Case, compiled: bool) -> float:
    """Seconds of a step by the trainer of a run."""
    task = Classification([str(number) for number in range(CLASSES)])
    module = FineTuner(case.copied(), task, create_optimizer, constant(warmup=0.0))
    clock = _Clock(case)
    trainer = thaw.trainer.Trainer(
        compile=compiled, accelerator=case.device.type, devices=1, precision=case.precision, max_epochs=1, logger=False,
        gradient_clip_val=CLIP, enable_checkpointing=False, limit_val_batches=0, callbacks=[clock], **TRAINER,
    )  # fmt: skip
    trainer.fit(module, _OneBatch(case))
    return clock.seconds / case.steps


def bare_step(case: Case, compiled: bool) -> float:
    """Seconds of a step that has nothing but PyTorch: the same network, optimizer, precision and clipping."""
    network = case.copied()
    optimizer = create_optimizer(network)
    if compiled:
        thaw.trainer.compile_in_place(network, dynamic=False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.precision != "32-true"):
            loss = nn.functional.cross_entropy(network(case.inputs), case.targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()

    return _timed(step, case)


def transformers_trainer(example: Example, batch: int, steps: int, device: torch.device, tiny: bool) -> float:
    """Seconds of a step by the Trainer of transformers: its own classifier of the same size, its fused AdamW."""
    import transformers

    options = (example.tiny if tiny else {}).get("options", {})
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=CLASSES, **options))
    network = SimpleNamespace(preprocessing={})
    inputs = example.inputs(network, batch)
    samples = [{key: held[n] for key, held in inputs.items()} | {"labels": 0} for n in range(batch)] * (2 * steps)
    clock: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(_now(device))

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=batch, max_steps=2 * steps, bf16=device.type == "cuda",
            optim="adamw_torch_fused", use_cpu=device.type == "cpu", report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=samples, callbacks=[Clock()])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return (clock[-1] - clock[steps - 1]) / steps


class _OneBatch(L.LightningDataModule):
    """The same batch, on the device already, for twice as many steps as are timed."""

    max_tokens = None

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.batch_size = case, len(case.targets)

    def lengths(self, split: str) -> None:
        return None

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            [(self.case.inputs, self.case.targets)] * (2 * self.case.steps), batch_size=None, collate_fn=_same
        )


class _Clock(L.Callback):
    """Times the second half of the steps."""

    def __init__(self, case: Case) -> None:
        self.case, self.seconds = case, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 in (self.case.steps, 2 * self.case.steps):
            self.seconds = _now(self.case.device) - self.seconds


def _timed(step: Callable[[], None], case: Case) -> float:
    for _ in range(case.steps):
        step()
    began = _now(case.device)
    for _ in range(case.steps):
        step()
    return (_now(case.device) - began) / case.steps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _same(batch: Any) -> Any:
    return batch
