"""From a checked configuration to what is trained: the steps that a run, its plan and its restoration share."""

from typing import Any

import lightning as L

from thaw import config, defaults
from thaw.data.datamodule import DataModule
from thaw.errors import UserError
from thaw.freezing.freezing import Freezing
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.task.task import Task
from thaw.trainer import Trainer

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
    network = config.build(cfg.model, **network_arguments(cfg, data, task))
    _assert_kind("model", cfg, network, Network)
    data.preprocess(**network.preprocessing)
    freezing = config.build(cfg.freezing)
    _assert_kind("freezing", cfg, freezing, Freezing)
    freezing.prepare(network)
    optimizer, schedule = config.builder(cfg.optimizer), config.build(cfg.scheduler)
    regularization = config.build(cfg.regularization) if cfg.regularization else None
    settings = config.recorded(cfg)
    return FineTuner(network, task, optimizer, schedule, monitor, cfg.seed, settings, regularization), freezing


def settle(
    cfg: Any, module: FineTuner, freezing: Freezing, data: DataModule, trainer: Trainer, batch_size: int | None = None
) -> tuple[str, int]:
    """Settle what the configuration leaves open: (precision, epochs), and before them the size of a batch.

    Args:
        trainer: the bare one of `config.preflight`.
        batch_size: what `auto` came to before; None finds it by trying.

    Raises:
        UserError: sizes that do not fit one another, or the memory.
    """
    precision, _ = defaults.settled(cfg.trainer, 1)
    if data.auto_batch_size:
        from thaw.batch_size import find
        from thaw.plan.plan import trainer_for

        build = trainer_for(config.builder(cfg.trainer), precision, 1, data.ranks)
        data.batch_size = batch_size or find(module, freezing, data, build)
    trainer.fill_target(data)
    return defaults.settled(cfg.trainer, trainer.steps_an_epoch(data))


def _assert_kind(section: str, cfg: Any, made: Any, kind: type) -> None:
    if not isinstance(made, kind):
        raise UserError(f"{section}._target_ must build a {kind.__name__}; {cfg[section]._target_} does not.")


def network_arguments(cfg: Any, data: Any, task: Any) -> dict[str, Any]:
    """What the network's builder must know of data and task.

    Raises:
        UserError: the model cannot do what the task asks for.
    """
    wanted = data.network_arguments | task.network_arguments
    given = config.fitting(cfg.model, wanted)
    if data.network_arguments.get("image_size") and "image_size" not in given:
        raise UserError(
            f"data.image_size must be null with {cfg.model._target_}, which has a size of its own. Leave it out."
        )
    if lacking := sorted(task.network_arguments.keys() - given.keys()):
        need = {"per_step": "an output for each token or frame", "head": "a pretrained head that tells the next token"}
        asked = need.get(lacking[0], lacking[0])
        raise UserError(
            f"model must give what the task asks for, {asked}, and {cfg.model._target_} does not. "
            f"Write e.g. {'model=gpt2' if lacking[0] == 'head' else 'model=bert or model=deepspeech'}."
        )
    return given
