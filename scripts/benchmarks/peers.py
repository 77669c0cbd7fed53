"""The same fine-tuning as a user of Lightning writes it, with Lightning's or finetuning-scheduler's own freezing.

Run by `features.py` as `python -m benchmarks.peers FREEZING FILE override…`: data, splits, loader and weights are those
of `train.py override… cache=none`; seconds of `trainer.fit` and the last validation accuracy go to the file.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import BackboneFinetuning
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from thaw import config
from thaw.build import fine_tuner

# What thaws in each phase of the benchmark `gradual`, as finetuning-scheduler names it.
PHASES = ("head", "body.layer4", "body.layer3", "body.layer2", "body.layer1", "body.(conv1|bn1)")


class Plain(L.LightningModule):
    """Network, loss, accuracy and AdamW, as in Lightning's own examples."""

    def __init__(self, network: torch.nn.Module, classes: int, lr: float) -> None:
        super().__init__()
        self.backbone, self.head, self.lr = network.body, network.head, lr
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        self.accuracy(self.head(self.backbone(batch[0])), batch[1])
        self.log("val/accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr, weight_decay=0.05)


def finetuning_scheduler(folder: Path, epochs: int, lr: float) -> list[L.Callback]:
    """One phase after the other at the same epochs and rate, with nothing restored and nothing stopped early."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

    names = [name.replace("body.", "backbone.") for name in PHASES]
    lines = []
    for number, name in enumerate(names):
        until = f"  max_transition_epoch: {(number + 1) * epochs // len(names)}"
        lines += [f"{number}:", "  params:", f"  - {name}.*", until]
    (folder / "phases.yaml").write_text("\n".join(lines) + "\n")
    schedule = FinetuningScheduler(
        ft_schedule=str(folder / "phases.yaml"),
        base_max_lr=lr,  # of what thaws; its default is 1e-5
        epoch_transitions_only=True,
        restore_best=False,
        max_depth=-1,
    )
    return [schedule, FTSCheckpoint(monitor="val/accuracy", mode="max", save_top_k=1, dirpath=folder)]


def main(freezing: str, told: Path, *overrides: str) -> None:
    warnings.simplefilter("ignore")
    with initialize_config_dir(str(config.CONF), version_base=None):
        cfg = compose("config", [*overrides, "cache=none", "logger=none"])
    data, task, _ = config.preflight(cfg)
    module, _ = fine_tuner(cfg, data, task, "val/accuracy")
    module.network.train_groups(module.network.groups)
    epochs, lr = cfg.trainer.max_epochs, cfg.optimizer.lr or module.network.lr * 10
    callbacks = {
        "backbone_finetuning": lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=10**6, train_bn=False)],
        "finetuning_scheduler": lambda: finetuning_scheduler(told.parent, epochs, lr),
    }[freezing]()
    plain = Plain(module.network, len(data.classes), lr)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=told.parent,
    )
    began = time.perf_counter()
    trainer.fit(plain, data)
    seconds = time.perf_counter() - began
    told.write_text(json.dumps({"seconds": seconds, "accuracy": float(trainer.callback_metrics["val/accuracy"])}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
