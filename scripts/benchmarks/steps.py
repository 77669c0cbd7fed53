"""Steps: what one costs beside the computation itself, in a loop by hand, in Lightning, transformers and Thaw."""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import FOLDER, ROOT, interleaved
from thaw import console
from thaw.build import TRAINER
from thaw.freezing.by_group import NoFreezing
from thaw.guarded_logger import guarded
from thaw.lean import lean
from thaw.logger import csv_logger
from thaw.model.network import Head, Network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.run.checkpoint import AtomicCheckpointIO
from thaw.run.finite import Finite
from thaw.run.interruption import Interruption
from thaw.run.kept_checkpoints import checkpoints
from thaw.run.record import Recorder
from thaw.run.run import Run
from thaw.scheduler import cosine
from thaw.task.classification import Classification

STEPS, WARM, ROUNDS = 3000, 200, 7
WIDTH, CLASSES, BATCH = 64, 10, 64
LR, DECAY = 1e-3, 0.05

Batch = tuple[Any, Tensor]


class Clock(L.Callback):
    """Seconds of the steps after the first few; what an epoch costs before and after them is left out."""

    def __init__(self, warm: int = WARM) -> None:
        self.warm, self.times = warm, [0.0, 0.0]

    def tick(self, step: int, last: bool) -> None:
        if step == self.warm:
            self.times[0] = time.perf_counter()
        if last:
            self.times[1] = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, out: Any, batch: Any, step: int
    ) -> None:
        self.tick(step, trainer.is_last_batch)

    @property
    def seconds(self) -> float:
        return self.times[1] - self.times[0]


def loader(batches: Sequence[Batch]) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)


def plain_loop(
    network: nn.Module, batches: Sequence[Batch], metric: bool = True, clip: float | None = None, warm: int = WARM
) -> float:
    """Seconds of the steps after the first few, of what one would write by hand."""
    optimizer = AdamW(network.parameters(), LR, weight_decay=DECAY, fused=True)
    total, right = torch.zeros(()), torch.zeros(())
    network.train()
    clock = Clock(warm)
    for step, (inputs, targets) in enumerate(loader(batches)):
        outputs = network(inputs)
        loss = F.cross_entropy(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        if metric:
            total += loss.detach() * len(targets)
            right += (outputs.detach().argmax(-1) == targets).sum()
        clock.tick(step, step == len(batches) - 1)
    return clock.seconds


class Bare(L.LightningModule):
    """A linear model under Lightning, without logging or with one loss and one metric."""

    def __init__(self, network: nn.Module, logs: bool) -> None:
        super().__init__()
        self.network, self.logs = network, logs
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        outputs = self.network(batch[0])
        loss = F.cross_entropy(outputs, batch[1])
        if self.logs:
            self.accuracy(outputs, batch[1])
            self.log("train/loss", loss)
            self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> AdamW:
        return AdamW(self.parameters(), LR, weight_decay=DECAY, fused=True)


def lightning_loop(network: nn.Module, batches: Sequence[Batch], logs: bool) -> float:
    clock = Clock()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[clock], **quiet)
    trainer.fit(Bare(network, logs), loader(batches))
    return clock.seconds


def thaw_loop(network: Network, batches: Sequence[Batch], warm: int = WARM, clip: float | None = None) -> float:
    """As `train.py` puts it together, with accuracy as its only metric."""
    task = Classification([str(n) for n in range(CLASSES)], metrics={"accuracy": ACCURACY})
    freezing, clock = NoFreezing(), Clock(warm)
    run = Run.open(str(ROOT / FOLDER / "step"), "step", [])

    def optimizer(network: Network) -> torch.optim.Optimizer:
        return create_optimizer(network, lr=LR, weight_decay=DECAY, head_lr_scale=1.0)

    with run:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            gradient_clip_val=clip,
            log_every_n_steps=10,
            callbacks=[
                freezing,
                Finite(run, None),
                EarlyStopping("val/accuracy", patience=10, mode="max", check_finite=False),
                LearningRateMonitor(logging_interval="step"),
                *checkpoints(run.folder / "checkpoints", "val/accuracy", "max", every_minutes=10),
                console.Screen(freezing, "val/accuracy"),
                Recorder(run, freezing),
                Interruption(run),
                clock,
            ],
            logger=guarded([csv_logger(run)]),
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run.folder,
            **TRAINER,
        )
        module = FineTuner(network, task, optimizer, cosine())
        lean(trainer, module)
        trainer.fit(module, loader(batches), loader(batches[:1]))
    return clock.seconds


ACCURACY = {"name": "MulticlassAccuracy", "average": "micro"}


def trainer_loop(network: nn.Module, batches: Sequence[Batch]) -> float:
    """The Trainer of transformers, which logs the loss alone."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    clock = Clock()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            outputs = self.network(inputs)
            return {"loss": F.cross_entropy(outputs, labels), "logits": outputs}

    class Ticks(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            clock.tick(state.global_step - 1, state.global_step == len(batches))

    class Own(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return loader([{"inputs": inputs, "labels": targets} for inputs, targets in batches])

    arguments = TrainingArguments(
        output_dir=str(ROOT / FOLDER / "trainer"), max_steps=len(batches), learning_rate=LR, weight_decay=DECAY,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=500, max_grad_norm=0.0,
        log_level="error",
    )  # fmt: skip
    trainer = Own(Model(), arguments, train_dataset=[0] * len(batches), callbacks=[Ticks()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds


def step() -> None:
    """The fixed cost of a step: 64 numbers in, ten classes out, so that there is next to nothing to compute."""
    quiet()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(STEPS, BATCH, WIDTH, generator=generator)
    targets = torch.randint(CLASSES, (STEPS, BATCH), generator=generator)
    batches = list(zip(inputs, targets, strict=True))

    def linear() -> nn.Linear:
        return nn.Linear(WIDTH, CLASSES)

    ways: dict[str, Callable[[], float]] = {
        "a plain loop": lambda: plain_loop(linear(), batches),
        "Lightning, bare": lambda: lightning_loop(linear(), batches, logs=False),
        "Lightning, one log and one metric": lambda: lightning_loop(linear(), batches, logs=True),
        "transformers Trainer": lambda: trainer_loop(linear(), batches),
        "Thaw": lambda: thaw_loop(Network(nn.Identity(), Head.new(WIDTH, CLASSES), {}), batches),
    }
    timed = STEPS - 1 - WARM
    found = {name: [1000 * s / timed for s in values] for name, values in interleaved(ways, ROUNDS).items()}
    plain = found["a plain loop"]
    print("| one step, loss and accuracy kept | ms | spread | over the plain loop, ms |\n|---|---|---|---|")
    for name, values in found.items():
        over = statistics.median(a - b for a, b in zip(values, plain, strict=True))
        spread = f"{min(values):.2f} – {max(values):.2f}"
        print(f"| {name} | {statistics.median(values):.2f} | {spread} | {over:+.2f} |")


def quiet() -> None:
    """Let the libraries print nothing between the lines of a table."""
    console.quiet_lightning()
    console.console.quiet = True
    warnings.simplefilter("ignore")
