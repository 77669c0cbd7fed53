"""The trials of a sweep in Optuna's storage: what is tried next and what came of it, for any number of machines."""

import contextlib
import functools
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from thaw.errors import UserError, first_line
from thaw.redaction import redacted
from thaw.run.lock import alive
from thaw.search.algorithms import pruner, sampler
from thaw.search.settings import Search
from thaw.search.space import Space

# Seconds: how often a running trial says that somebody works on it, and after how long without that nobody does.
HEARTBEAT, GRACE = 20, 120
# Seconds that another process may take to write down what a new sweep begins with.
PLANNING = 60
# How often a trial is begun again whose process was gone.
RETRIES = 3

optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notes: on what is new in it, and that its own loop would send the heartbeats, as `tend` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        yield


class Trials:
    """The trials of one sweep, shared by all processes that work on it.

    Args:
        name: of the study in the storage.
        address: of the storage, as SQLAlchemy writes it.
        first: points to try before all others.

    Raises:
        UserError: the storage does not answer, or holds another space under this name.
    """

    @_quiet()
    def __init__(
        self,
        name: str,
        address: str,
        search: Search,
        space: Space,
        mode: Literal["min", "max"],
        first: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.search, self.space, self.mode = search, space, mode
        again = functools.partial(self._again, most=RETRIES)
        self.storage = storage_at(address, again)
        options = {"storage": self.storage, "study_name": name, "pruner": pruner(search)}
        described = _described(space)
        try:
            self.study = optuna.create_study(**options, direction={"min": "minimize", "max": "maximize"}[mode])
            self.study.set_user_attr("space", described)
            self._plan(first)
        except DuplicatedStudyError:
            self.study = optuna.load_study(**options)
            self._wait_for_plan(first)
            _assert_same(self.study.user_attrs["space"], described, name)
        self.n_trials = search.n_trials or sum(1 for _ in space.combinations())
        self._beat = 0.0

    def resume(self) -> None:
        """Try again what has failed before, unless somebody works on the sweep now."""
        self.tend()
        if not self._all(TrialState.RUNNING):
            for trial in self.ended():
                if trial.state == TrialState.FAIL:
                    self._again(self.study, trial)

    @_quiet()
    def take(self) -> Trial | None:
        """The next trial, or None where as many as wanted have ended or run."""
        if not self._all(TrialState.WAITING) and len(self._counted()) >= self.n_trials:
            return None
        # One made anew for each trial: after an interruption it draws what it would have drawn.
        seed = self.search.seed + len(self.study.get_trials(deepcopy=False))
        self.study.sampler = sampler(self.search, seed % 2**32)
        trial = self.study.ask(dict(self.space.dimensions))
        trial.set_user_attr("owner", [socket.gethostname(), os.getpid()])
        self.storage.record_heartbeat(trial._trial_id)
        if sum(other.number < trial.number for other in self._counted()) >= self.n_trials:
            trial.set_user_attr("surplus", True)  # another process took the last one at the same moment
            self.tell(trial, TrialState.FAIL)
            return None
        return trial

    def owner_before(self, trial: Trial) -> str | None:
        """The computer that a trial begun again was given up by."""
        before = trial.user_attrs.get("again_of")
        return (
            None if before is None else self.study.get_trials(deepcopy=False)[before].user_attrs.get("owner", [None])[0]
        )

    def tell(self, trial: Trial, state: TrialState, value: float | None = None, reason: str | None = None) -> None:
        """Write down how a trial has ended."""
        if reason:
            trial.set_user_attr("reason", reason)
        self.study.tell(trial.number, values=value, state=state, skip_if_finished=True)

    def give_back(self, trial: Trial) -> None:
        """Leave a trial that was interrupted to whoever goes on with the sweep."""
        left = self.study.get_trials(deepcopy=False)[trial.number]
        self.tell(trial, TrialState.FAIL)
        self._again(self.study, left, tries=left.user_attrs.get("tries", 1))

    @_quiet()
    def tend(self, running: Sequence[Trial] = ()) -> None:
        """Say that trials are worked on, and begin again those of processes that are gone."""
        if time.monotonic() - self._beat > HEARTBEAT:
            self._beat = time.monotonic()
            for trial in running:
                self.storage.record_heartbeat(trial._trial_id)
            fail_stale_trials(self.study)
        for trial in self._all(TrialState.RUNNING):
            host, process = trial.user_attrs.get("owner", (None, None))
            if host == socket.gethostname() and not alive(process):
                try:
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                except UpdateFinishedTrialError:  # another process was faster
                    continue
                self._again(self.study, trial, most=RETRIES)

    def ended(self) -> list[FrozenTrial]:
        """Trials that have ended, in their order, without those begun again and those of earlier sweeps."""
        return [trial for trial in self._counted() if trial.state.is_finished()]

    @property
    def open(self) -> int:
        """How many trials are still to end."""
        return max(self.n_trials - len(self.ended()), 0)

    def _all(self, *states: TrialState) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if "learned" not in trial.user_attrs]

    def _counted(self) -> list[FrozenTrial]:
        trials = self._all()
        again = {trial.user_attrs.get("again_of") for trial in trials}
        return [trial for trial in trials if trial.number not in again and "surplus" not in trial.user_attrs]

    @staticmethod
    def _again(study: optuna.Study, trial: FrozenTrial, most: int | None = None, tries: int | None = None) -> None:
        tries = tries or trial.user_attrs.get("tries", 1) + 1
        if most is None or tries <= most:
            study.enqueue_trial(trial.params, user_attrs={"again_of": trial.number, "tries": tries})

    def _plan(self, first: Sequence[Mapping[str, Any]]) -> None:
        for trial in _learned(self.search.start_from, self.space):
            self.study.add_trial(trial)
        grid = self.space.combinations() if self.search.sampler == "grid" else ()
        for point in [*first, *grid]:
            self.study.enqueue_trial(dict(point), skip_if_exists=True)
        self.study.set_user_attr("planned", True)

    def _wait_for_plan(self, first: Sequence[Mapping[str, Any]]) -> None:
        began = time.monotonic()
        while not self.study.user_attrs.get("planned"):
            if time.monotonic() - began > PLANNING:  # whoever began it is gone
                self.study.set_user_attr("space", _described(self.space))
                self._plan(first)
            time.sleep(0.2)


@_quiet()
def storage_at(address: str, stale: Any = None) -> RDBStorage:
    """Optuna's storage at an address.

    Raises:
        UserError: nothing answers there, or it cannot be written.
    """
    beats = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE, "heartbeat_stale_trial_callback": stale}
    # Several processes may write at once; SQLite would give up after five seconds.
    options = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {"pool_pre_ping": True}
    for tries in range(5, 0, -1):
        try:
            return RDBStorage(address, engine_kwargs=options, **beats)
        except Exception as error:  # of SQLAlchemy, of the driver, or that there is none
            said = f"{error} {error.__cause__}"
            if tries > 1 and re.search("already exists|unique constraint", said, re.IGNORECASE):
                # Another makes the same tables at this moment.
                time.sleep(0.5)
                continue
            raise UserError(
                f"search.storage must be a database that can be written; {address.partition(':')[0]} says: "
                f"{first_line(error)}. Write search.storage=null, or e.g. postgresql+psycopg://host/name."
            ) from None
    raise AssertionError


def _described(space: Space) -> dict[str, Any]:
    return redacted({"fixed": sorted(space.fixed), "swept": dict(space.written)})


def _assert_same(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    apart = [
        f"{key}={before['swept'].get(key, '(not swept)')} before, {now['swept'].get(key, '(not swept)')} now"
        for key in dict.fromkeys([*before["swept"], *now["swept"]])
        if before["swept"].get(key) != now["swept"].get(key)
    ]
    apart += [f"{text} before alone" for text in before["fixed"] if text not in now["fixed"]]
    apart += [f"{text} now alone" for text in now["fixed"] if text not in before["fixed"]]
    if apart:
        raise UserError(
            f"A sweep must go on with the space it began with; that of '{name}' was another: {'; '.join(apart)}. "
            "Write it as before, or another search.dir."
        )


def _learned(folder: str | None, space: Space) -> list[FrozenTrial]:
    """The finished trials of an earlier sweep that lie in the space, for the sampler alone."""
    if folder is None:
        return []
    storage = storage_at(f"sqlite:///{folder}/study.db")
    study = optuna.load_study(study_name=None, storage=storage)
    held = space.dimensions
    return [
        create_trial(value=trial.value, params=trial.params, distributions=dict(held), user_attrs={"learned": folder})
        for trial in study.get_trials(states=(TrialState.COMPLETE,))
        if trial.params.keys() == held.keys() and all(_lies_in(trial.params[key], held[key]) for key in held)
    ]


def _lies_in(value: Any, distribution: optuna.distributions.BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return isinstance(value, (int, float)) and distribution.low <= value <= distribution.high
