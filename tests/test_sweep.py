"""Sweeps as a user starts them: what runs, what is left out, what is chosen, and what the ledger says."""

import json
import os
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from sweeping import AT_EPOCH, TINY, ledger, sweep

from thaw.search.settings import Search
from thaw.search.space import Space
from thaw.search.study import Trials
from thaw.search.sweep import Running, Sweep

__all__ = ["sweep"]  # a fixture


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/sweep/study.db")


@pytest.mark.medium
def test_the_same_command_runs_nothing_twice_and_one_configuration_reads_the_test_split(sweep, tmp_path: Path) -> None:
    change = "print('job begins', flush=True)"
    outcome = sweep("optimizer.lr=1e-4,3e-3", "seed=0,1", change=change)
    assert outcome.code == 0, outcome.errors
    rows = ledger(tmp_path)
    assert len(rows) == 4
    best = max({row["optimizer.lr"] for row in rows}, key=lambda lr: mean(rows, lr))
    assert {row["optimizer.lr"] for row in rows if row["test/accuracy"]} == {best}
    assert sum(bool(row["test/accuracy"]) for row in rows) == 2
    assert "The test split was read by 2 of the runs" in outcome.printed
    assert "as it was" not in outcome.printed  # its rate is another
    logs = {path: path.read_text() for path in (tmp_path / "sweep" / "logs").glob("*.txt")}
    assert sorted(text.count("job begins") for text in logs.values()) == [1, 1, 2, 2]
    again = sweep("optimizer.lr=1e-4,3e-3", "seed=0,1", change=change)
    assert again.code == 0
    assert ledger(tmp_path) == rows
    assert {path: path.read_text() for path in (tmp_path / "sweep" / "logs").glob("*.txt")} == logs


def mean(rows: list[dict[str, str]], lr: str) -> float:
    return sum(float(row["objective"]) for row in rows if row["optimizer.lr"] == lr)


@pytest.mark.medium
def test_a_row_repeats_and_its_objective_is_the_best_epochs(sweep, tmp_path: Path, run_train) -> None:
    assert sweep("optimizer.lr=1e-3", "trainer.max_epochs=3").code == 0
    (row,) = ledger(tmp_path)
    record = json.loads(next((tmp_path / "sweep").glob("*/run.json")).read_text())
    assert float(row["objective"]) == max(record["history"]) == record["metrics"]["val/accuracy"]
    assert len(record["history"]) == 3
    assert row["command"].startswith("python train.py ")
    outcome = run_train(*row["command"].split()[2:])
    assert outcome.record["metrics"]["val/accuracy"] == float(row["objective"])
    assert outcome.record["metrics"]["test/accuracy"] == float(row["test/accuracy"])


@pytest.mark.medium
def test_each_job_has_cores_and_a_process_group_of_its_own(sweep, tmp_path: Path) -> None:
    change = """
    import torch
    print("place", os.getpid() == os.getpgrp(), sorted(os.sched_getaffinity(0)), torch.get_num_threads(), flush=True)
    """
    assert sweep("seed=0,1", change=change).code == 0
    logs = [path.read_text() for path in (tmp_path / "sweep" / "logs").glob("*.txt")]
    places = {line for text in logs for line in text.splitlines() if line.startswith("place")}
    assert places
    assert all(line.startswith("place True") for line in places)
    if len(os.sched_getaffinity(0)) > 1:
        assert len(places) == 2


@pytest.mark.medium
def test_a_sampler_tries_the_defaults_first_and_each_trial_over_all_seeds(sweep, tmp_path: Path) -> None:
    swept = ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "freezing=none,gradual", "seed=0,1")
    outcome = sweep("search=random", "search.n_trials=3", *swept)
    assert outcome.code == 0, outcome.errors
    first, *others = study(tmp_path).trials
    assert first.params == {"optimizer.lr": 3e-4, "freezing": "gradual"}
    assert "the configuration as it was" in outcome.printed
    assert len({trial.params["optimizer.lr"] for trial in others} | {3e-4}) == 3
    assert len(ledger(tmp_path)) == 6
    values = [float(row["objective"]) for row in ledger(tmp_path) if row["optimizer.lr"] == "0.0003"]
    assert first.value == pytest.approx(sum(values) / 2)
    more = sweep("search=random", "search.n_trials=4", *swept)
    assert more.code == 0
    assert len(study(tmp_path).trials) == 4  # and not seven


@pytest.mark.slow
def test_a_trial_worse_than_the_others_is_pruned_and_says_so(sweep, tmp_path: Path, monkeypatch) -> None:
    """The sixth of six learns nothing, and the median of the others is there to tell."""
    monkeypatch.setattr("thaw.search.sweep.LOOK_EVERY", 0.02)
    change = AT_EPOCH + "\ndef at_epoch(trainer): time.sleep(0.15)\n"
    rates = ",".join(["3e-3", "2e-3", "4e-3", "5e-3", "6e-3", "1e-9"])
    options = ("search.pruner=median", "search.prune_after=1", "trainer.max_epochs=8", "hydra.launcher.workers=1")
    outcome = sweep(f"optimizer.lr={rates}", *options, change=change)
    assert outcome.code == 0, outcome.errors
    by_rate = {row["optimizer.lr"]: row for row in ledger(tmp_path)}
    assert by_rate["1e-09"]["status"] == "pruned"
    assert 1 <= int(by_rate["1e-09"]["epochs"]) < 8
    assert int(by_rate["0.003"]["epochs"]) == 8
    assert "pruned" in outcome.printed
    states = [trial.state.name for trial in study(tmp_path).trials]
    assert states[-1] == "PRUNED"


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_rungs_end_what_is_worse_at_the_same_epoch(sweep, tmp_path: Path, monkeypatch, pruner: str) -> None:
    monkeypatch.setattr("thaw.search.sweep.LOOK_EVERY", 0.02)
    change = AT_EPOCH + "\ndef at_epoch(trainer): time.sleep(0.15)\n"
    rates = ",".join(["3e-3", "2e-3", "4e-3", "5e-3", "1e-9", "2e-9", "3e-9", "4e-9"])
    options = (f"search.pruner={pruner}", "search.prune_after=1", "trainer.max_epochs=8", "hydra.launcher.workers=1")
    outcome = sweep(f"optimizer.lr={rates}", *options, change=change)
    assert outcome.code == 0, outcome.errors
    by_rate = {row["optimizer.lr"]: row for row in ledger(tmp_path)}
    pruned = {rate for rate, row in by_rate.items() if row["status"] == "pruned"}
    assert pruned & {"1e-09", "2e-09", "3e-09", "4e-09"}
    assert "0.003" not in pruned
    assert all(int(by_rate[rate]["epochs"]) < 8 for rate in pruned)


@pytest.mark.slow
def test_over_seeds_a_trial_that_is_clearly_worse_is_not_tried_with_all(sweep, tmp_path: Path) -> None:
    options = ("search=random", "search.n_trials=3", "search.pruner=wilcoxon")
    swept = ("optimizer.lr=choice(0.0003,1e-9)", "seed=0,1,2,3,4,5,6,7", "data.train_size=100")
    outcome = sweep(*options, *swept, tiny=(*TINY, "hydra.launcher.workers=1"))
    assert outcome.code == 0, outcome.errors
    seeds = Counter(row["optimizer.lr"] for row in ledger(tmp_path))
    assert seeds["0.0003"] == 8
    assert 4 <= seeds["1e-09"] < 8
    assert [trial.state.name for trial in study(tmp_path).trials].count("PRUNED") >= 1


@pytest.mark.slow
def test_a_job_of_two_processes_is_one_job(sweep, tmp_path: Path) -> None:
    two = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.launcher.workers=1")
    outcome = sweep("seed=0", *two)
    assert outcome.code == 0, outcome.printed + outcome.errors
    assert [row["status"] for row in ledger(tmp_path)] == ["finished"]


@pytest.mark.medium
@pytest.mark.fault("F6")
def test_a_server_that_is_down_is_waited_for_once_and_each_run_is_its_own(sweep, tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("thaw.logger._why_offline", lambda: asked.append(1) or "http://localhost does not answer")
    tiny = tuple(word for word in TINY if not word.startswith("logger"))
    outcome = sweep("seed=0,1,2", change="print(os.environ['WANDB_MODE'], flush=True)", tiny=tiny)
    assert outcome.code == 0
    assert len(asked) == 1
    assert outcome.printed.count("W&B: offline for all jobs") == 1
    ids = {path.read_text() for path in (tmp_path / "sweep").glob("*/wandb/id")}
    assert len(ids) == 3
    assert all(path.read_text().startswith("offline") for path in (tmp_path / "sweep" / "logs").glob("*.txt"))


OWN = {"optimizer.lr", "optimizer.weight_decay", "optimizer.layer_decay", "freezing"}  # of search=random


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "swept"),
    [
        ([], OWN),
        (["seed=0,1"], OWN),
        (["freezing=none"], OWN - {"freezing"}),
        (["optimizer.weight_decay=choice(0,0.1)"], {"optimizer.weight_decay"}),
        (["seed=0,1", "data.batch_size=8,16", "freezing=none,gradual"], {"data.batch_size", "freezing"}),
    ],
)
def test_what_the_command_line_sweeps_is_swept_and_else_what_the_search_says(sweep, monkeypatch, words, swept) -> None:
    found = []
    monkeypatch.setattr("thaw.search.run.run_sweep", lambda folder, search, space, *_: found.append(space) or 0)
    assert sweep("search=random", *words).code == 0
    assert found[0].dimensions.keys() == swept
    assert found[0].seeds == (("0", "1") if "seed=0,1" in words else ())


# The study itself


def trials(folder: Path, **settings: object) -> Trials:
    options = {"sampler": "random", "n_trials": 4, "n_random": 0, "pruner": "none", "prune_after": 1, "seed": 0}
    search = Search.of(options | settings)
    space = Space(dimensions={"lr": optuna.distributions.FloatDistribution(0.0, 1.0)}, written={"lr": "interval(0,1)"})
    return Trials("name", f"sqlite:///{folder}/study.db", search, space, "max")


@pytest.mark.medium
def test_as_many_trials_as_wanted_are_handed_out_to_any_number_of_hands(tmp_path: Path) -> None:
    hands = [trials(tmp_path) for _ in range(3)]
    taken = [trial for _ in range(4) for hand in hands if (trial := hand.take())]
    assert len(taken) == 4
    assert len({trial.params["lr"] for trial in taken}) == 4
    for number, trial in enumerate(taken):
        hands[0].tell(trial, optuna.trial.TrialState.COMPLETE, number)
    assert all(hand.take() is None and hand.open == 0 for hand in hands)


def test_a_trial_that_two_took_at_the_same_moment_is_given_back(tmp_path: Path, monkeypatch) -> None:
    one, other = trials(tmp_path, n_trials=1), trials(tmp_path, n_trials=1)
    counted, before = other._counted, [other._counted()]
    first = one.take()
    monkeypatch.setattr(other, "_counted", lambda: before.pop() if before else counted())  # as it was a moment ago
    assert other.take() is None
    one.tell(first, optuna.trial.TrialState.COMPLETE, 0.5)
    assert len(one.ended()) == len(other.ended()) == 1


@pytest.mark.medium
def test_what_is_drawn_depends_on_the_seed_and_not_on_interruptions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    straight = trials(tmp_path / "a")
    at_once = [straight.take().params for _ in range(4)]
    one_by_one = []
    for _ in range(4):
        hand = trials(tmp_path / "b")  # a process of its own each time
        trial = hand.take()
        hand.tell(trial, optuna.trial.TrialState.COMPLETE, 0.0)
        one_by_one.append(trial.params)
    assert at_once == one_by_one


def test_a_trial_of_a_process_that_is_gone_is_begun_again_with_the_same_values(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hand = trials(tmp_path)
    lost = hand.take()
    lost.set_user_attr("owner", [os.uname().nodename, gone.pid])
    hand.tend()
    again = hand.take()
    assert again.params == lost.params
    assert again.number != lost.number
    for trial in [again, *(hand.take() for _ in range(3))]:
        hand.tell(trial, optuna.trial.TrialState.COMPLETE, 0.5)
    assert hand.take() is None
    assert len(hand.ended()) == 4


@pytest.mark.parametrize(("host", "given_up"), [("elsewhere", True), ("a third", False), (os.uname().nodename, False)])
def test_a_job_is_waited_for_while_somebody_holds_it_and_taken_from_a_computer_that_is_gone(
    tmp_path: Path, host: str, given_up: bool
) -> None:
    hand = trials(tmp_path)
    lost = hand.take()
    lost.set_user_attr("owner", ["elsewhere", 1])
    hand._again(hand.study, hand.study.trials[0])
    hand.tell(lost, optuna.trial.TrialState.FAIL)
    begun = []
    workers = SimpleNamespace(free=1, start=lambda name, *_: begun.append(name), ended=dict, close=dict)
    again = Sweep(tmp_path, hand, workers, "val/accuracy", lambda sweep: None)
    ((name, _),) = again.jobs_of(lost)
    (tmp_path / name).mkdir()
    lock = tmp_path / name / "run.lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "host": host}))
    again._start()
    assert begun == [name] * given_up
    assert lock.exists() != given_up
    lock.unlink(missing_ok=True)
    again._start()
    assert begun[0] == name


def test_epochs_are_told_to_the_pruner_by_their_number_from_one_on_and_once(tmp_path: Path) -> None:
    """So that `search.prune_after=2` lets a trial end after two epochs, and not after three."""
    hand, told = trials(tmp_path, pruner="halving"), []
    trial = SimpleNamespace(report=lambda value, epoch: told.append((epoch, value)), should_prune=lambda: False)
    running = Running(trial, deque(), names={"": "job"})
    (tmp_path / "job").mkdir()
    sweep = Sweep(tmp_path, hand, SimpleNamespace(), "val/accuracy", lambda sweep: None)
    for history in ([], [0.1, 0.2], [0.1, 0.2, None, 0.4]):
        (tmp_path / "job" / "run.json").write_text(json.dumps({"history": history}))
        sweep._compare_epochs(running)
        sweep._compare_epochs(running)
    assert told == [(1, 0.1), (2, 0.2), (4, 0.4)]


def test_what_has_failed_is_tried_again_by_the_next_command_alone(tmp_path: Path) -> None:
    hand = trials(tmp_path, n_trials=2)
    first, second = hand.take(), hand.take()
    hand.tell(first, optuna.trial.TrialState.FAIL, reason="it broke")
    hand.tell(second, optuna.trial.TrialState.COMPLETE, 0.5)
    assert hand.take() is None
    later = trials(tmp_path, n_trials=2)
    later.resume()
    assert later.take().params == first.params
    assert later.take() is None


def test_of_a_grid_each_point_is_tried_once_however_often_it_is_gone_on_with(tmp_path: Path) -> None:
    space = Space(dimensions={"a": optuna.distributions.CategoricalDistribution(["1", "2"])}, written={"a": "1,2"})
    search = Search.of({"sampler": "grid", "pruner": "none", "seed": 0})
    for _ in range(3):
        hand = Trials("name", f"sqlite:///{tmp_path}/study.db", search, space, "max")
        hand.resume()
        hand.tell(hand.take(), optuna.trial.TrialState.FAIL)
    hand = Trials("name", f"sqlite:///{tmp_path}/study.db", search, space, "max")
    hand.resume()
    while trial := hand.take():
        hand.tell(trial, optuna.trial.TrialState.COMPLETE, 0.5)
    assert sorted(trial.params["a"] for trial in hand.ended()) == ["1", "2"]
    assert hand.open == 0


@pytest.mark.medium
def test_two_trials_with_the_same_values_share_one_job(sweep, tmp_path: Path) -> None:
    few = ("seed=0", "freezing=none,linear_probe")
    outcome = sweep("search=random", "search.n_trials=4", *few, change="print('job begins', flush=True)")
    assert outcome.code == 0, outcome.errors
    assert len(study(tmp_path).trials) == 4
    logs = [path.read_text().count("job begins") for path in (tmp_path / "sweep" / "logs").glob("*.txt")]
    assert sorted(logs) in ([1, 2], [2])  # and once more for the test split


def test_a_sampler_learns_from_an_earlier_sweep_and_counts_its_own_trials(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old = trials(tmp_path / "old")
    for value in range(4):
        old.tell(old.take(), optuna.trial.TrialState.COMPLETE, value)
    new = trials(tmp_path / "new", **{"from": str(tmp_path / "old"), "n_trials": 1})
    assert len(new.study.trials) == 4
    assert new.ended() == []
    assert new.take() is not None
    assert new.take() is None


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes"])
@pytest.mark.parametrize("pruner", ["none", "median", "halving", "hyperband", "wilcoxon"])
def test_every_sampler_goes_with_every_pruner(tmp_path: Path, sampler: str, pruner: str) -> None:
    hand = trials(tmp_path, sampler=sampler, pruner=pruner, n_trials=6, n_random=2)
    while trial := hand.take():
        trial.report(trial.params["lr"], 1)
        trial.should_prune()
        hand.tell(trial, optuna.trial.TrialState.COMPLETE, trial.params["lr"])
    assert len(hand.ended()) == 6
