"""Configuration: everything wrong with it at once, and the only place that builds objects from it.

This file must import neither torch nor pydantic: `--help` and `--cfg job` come here.
"""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from thaw import schema
from thaw.errors import UserError, did_you_mean, first_line
from thaw.redaction import redacted
from thaw.run.folder import assert_writable
from thaw.run.unfinished import replacing

CONF = Path(__file__).parents[2] / "conf"

# All that a configuration may build. No `torch.*`: `torch.load` lives there.
EXECUTION_WHITELIST = [
    "thaw.*",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.loggers.TensorBoardLogger",
]
find_target = functools.partial(schema.find_target, allowed=EXECUTION_WHITELIST)


def build(node: DictConfig, **given: Any) -> Any:
    """Call the node's `_target_` with its keys as keyword arguments, and with objects that only code can give."""
    bound = builder(node)
    try:
        inspect.signature(bound.func).bind(*bound.args, **(bound.keywords | given))
    except TypeError as error:  # an argument that was deleted with ~
        raise UserError(f"{node._target_} must have all its settings: {error}. Write it, or leave out ~…") from None
    return bound(**given)


def builder(node: DictConfig) -> functools.partial:
    """The node's target with its keys bound, to be called later."""
    bound = instantiate(node, _partial_=True, _convert_="all", _execution_whitelist_=EXECUTION_WHITELIST)
    # Hydra's own partial would add lines of its own to every error.
    return functools.partial(bound.func, *bound.args, **bound.keywords)


def fitting(node: DictConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given arguments that the node's target asks for."""
    known = schema.signature(find_target(node._target_))
    return {name: value for name, value in given.items() if name in known}


def build_each(nodes: Mapping[str, DictConfig], **given: Any) -> list[Any]:
    """Build every node that has a target, with those of the given arguments that it asks for and leaves open."""
    chosen = [node for node in nodes.values() if node and "_target_" in node]
    return [build(node, **{k: v for k, v in fitting(node, given).items() if node.get(k) is None}) for node in chosen]


def network(settings: Mapping[str, Any], folder: Path, given: Mapping[str, Any]) -> Any:
    """A network from settings that were exported, checked as those of a run; its weights are random.

    Args:
        folder: where the files of a transformer lie.
        given: what its builder must know of data and task.

    Raises:
        UserError: settings that do not hold.
    """
    own = dict(settings) | ({"name": str(folder)} if settings.get("name") == "." else {})
    node = OmegaConf.create(own)
    if problems := schema.problems({"model": own}, {}, {"model"}, find_target):
        raise UserError(*problems)
    return build(node, **fitting(node, given))


def monitor_direction(monitor: str, task: Any) -> Literal["min", "max"]:
    """Which way the monitored metric gets better.

    Raises:
        UserError: the task has no such metric.
    """
    known = [*task.names("val"), *task.names("train")]
    if monitor.startswith("test/"):
        raise UserError(f"monitor must not be of the test split, which chooses nothing; got '{monitor}'. Write val/….")
    if monitor not in known:
        raise UserError(f"monitor must be a metric of this task; got '{monitor}'. {did_you_mean(monitor, known)}")
    return task.direction(monitor)


def write(cfg: DictConfig, path: Path) -> None:
    """Write the resolved configuration as YAML, without its secrets."""
    with replacing(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(recorded(cfg))))


def read(path: Path) -> DictConfig:
    """The configuration that a run has written; it is not checked yet."""
    return OmegaConf.load(path)


def fill(node: DictConfig, given: Mapping[str, Any]) -> None:
    """Set those of the given arguments that the node's target has and that are still open."""
    for name, value in fitting(node, given).items():
        if node.get(name) is None:
            OmegaConf.update(node, name, value, force_add=True)


def changes(cfg: DictConfig, path: Path) -> list[str]:
    """What a resumed run would do otherwise than the configuration written at `path`, in words."""
    return schema.changes(plain(read(path)), recorded(cfg)) if path.is_file() else []


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    return OmegaConf.to_container(cfg, resolve=True)


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers without secrets, fit for a file."""
    return redacted(plain(cfg))


def preflight(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """Check everything that can be checked before a network is built; return data module, task and a bare trainer.

    Raises:
        UserError: all problems at once.
    """
    if lacking := _lacking(cfg):
        raise UserError(*lacking)
    problems = validate(cfg)
    data = task = trainer = None
    try:
        if not any(problem.startswith("run.dir") for problem in problems):
            assert_writable(cfg.run.dir)
    except UserError as error:
        problems += error.problems
    if not any(problem.startswith("trainer.") for problem in problems):
        try:
            trainer = build(cfg.trainer, logger=False)  # Lightning's own checks, before anything is made
            problems += _several_processes(cfg, trainer)
        except UserError as error:
            problems += error.problems
        except Exception as error:  # it raises its own types and plain ones
            reason = (str(error) or type(error).__name__).splitlines()[0]
            problems.append(f"trainer must suit this machine: {reason} Write e.g. trainer=default.")
    if not any(problem.startswith(("data.", "task._", "seed")) for problem in problems):
        try:
            data = build(cfg.data, seed=cfg.seed, target=find_target(cfg.task._target_).target)
        except UserError as error:
            problems += error.problems
    if data and trainer and not problems:
        from thaw.batch_size import conflicts

        problems += conflicts(data, trainer)
    if not any(problem.startswith("task.") for problem in problems):
        try:
            known = data.task_arguments if data else {"classes": ["no", "yes"], "class_counts": [1, 1]}
            task = build(cfg.task, **fitting(cfg.task, known))
            if not any(problem.startswith("monitor") for problem in problems):
                monitor_direction(cfg.monitor or task.monitor, task)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return data, task, trainer


def validate(cfg: DictConfig) -> list[str]:
    """Bind every node to its target's signature and check its values; return every problem in words."""
    if problems := _lacking(cfg):
        return problems
    from thaw.settings import TOP_LEVEL

    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    return schema.problems(plain(cfg), TOP_LEVEL, groups, find_target)


def _lacking(cfg: DictConfig) -> list[str]:
    """What keeps the rest from being read: references to nothing, and settings deleted that a run cannot be without."""
    from thaw.settings import TOP_LEVEL

    settings = OmegaConf.to_container(cfg)
    problems = []
    for key in [key for key, value in schema.flat(settings).items() if "${" in str(value) and type(value) is not dict]:
        try:
            if OmegaConf.is_list(found := OmegaConf.select(cfg, key)):
                plain(found)
        except OmegaConfBaseException as error:
            problems.append(f"{key} must refer to what is there: {first_line(error)}.")
    return problems + schema.lacking(settings, TOP_LEVEL)


def _several_processes(cfg: DictConfig, trainer: Any) -> list[str]:
    from thaw.distributed import conflicts

    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return conflicts(trainer, plain(cfg), sweep)
