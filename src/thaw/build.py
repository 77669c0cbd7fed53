"""From a checked configuration to what is trained: the steps that a run, its plan and its restoration share."""

from typing import Any

import lightning as L

from thaw import config
from thaw.data.datamodule import DataModule
from thaw.freezing.freezing import Freezing
from thaw.module import FineTuner
from thaw.task.task import Task

# What every trainer of ours is given: our own loaders share samples out, and our own screen says what happens.
TRAINER = {
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fine_tuner(cfg: Any, data: DataModule, task: Task, monitor: str) -> tuple[FineTuner, Freezing]:
    """Build the network by the seed, change it as its freezing strategy needs, and join it with all that trains it.

    Args:
        cfg: a configuration that `config.preflight` has passed; `data` and `task` are what that returned.

    Raises:
        UserError: weights that cannot be had, or parts that do not fit one another.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    network = config.build(cfg.model, **config.network_arguments(cfg, data, task))
    data.preprocess(**network.preprocessing)
    freezing = config.build(cfg.freezing)
    freezing.prepare(network)
    optimizer, schedule = config.builder(cfg.optimizer), config.build(cfg.scheduler)
    regularization = config.build(cfg.regularization) if cfg.regularization else None
    settings = config.plain(cfg)
    return FineTuner(network, task, optimizer, schedule, monitor, cfg.seed, settings, regularization), freezing
