"""Hydra's way in: `-m` comes here with what is swept."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from thaw import config
from thaw.errors import UserError
from thaw.search.launchers import Batches, Isolated
from thaw.search.settings import Search
from thaw.search.space import Space, job_name

# Overrides that give a setting a value and choose no file.
PLAIN = re.compile(r"run\.dir=.*|[a-z_.]+=[+-]?\d[\d.]*(e[+-]?\d+)?", re.IGNORECASE | re.DOTALL)


class Sweep(Sweeper):
    """Tries what the command line gives several values, or `search.space` where it gives none."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self._loaded: dict[tuple[str, ...], DictConfig] = {}
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the whole sweep, and end by its exit code: 0, 1 where all failed, 3 where some did, 130 after Ctrl-C.

        Raises:
            UserError: what is wrong with any of its jobs, before the first of them begins.
        """
        from thaw.console import quiet_lightning
        from thaw.logger import sweep_environment
        from thaw.search.probe import Probes
        from thaw.search.run import run_sweep

        quiet_lightning()
        search = Search.of(OmegaConf.to_container(self.config.search, resolve=True))
        space = self._space(arguments, search)
        base, task, monitor = self._checked(search, space)
        mode = config.monitor_direction(monitor, task)
        folder = Path(search.dir or Path("runs") / "sweeps" / self._name(space))
        if search.batched:
            workers = Probes(self._composed)
        elif isinstance(self.launcher, Isolated):
            environment = sweep_environment(folder.name, config.plain(base.logger) if base.logger else {})
            workers = self.launcher.processes(base.trainer.get("devices"), environment)
        else:
            workers = Batches(self.launcher, 8)
        command = shlex.join(["python", *sys.argv])
        sys.exit(run_sweep(folder, search, space, workers, monitor, mode, self._default(space), command))

    def _space(self, arguments: Sequence[str], search: Search) -> Space:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides(list(arguments))
        keys = {override.get_key_element() for override in given}
        swept = {override.get_key_element() for override in given if override.is_sweep_override()}
        own = parser.parse_overrides([f"{key}={values}" for key, values in search.space.items() if key not in keys])
        if swept - {"seed"}:
            own = [override for override in own if not override.is_sweep_override()]
        return Space.of([*given, *own], grid=search.sampler == "grid")

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, without Hydra's own part; for another number no file is read again."""
        values = [text for text in overrides if PLAIN.fullmatch(text)]
        others = tuple(text for text in overrides if text not in values)
        if others not in self._loaded:
            loaded = self.hydra_context.config_loader.load_sweep_config(self.config, [*others])
            if isinstance(self.launcher, Isolated):
                loaded.hydra.mode = RunMode.RUN
                HydraConfig.instance().set_config(loaded)  # a run of its own, which may have several processes
            with open_dict(loaded):
                del loaded.hydra
            self._loaded[others] = loaded
        composed = self._loaded[others].copy()
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(composed, override.get_key_element(), override.value(), merge=True)
        return composed

    def _checked(self, search: Search, space: Space) -> tuple[DictConfig, Any, str]:
        """Check every job of a grid, and of a sampler what each dimension may be.

        Returns:
            the first configuration, its task, and the metric that all jobs are compared by.

        Raises:
            UserError: all problems at once.
        """
        from thaw.build import fine_tuner
        from thaw.search.batchable import conflicts, refusals

        grid = search.sampler == "grid"
        first, problems, seen = None, [], set()
        if grid == (search.n_trials is not None):
            must = "be null with a grid, which has as many as there are combinations" if grid else "be given"
            problems.append(f"search.n_trials must {must}; got {search.n_trials}. Write e.g. search=random.")
        problems += self._lacking(search, space)
        for point in [*(space.combinations() if grid else space.corners())] or [{}]:
            overrides = space.overrides(point, next(iter(space.seeds), None))
            try:
                composed = self._composed(overrides)
            except Exception as error:  # also of int() and the like
                from thaw.diagnosis import diagnose

                problems += diagnose(overrides, config.CONF, error)
                continue
            settings = config.plain(composed)
            if settings.get("data", {}).get("batch_size") == "auto":
                problems.append(
                    "data.batch_size must be a number in a sweep, the same for all jobs however busy the machine is; "
                    "got auto. Let scripts/plan.py data.batch_size=auto find it."
                )
                continue
            parts = str([settings.get(part) for part in ("data", "task", "trainer", "freezing", "monitor")])
            try:
                if parts not in seen:  # data need not be opened again for another rate
                    data, task, _ = config.preflight(composed)
                    monitor = composed.monitor or task.monitor
                    first = first or (composed, task, monitor)
                    if monitor != first[2]:
                        wrong = f"got {first[2]} and {monitor}. Write monitor=val/…, or a sweep for each."
                        raise UserError(f"monitor must be one metric for all jobs of a sweep; {wrong}")
                    if search.batched:
                        problems += refusals(*fine_tuner(composed, data, task, monitor), data)
                    seen.add(parts)
                elif wrong := config.validate(composed):
                    raise UserError(*wrong)
                problems += conflicts(settings) if search.batched else []
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*dict.fromkeys(problems))
        return first

    def _lacking(self, search: Search, space: Space) -> list[str]:
        """What a way to run the jobs needs."""
        if search.batched:
            lacking = []
            if search.pruner != "none":
                lacking.append("search.pruner must be none with search=probe: one head less saves no time.")
            if not isinstance(self.launcher, Isolated):
                lacking.append("search=probe trains its heads itself. Write it without hydra/launcher=….")
            return lacking
        if search.pruner != "asha":
            return []
        lacking = []
        if importlib.util.find_spec("ray") is None:
            lacking.append("search.pruner=asha needs Ray Tune. Write pip install .[ray], or search.pruner=halving.")
        if not isinstance(self.launcher, Isolated):
            lacking.append("search.pruner=asha runs its jobs itself. Write it without hydra/launcher=….")
        if len(space.seeds) > 1:
            lacking.append(
                f"search.pruner=asha compares single runs; got seed={','.join(space.seeds)}. Write one seed."
            )
        return lacking

    def _default(self, space: Space) -> Mapping[str, Any]:
        """What the configuration has where nothing is swept, of the dimensions in which it lies."""
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(space.fixed))
        choices, found = composed.hydra.runtime.choices, {}
        for key, distribution in space.dimensions.items():
            value = choices[key] if key in choices else OmegaConf.select(composed, key.lstrip("+~"))
            if key == "optimizer.lr" and value is None:
                value = _rate_of_the_model(composed)
            if hasattr(distribution, "choices"):
                found |= {key: str(value)} if str(value) in distribution.choices else {}
            elif isinstance(value, (int, float)) and distribution.low <= value <= distribution.high:
                found[key] = value
        return found

    def _name(self, space: Space) -> str:
        swept = [f"{key}={values}" for key, values in space.written.items()]
        named = [key.rpartition(".")[2] for key in space.written]
        return "-".join([*named[:4], job_name([*space.fixed, *swept])])


def _rate_of_the_model(cfg: DictConfig) -> float | None:
    from thaw.build import fine_tuner

    try:
        data, task, _ = config.preflight(cfg)
        return fine_tuner(cfg, data, task, task.monitor)[0].network.lr
    except UserError:  # what is swept replaces what does not work
        return None


def register() -> None:
    """Make both known to Hydra, which instantiates no plugin that it does not know."""
    from hydra.core.plugins import Plugins

    for plugin in (Sweep, Isolated):
        Plugins.instance().register(plugin)
