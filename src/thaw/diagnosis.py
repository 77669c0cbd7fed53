"""What is wrong with a command that Hydra refuses, override by override, in words."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from thaw import schema
from thaw.config import find_target, validate
from thaw.errors import did_you_mean, first_line


def diagnose(overrides: Sequence[str], folder: Path, error: Exception) -> list[str]:
    """Say what is wrong with each override that Hydra refuses, and what else is wrong with the rest."""
    GlobalHydra.instance().clear()
    problems: list[str] = []
    with initialize_config_dir(str(folder)):
        cfg = compose("config")
        known = _keys(cfg)
        good: list[str] = []
        groups = {path.relative_to(folder).as_posix() for path in folder.iterdir() if path.is_dir()}
        # Choices of a group first: they decide which other keys there are.
        for override in sorted(overrides, key=lambda text: _key(text) not in groups):
            singles = _alternatives(override)
            for single in singles:
                try:
                    cfg = compose("config", overrides=[*good, single])
                    known |= _keys(cfg)
                except Exception as refused:  # also of int(), open() and the like
                    problems.append(_explain(single, known, cfg, folder, refused))
                    break
            else:
                good.append(singles[0])
        problems += validate(compose("config", overrides=good))
    return problems or [first_line(error)]


def _keys(cfg: DictConfig) -> set[str]:
    return set(schema.flat(OmegaConf.to_container(cfg)))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _alternatives(override: str) -> list[str]:
    try:
        parsed = OverridesParser.create().parse_override(override)
        if parsed.is_sweep_override():
            return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    except Exception:  # also of int(), and of a glob, which needs all of Hydra
        pass
    return [override]


def _explain(override: str, known: set[str], cfg: DictConfig, folder: Path, error: Exception) -> str:
    key, equals, value = override.partition("=")
    key = key.lstrip("+~")
    if not equals:
        form = "name a setting that is there" if override.startswith("~") else "be written as key=value"
        return f"{override}: must {form}."
    if (folder / key).is_dir():
        options = sorted(path.stem for path in (folder / key).glob("*.yaml"))
        if value not in options:
            return f"{key}={value}: conf/{key}/ has no '{value}'. {did_you_mean(value, options)}"
    elif key not in known:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else None
        if OmegaConf.is_dict(node) and "_target_" in node and name in schema.signature(find_target(node._target_)):
            return f"{override}: conf/ does not list this setting of {node._target_}. Write +{override}."
        if not parent:
            known = {name.partition(".")[0] for name in known} | {p.name for p in folder.iterdir() if p.is_dir()}
        return f"{override}: there is no setting '{key}'. {did_you_mean(key, sorted(known))}"
    if isinstance(error, OverrideParseException):
        return f"{override}: must be written as key=value; quote a value with special signs: {key}='\"…\"'."
    return f"{override}: {first_line(error)}"
