"""Models to choose from, and commands that are changed by what is recommended, as override lines."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L

from thaw import config
from thaw.build import network_arguments
from thaw.ladder.bench import Bench
from thaw.model.network import Network

Compose = Callable[[Sequence[str]], Any]


def key_of(override: str) -> str:
    """The setting that an override is about: `model.name` of `++model.name=resnet18`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The overrides that are not about these settings, nor about settings within them."""
    return [text for text in overrides if not any(f"{key_of(text)}.".startswith(f"{key}.") for key in keys)]


def with_model(model: str, overrides: Sequence[str], compose: Compose) -> list[str]:
    """The same command with another model as it stands in conf/model, whatever an experiment would change in it.

    Args:
        compose: overrides → the configuration.
    """
    given = [*without(overrides, ["model"]), f"model={model}"]
    wanted, composed = (config.plain(compose(words))["model"] for words in ([f"model={model}"], given))
    undone = {key: value for key, value in wanted.items() if composed.get(key) != value}
    return given + [f"model.{key}={'null' if value is None else value}" for key, value in undone.items()]


def merged(overrides: Sequence[str], choices: Mapping[str, str], settings: Mapping[str, Any]) -> list[str]:
    """The command with what was chosen: setting → override.

    Args:
        settings: the whole configuration, as plain containers; what it lacks is added with `+`.
    """
    lacking = {key for key in choices if key.partition(".")[2] not in ("", *settings[key.partition(".")[0]])}
    added = [f"+{text}" if key in lacking else text for key, text in choices.items()]
    return without(overrides, list(choices)) + added


def untrained(cfg: Any, bench: Bench) -> Network | None:
    """The network with random weights; None where the model has no such setting."""
    if "weights" not in cfg.model:
        return None
    node = copy.deepcopy(cfg.model)
    node.weights = "none"
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    return config.build(node, **network_arguments(cfg, bench.data, bench.module.task))
