"""A sweep from its first trial to its ledger: the screen, the choice on validation, one reading of the test split."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optuna.trial import TrialState
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from thaw.console import console, say
from thaw.redaction import redacted
from thaw.run.run import read_record
from thaw.run.unfinished import replacing
from thaw.search import report
from thaw.search.compare import Configuration, folded, ranked
from thaw.search.ledger import Row, read_rows, write_csv
from thaw.search.settings import Search
from thaw.search.space import Space, value_of
from thaw.search.study import Trials
from thaw.search.sweep import TELL_EVERY, Sweep, Workers, objective, why

NAMES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def run_sweep(
    folder: Path,
    search: Search,
    space: Space,
    workers: Workers,
    monitor: str,
    mode: Literal["min", "max"],
    default: Mapping[str, Any],
    command: str,
) -> int:
    """Run it; the exit code: 0, 1 where all trials failed, 3 where some did, 130 after Ctrl-C.

    Args:
        default: what the configuration has where nothing is swept, of the dimensions in which it lies.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    address = search.storage or f"sqlite:///{folder / 'study.db'}"
    first = carried(search.start_from, space, default)
    first += [default] if search.defaults_first else []
    trials = Trials(folder.name, address, search, space, mode, first)
    say(f"Sweep: {escape(str(folder))}, {trials.n_trials} trials, {min(workers.free, trials.n_trials)} at a time.")
    screen = Screen(trials, monitor, mode)

    def tell(sweep: Sweep) -> None:
        if screen.show(sweep):
            write_csv(folder / "results.csv", ledger(sweep))  # what a kill of the sweep leaves

    with screen:
        sweep = _kind(search)(folder, trials, workers, monitor, tell)
        sweep.run()
        if not sweep.interrupted:
            read_test(sweep, mode)
    rows = ledger(sweep)
    own = {key: default.get(key) for key in space.dimensions if key != "seed"}
    told = None if None in own.values() else space.texts(own)
    report.write(folder, rows, trials.study, folder.name, told)
    with replacing(folder / "sweep.json") as file:
        json.dump(
            {"command": redacted(command), "monitor": monitor, "mode": mode, "trials": trials.n_trials}, file, indent=2
        )
    for line in report.summary(rows, told):
        say(escape(line))
    say(f"Ledger: {escape(str(folder))}/results.csv, results.md, report.html")
    if sweep.interrupted:
        say(f"Interrupted. Go on with the same command: {escape(command)}")
        return 130
    failed = [trial for trial in trials.ended() if trial.state == TrialState.FAIL]
    return (1 if len(failed) == len(trials.ended()) else 3) if failed else 0


def _kind(search: Search) -> type[Sweep]:
    if search.pruner != "asha":
        return Sweep
    from thaw.search.ray_tune import RaySweep  # takes seconds to import

    return RaySweep


def ledger(sweep: Sweep) -> list[Row]:
    """A row for each run that has begun; what the study knows goes before what a killed run could record."""
    known, absent = {}, []
    for trial in sweep.trials.ended():
        reason = trial.user_attrs.get("reason", "")
        for name, overrides in sweep.jobs_of(trial):
            if objective(sweep.folder / name, sweep.monitor) is not None:
                continue
            known[name] = (NAMES[trial.state], reason)
            if trial.state == TrialState.FAIL and not read_record(sweep.folder / name):
                absent.append(Row.absent(sweep.folder / name, overrides, reason))
    here = any(sweep.folder.glob("*/run.json"))
    return [*(read_rows([sweep.folder], known) if here else []), *absent]


def chosen(rows: Sequence[Row], monitor: str, mode: str) -> Configuration | None:
    """The configuration with the best mean of the monitored metric, on validation."""
    return next(iter(ranked(folded(rows), monitor, mode)), None)


def carried(folder: str | None, space: Space, default: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an earlier sweep of other settings has chosen, as a point of this space, if any of it lies in it.

    A value holds as it is. That goes for `optimizer.lr` of linear probes too: there as here it is the body's rate, and
    the head's is `optimizer.head_lr_scale` times it.

    Args:
        default: values of the settings that were not tried there.
    """
    if folder is None or not any(Path(folder).glob("*/run.json")):
        return []
    rows = [row for row in read_rows([Path(folder)]) if row.status == "finished"]
    best = chosen(rows, rows[0].monitor, rows[0].mode) if rows else None
    if best is None or best.settings.keys() == space.dimensions.keys() - {"seed"}:  # of these the sampler learns
        return []
    own = {key: space.dimensions[key] for key in best.settings if key in space.dimensions}
    read = {key: value_of(best.settings[key], dimension) for key, dimension in own.items()}
    found = {key: value for key, value in read.items() if value is not None}
    if found:
        say(escape(f"First: {' '.join(f'{key}={text}' for key, text in space.texts(found).items())}, of {folder}."))
    return [{**default, **found}] if found else []


def read_test(sweep: Sweep, mode: str) -> None:
    """Measure the chosen configuration on the test split, once for each of its seeds."""
    best = chosen(ledger(sweep), sweep.monitor, mode)
    names = {row.folder.name for row in best.rows.values() if not row.read_test} if best else set()
    jobs = {name: overrides for name, overrides in sweep.jobs() if name in names}
    waiting, running = list(jobs), set()
    try:
        while waiting or running:
            while waiting and sweep.workers.free:
                name = waiting.pop(0)
                sweep.begin(name, jobs[name], "resume=must", "test=true")
                running.add(name)
            for name, code in sweep.workers.ended().items():
                running.discard(name)
                if code:
                    say(f"[yellow]The test split could not be read: {escape(why(sweep.folder, name, code))}.[/]")
            sweep.tell(sweep)
            sweep.workers.wait(TELL_EVERY)
    except KeyboardInterrupt:
        sweep.interrupted = True
    finally:
        sweep.workers.close()


class Screen:
    """How far a sweep is: counts, the best so far, what runs, and the time left; a line for each trial that ends."""

    def __init__(self, trials: Trials, monitor: str, mode: str) -> None:
        self.trials, self.monitor, self.mode = trials, monitor, mode
        self._live = Live(console=console, transient=True, refresh_per_second=4)
        self._began, self._before = time.monotonic(), len(trials.ended())
        self._said = {trial.number for trial in trials.ended()}

    def __enter__(self) -> "Screen":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, sweep: Sweep) -> bool:
        """Whether a trial has ended since the last time."""
        ended, before = self.trials.ended(), len(self._said)
        for trial in ended:
            if trial.number not in self._said:
                self._said.add(trial.number)
                settings = " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
                value = "" if trial.value is None else f" {self.monitor} {trial.value:.4f}"
                reason = trial.user_attrs.get("reason", "")
                say(
                    # Not by Optuna's numbers: what was begun again has two.
                    f"trial {len(self._said)} of {self.trials.n_trials}: {NAMES[trial.state]}{value} "
                    f"{escape(settings)}{reason and ': '}{escape(reason)}"
                )
        self._live.update(self._table(sweep, ended))
        return len(self._said) > before

    def _table(self, sweep: Sweep, ended: Sequence[Any]) -> Table:
        count = {state: sum(trial.state == state for trial in ended) for state in NAMES}
        values = [trial.value for trial in ended if trial.state == TrialState.COMPLETE]
        best = (max if self.mode == "max" else min)(values, default=None)
        done = len(ended) - self._before
        left = (time.monotonic() - self._began) / done * self.trials.open if done else None
        table = Table.grid(padding=(0, 2))
        table.add_row(
            f"[bold]{len(ended)} of {self.trials.n_trials}[/]",
            f"{count[TrialState.PRUNED]} pruned, {count[TrialState.FAIL]} failed, {len(sweep.running)} running",
            "" if best is None else f"best {self.monitor} {best:.4f}",
            "" if left is None else f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left",
            sweep.workers.progress,
        )
        return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
