"""The same sweep by Ray Tune: on this machine or a cluster of Ray's, trials ended early by ASHA (arXiv:1810.05934)."""

import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from thaw.run.lock import held_by
from thaw.run.run import read_record
from thaw.search.processes import GRACE, Processes, visible_devices
from thaw.search.space import directory
from thaw.search.sweep import LOOK_EVERY, Running, Sweep, objective, why

# Ctrl-C is the sweep's; a job's last report is its exit code; nothing is sent to anybody.
SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# More epochs than a run has; it ends by itself.
MOST_EPOCHS = 10_000


class RaySweep(Sweep):
    """Leaves to Ray Tune where jobs run and when they end early; what is tried is the study's, as in any sweep."""

    def _work(self) -> None:
        os.environ |= SETTINGS
        logging.getLogger("ray").setLevel(logging.ERROR)
        workers, given = self.workers, {}
        if "RAY_ADDRESS" not in os.environ:  # else the cluster says how many run at once
            given = {"num_cpus": workers.slots, "include_dashboard": False}
        added = {key: value for key, value in workers.environment.items() if os.environ.get(key) != value}
        job = tune.with_parameters(
            _job, script=workers.script, flags=workers.flags, added=added, place=os.getcwd(), monitor=self.monitor
        )
        try:
            ray.init(**given, log_to_driver=False, configure_logging=False)
            tune.Tuner(
                tune.with_resources(job, {"cpu": 1} | ({"gpu": workers.each} if visible_devices() else {})),
                tune_config=tune.TuneConfig(
                    metric=self.monitor,
                    mode=self.trials.mode,
                    num_samples=-1,  # until the study has no more
                    search_alg=_Study(self),
                    scheduler=ASHAScheduler(
                        time_attr="epoch", max_t=MOST_EPOCHS, grace_period=self.trials.search.prune_after
                    ),
                    max_concurrent_trials=workers.slots if given else None,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=str((self.folder / "ray").absolute()), verbose=0, callbacks=[_Look(self)]
                ),
            ).fit()
        finally:
            ray.shutdown()
            self._wait_for_saved()

    def take(self) -> Running | None:
        """The next trial with something to compute; what was computed before is told at once."""
        while (trial := self.trials.take()) is not None:
            running = Running(trial, deque())
            running.names[""] = name = self.jobs_of(trial)[0][0]
            if (value := objective(self.folder / name, self.monitor)) is not None:
                self.trials.tell(trial, TrialState.COMPLETE, value)
                continue
            at_work = {other.names[""] for other in self.running}
            self.running.append(running)
            if name not in at_work:  # else it ends with the trial that has the same values
                return running
        return None

    def ended(self, name: str, result: Mapping[str, Any]) -> None:
        """Tell the study of a job that Ray has ended; one without an exit code was ended by ASHA."""
        state, value, reason = TrialState.PRUNED, objective(self.folder / name, self.monitor), None
        if value is not None:
            state = TrialState.COMPLETE
        elif "code" in result:
            state, reason = TrialState.FAIL, why(self.folder, name, result["code"])
        for running in [running for running in self.running if running.names[""] == name]:
            self.running.remove(running)
            self.trials.tell(running.trial, state, value, reason)

    def _wait_for_saved(self) -> None:
        """Until the jobs that were at work have saved what they had."""
        deadline = time.monotonic() + GRACE
        names = [name for running in self.running for name in running.names.values()]
        while any(held_by(self.folder / name) for name in names) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)


class _Here:
    """Is not written down with what Ray Tune keeps of itself: the study and the runs keep all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Study(_Here, Searcher):
    """What the study would try next, as Ray Tune asks for it."""

    def __init__(self, sweep: RaySweep) -> None:
        super().__init__(metric=sweep.monitor, mode=sweep.trials.mode)
        self.sweep, self.names = sweep, {}

    def suggest(self, trial_id: str) -> Any:
        running = self.sweep.take()
        if running is None:
            return Searcher.FINISHED
        ((name, overrides),) = self.sweep.jobs_of(running.trial)
        self.names[trial_id] = name
        folder = self.sweep.folder
        words = [*overrides, directory(folder / name), "resume=auto", *self.sweep.not_test]
        return {"name": name, "words": words, "folder": str(folder)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        gone = {"code": 1} if error or result is None else {}
        self.sweep.ended(self.names.pop(trial_id), (result or {}) | gone)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Look(_Here, tune.Callback):
    def __init__(self, sweep: RaySweep) -> None:
        self.sweep = sweep

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        self.sweep.look()


def _job(
    config: Mapping[str, Any], script: str, flags: Sequence[str], added: Mapping[str, str], place: str, monitor: str
) -> None:
    """In a process of Ray's, wherever that is: a job in a process of its own, whose epochs are reported."""
    os.chdir(place)
    folder, name, told = Path(config["folder"]), config["name"], 0
    processes = Processes(script, flags, 1, {**os.environ, **added}, each=0)
    try:
        processes.start(name, config["words"], folder / "logs" / f"{name}.txt")
        codes: dict[str, int] = {}
        while not codes:
            processes.wait(LOOK_EVERY)
            codes = processes.ended()
            history = (read_record(folder / name) or {}).get("history", [])
            for epoch, value in list(enumerate(history, 1))[told:]:
                if value is not None:
                    tune.report({monitor: value, "epoch": epoch})
            told = len(history)
        tune.report({"code": codes[name]})
    finally:
        processes.close()
