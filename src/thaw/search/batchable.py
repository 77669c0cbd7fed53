"""What keeps heads from training together on features computed once, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from thaw.data.datamodule import DataModule
from thaw.data.sampler import EpochBatches
from thaw.freezing.freezing import Freezing
from thaw.frozen_part import WHOLE
from thaw.model.network import Head
from thaw.module import FineTuner
from thaw.regularization import Regularization
from thaw.search.heads import DECOUPLED

# In what runs may differ whose heads train together: section → settings.
OF_THE_HEAD: Mapping[str, Sequence[str]] = {
    "optimizer": ("lr", "weight_decay", "layer_decay", "head_lr_scale"),
    "model": ("dropout",),
    "run": ("dir",),
}
CALLBACKS = ("lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.LearningRateMonitor")
# Settings of the trainer that a batch of heads keeps to, or that change nothing in it.
TRAINER = {"_target_", "accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs"}
TRAINER |= {"gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "log_every_n_steps"}
TRAINER |= {"compile", "target_batch_size"}


def conflicts(settings: Mapping[str, Any]) -> list[str]:
    """What of these settings cannot be when heads train together, in words.

    Args:
        settings: a whole configuration that holds, as plain containers.
    """
    found: dict[str, str] = {}  # what must hold → what to write
    trainer = settings["trainer"]
    for name, node in settings["callbacks"].items():
        if node and (node.get("_target_") not in CALLBACKS or node.get("monitor")):
            found[f"callbacks.{name} must be left out"] = "callbacks=default"
    if settings["optimizer"].get("name") not in DECOUPLED:
        found[f"optimizer.name must be one of {', '.join(DECOUPLED)}"] = "optimizer=adamw"
    if trainer.get("devices", 1) not in (1, "1") or trainer.get("num_nodes", 1) != 1:
        found["trainer.devices must be 1"] = "trainer.devices=1"
    if trainer.get("precision") not in (None, 32, "32", "32-true", "bf16-mixed"):
        found["trainer.precision must be 32-true or bf16-mixed"] = "trainer.precision=32-true"
    for name in trainer.keys() - TRAINER:
        found[f"trainer.{name} must be left out"] = f"~trainer.{name}"
    return [f"{must} with search=probe. Write {write}." for must, write in found.items()]


def refusals(module: FineTuner, freezing: Freezing, data: DataModule) -> list[str]:
    """Why the heads of such runs cannot train together on features computed before, in words."""
    network, found = module.network, []
    if freezing.ever_trains(list(network.groups), 1000) != {"head"} or freezing.batch_norm != "frozen":
        found.append("freezing must be linear_probe with search=probe. Write freezing=linear_probe.")
    if data.variants is None or not isinstance(data.batches("train"), EpochBatches):
        found.append(
            "data must be the same in every epoch with search=probe, or come in a known number of variants. Write "
            f"{data.steady_with or 'search=grid'}."
        )
    head = network.head
    if data.targets.kind not in WHOLE or not isinstance(head, Head) or head.linear.bias is None:
        found.append(
            "task must ask for one answer a sample, from a head of dropout and one linear layer, with search=probe. "
            "Write search=grid."
        )
    if type(module.regularization) is not Regularization:
        found.append("regularization must be none with search=probe. Write regularization=none.")
    if module.monitor.startswith("train/"):
        found.append(f"monitor must be of validation with search=probe; got {module.monitor}. Write monitor=val/loss.")
    return found
