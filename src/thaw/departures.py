"""How a run's configuration departs from another: from the defaults, and from its own by overrides given later."""

from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from thaw import schema
from thaw.config import CONF, recorded
from thaw.errors import UserError, did_you_mean


def override(cfg: DictConfig, overrides: Sequence[str], sections: Sequence[str] = ("data", "paths")) -> None:
    """Change a configuration that a run has written, by overrides in Hydra's syntax; `data=…` takes an option afresh.

    Raises:
        UserError: another section, or no override.
    """
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
            value = None if parsed.is_sweep_override() else parsed.value()
        except Exception:  # also of int(), and of Hydra's own types
            raise UserError(f"{text}: must be written as data.setting=value.") from None
        key = parsed.key_or_group
        if parsed.is_sweep_override() or parsed.is_delete() or key.partition(".")[0] not in sections:
            raise UserError(f"{text}: must set one value of {' or '.join(sections)}. Write e.g. data.root=folder.")
        if key == "data":
            options = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
            if value not in options:
                raise UserError(f"{text}: conf/data/ has no '{value}'. {did_you_mean(str(value), options)}")
            value = OmegaConf.load(CONF / "data" / f"{value}.yaml")
        before = cfg.paths.data
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        if key == "paths.data":  # what a run has written refers to nothing any more
            moved = {name: _moved(item, f"{before}/", f"{value}/") for name, item in cfg.data.items()}
            cfg.data.update(moved)


def _moved(value: Any, before: str, now: str) -> Any:
    return now + value[len(before) :] if isinstance(value, str) and value.startswith(before) else value


def departures(cfg: DictConfig) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """How a job's configuration came to differ from the default one, without secrets.

    Returns:
        group → (chosen option, default option), of all groups; and full key → (value, default), of the leaves that
        differ from those of the chosen options. None stands for what is not there.
    """
    job = HydraConfig.get()
    usual = compose(job.job.config_name, return_hydra_config=True).hydra.runtime.choices
    chosen = {group: option for group, option in job.runtime.choices.items() if not group.startswith("hydra")}
    groups = {group: (option, usual.get(group)) for group, option in chosen.items()}
    other = {group: option for group, (option, before) in groups.items() if option != before and group in usual}
    options = [f"{group}={option}" for group, option in other.items() if group != "experiment"]
    default = compose(job.job.config_name, options)
    default.run.dir, default.resume = cfg.run.dir, cfg.resume  # where a job runs is not what it does
    default.paths = cfg.paths
    before, now = (schema.leaves(recorded(part)) for part in (default, cfg))
    keys = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    return groups, {key: (now.get(key), before.get(key)) for key in keys}
