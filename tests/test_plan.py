"""A plan tells what a run then does: the same rates at every step, the same stages, decisions and files."""

import functools
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import Outcome
from test_config import composed

from scripts import plan as script
from thaw import config
from thaw.build import fine_tuner
from thaw.console import quiet_lightning
from thaw.freezing.by_group import Gradual, Phases, ProbeThenTune
from thaw.freezing.freezing import Freezing, thaw_epochs
from thaw.freezing.surgical import Surgical
from thaw.model.network import Network
from thaw.model.timm import timm_network
from thaw.optimizer import create_optimizer
from thaw.plan import figure as plan_figure
from thaw.plan.plan import Plan, make_plan, rates_at, trainer_for
from thaw.scheduler import GroupSchedule, Schedule

EPOCHS, STEPS_AN_EPOCH = 7, 6
STEPS = EPOCHS * STEPS_AN_EPOCH
SCHEDULERS = sorted(path.stem for path in (config.CONF / "scheduler").glob("*.yaml"))
# Every strategy, and those of its settings that change when what trains, or how fast.
STRATEGIES = [(f"freezing={path.stem}",) for path in sorted((config.CONF / "freezing").glob("*.yaml"))] + [
    ("freezing=gradual", "freezing.on=plateau", "freezing.patience=1"),
    ("freezing=gradual", "freezing.batch_norm=train", "freezing.rewarm=0"),
    ("freezing=schedule", "freezing.phases=[{at:0,groups:[head],lr:1e-2},{at:2,groups:[stem]},{at:0.6,groups:['*']}]"),
]


@functools.cache
def prepared(strategy: tuple[str, ...]) -> tuple[Freezing, Network]:
    freezing = config.build(composed(*strategy).freezing)
    if freezing.rewarm:
        freezing.rewarm = 0.2
    network = timm_network("resnet_glyphs", 10)
    freezing.prepare(network)
    freezing.assume_earliest(list(network.groups))
    if isinstance(freezing, Surgical):
        freezing.relative_norms = {"stem": 0.1, "block00": 0.3, "block01": 0.2}
    return freezing, network


@functools.cache
def schedule(name: str) -> Schedule:
    return config.build(composed(f"scheduler={name}").scheduler)


def group_schedule(network: Network, name: str) -> GroupSchedule:
    return GroupSchedule(create_optimizer(network, lr=1e-3), schedule(name), STEPS)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=" ".join)
def test_every_schedule_goes_with_every_strategy(strategy: tuple[str, ...], name: str) -> None:
    """A frozen group stands at 0, a thawed one rises over `rewarm` and never jumps above its full rate."""
    freezing, network = prepared(strategy)
    groups = list(network.groups)
    planned = rates_at(freezing, network, group_schedule(network, name), EPOCHS, STEPS_AN_EPOCH, range(STEPS))
    full = {group["name"]: group["initial_lr"] for group in group_schedule(network, name).optimizer.param_groups}
    with_norms = network.groups_with_batch_norm if freezing.batch_norm == "train" else []
    thawed = 0
    for step in range(STEPS):
        stages = freezing.stages(groups, step // STEPS_AN_EPOCH, EPOCHS)
        since = dict.fromkeys(with_norms, 0) | thaw_epochs(stages)
        factor = schedule(name)((step + 1) / (STEPS + 1)) * (stages[-1].lr or 1e-3) / 1e-3
        for torch_group, rate in full.items():
            layer, found = torch_group.partition("/")[0], planned[torch_group][step]
            if layer not in since:
                assert found == 0
                continue
            assert 0 < found <= rate * factor * (1 + 1e-12)
            done = (step - since[layer] * STEPS_AN_EPOCH + 1) / (freezing.rewarm * STEPS) if freezing.rewarm else 1
            thawed += since[layer] > 0 and done < 1
            assert found == pytest.approx(rate * factor * (min(1.0, done) if since[layer] else 1.0))
    assert bool(thawed) == (freezing.rewarm > 0 and strategy[0] in THAWING)


THAWING = ("freezing=gradual", "freezing=probe_then_tune", "freezing=schedule")


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=" ".join)
def test_rates_are_planned_as_they_come_step_by_step_also_after_a_resume(strategy: tuple[str, ...], name: str) -> None:
    freezing, network = prepared(strategy)
    groups = list(network.groups)
    planned = rates_at(freezing, network, group_schedule(network, name), EPOCHS, STEPS_AN_EPOCH, range(STEPS))
    whole, found = group_schedule(network, name), {torch_group: [] for torch_group in planned}
    for epoch in range(EPOCHS):
        if epoch in (3, 5):  # as from a checkpoint, in another process
            state = whole.state_dict()
            whole = group_schedule(network, name)
            whole.load_state_dict(state)
        freezing.set_rates(whole, network, freezing.stages(groups, epoch, EPOCHS), STEPS_AN_EPOCH)
        for _ in range(STEPS_AN_EPOCH):
            for torch_group in whole.optimizer.param_groups:
                found[torch_group["name"]].append(torch_group["lr"])
            whole.optimizer.step()
            whole.step()
    assert found == planned


# A real run


class Rates(L.Callback):
    """The rates in use at each optimizer step."""

    def __init__(self) -> None:
        self.used: dict[str, list[float]] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: object) -> None:
        for group in trainer.optimizers[0].param_groups:
            self.used.setdefault(group["name"], []).append(group["lr"])


def planned(*overrides: str) -> tuple[Plan, Callable[..., L.Trainer], object]:
    quiet_lightning()
    cfg = composed("data.train_size=80", "data.batch_size=16", "data.num_workers=0", "trainer=cpu", *overrides)
    data, task, _ = config.preflight(cfg)
    module, freezing = fine_tuner(cfg, data, task, task.monitor)
    make_trainer = trainer_for(config.builder(cfg.trainer), "32-true", 5)
    found = make_plan(module, freezing, data, make_trainer)

    def run(**more: object) -> Rates:
        module, freezing = fine_tuner(cfg, data, task, task.monitor)
        rates = Rates()
        make_trainer(callbacks=[freezing, rates], limit_val_batches=1, **more).fit(module, data)
        assert [phase.states for phase in found.phases][-1] == freezing.states
        assert [phase.stage for phase in found.phases] == freezing.timeline
        return rates

    return found, run, module


@pytest.mark.medium
@pytest.mark.parametrize(
    "overrides",
    [
        ("freezing=gradual", "scheduler=cosine"),
        ("freezing=gradual", "scheduler=cosine", "trainer.accumulate_grad_batches=2", "optimizer.layer_decay=0.7"),
        ("freezing=probe_then_tune", "scheduler=one_cycle", "freezing.rewarm=0.3"),
        (
            "freezing=schedule",
            "scheduler=linear",
            "freezing.phases=[{at:0,groups:[head],lr:1e-3},{at:0.5,groups:[stem,head]}]",
        ),
        ("freezing=surgical", "scheduler=transformers", "scheduler.name=cosine_with_restarts"),
        ("freezing=lora", "scheduler=warmup_stable_decay"),
        ("freezing=gradual", "freezing.every=1", "freezing.rewarm=0.1", "scheduler=linear", "+trainer.max_steps=13"),
    ],
    ids=" ".join,
)
def test_the_rates_of_a_real_run_are_those_planned(overrides: tuple[str, ...]) -> None:
    found, run, _ = planned(*overrides)
    used = run().used
    assert len(used["head/decay"]) == found.steps == len(found.at)
    for name, rates in used.items():
        assert rates == found.rates[name.partition("/")[0]], name


def test_a_group_that_thaws_rises_slowly_also_where_max_steps_ends_the_run() -> None:
    found, _, _ = planned("freezing.every=1", "freezing.rewarm=0.2", "scheduler.warmup=0", "+trainer.max_steps=13")
    assert [found.epochs, found.steps, found.phases[1].stage.epoch] == [3, 13, 1]
    body, head = found.rates["block03"], found.rates["head"]
    shares = [10 * rate / full for rate, full in zip(body, head, strict=True)]
    assert shares == pytest.approx([0] * 5 + [1 / 2.6, 2 / 2.6] + [1] * 6)


def test_planning_moves_no_weight() -> None:
    _, _, module = planned("freezing=gradual", "regularization=l1")
    fresh, _, other = planned("freezing=none")
    assert fresh.phases[0].stage.groups == list(fresh.rates)
    state, begun = module.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], begun[name]) for name in state)


# The command


@pytest.fixture
def run_plan(run_task: Callable[..., Outcome]) -> Callable[..., Outcome]:
    return functools.partial(run_task, script.plan, "plan.py")


QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=3", "trainer=cpu", "data.num_workers=0")


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.medium
def test_a_plan_tells_phases_groups_rates_costs_and_files_and_leaves_a_picture_alone(
    run_plan, run_train, reports, tmp_path: Path
) -> None:
    outcome = run_plan(*QUICK, "freezing.every=1")
    assert outcome.code == 0, outcome.errors
    assert below(tmp_path) == {"plans/digits-resnet-gradual.png"}
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in outcome.printed.splitlines()]
    phases = [row for row in rows if len(row) == 6 and row[0].isdigit()]
    assert [row[:3] for row in phases] == [
        ["1", "head", "1,290"],
        ["2", "block03 … head", "231,434"],
        ["3", "block02 … head", "289,162"],
    ]
    assert all(float(row[3]) > 0 and row[5].endswith("GiB") for row in phases)
    assert len([row for row in rows if row[:1] == ["block03"]]) == 4  # three phases and its rate
    listed = next(line for line in outcome.printed.splitlines() if line.startswith("The run would write"))
    files = listed.partition("gradual: ")[2].split(", ")
    assert "runs/digits-resnet-gradual:" in listed
    run_train(*QUICK, "freezing.every=1")
    assert below(tmp_path / "runs" / "digits-resnet-gradual") == set(files)
    again = run_plan(*QUICK, "freezing.every=1")
    assert "runs/digits-resnet-gradual-2:" in again.printed


@pytest.mark.medium
def test_mistakes_are_named_as_by_a_run(run_plan, run_train, tmp_path: Path) -> None:
    mistakes = ("optimizer.lrr=1", "trainer.max_epochs=2.5", "freezing.over=2")
    outcome = run_plan(*mistakes)
    assert outcome.code == 2
    assert outcome.errors == run_train(*mistakes).errors
    unfit = run_plan("freezing=schedule", "freezing.phases=[{at:0,groups:[block9]}]")
    assert unfit.code == 2
    assert unfit.errors.startswith("error: freezing.phases[0].groups must name layer groups")
    assert not below(tmp_path)


@pytest.mark.medium
def test_what_surgical_finds_is_planned_said_and_recorded(run_plan, run_train) -> None:
    planned, run = run_plan(*QUICK, "freezing=surgical"), run_train(*QUICK, "freezing=surgical")
    said = [[line for line in o.printed.splitlines() if line.startswith("surgical: ")] for o in (planned, run)]
    assert said[0] == said[1]
    assert len(said[0]) == 1
    norms = run.record["freezing"]["relative_norms"]
    largest = max(norms, key=norms.get)
    assert said[0][0].startswith(f"surgical: {largest} {norms[largest]:.2g}, ")
    assert said[0][0].endswith(f"… → {largest}")
    assert run.record["timeline"][0]["groups"] == [largest, "head"]


@pytest.mark.medium
def test_what_is_decided_while_it_runs_is_told_at_its_earliest(run_plan) -> None:
    outcome = run_plan(*QUICK, "freezing.on=plateau", "freezing.patience=1", "scheduler=plateau")
    assert outcome.code == 0, outcome.errors
    assert "these thaws are the earliest possible, each after 1 epochs without improvement" in outcome.printed
    assert "the rates shown are those without that" in outcome.printed
    assert "Epochs 1–2" in outcome.printed


@pytest.mark.medium
def test_the_earliest_thaws_on_a_plateau_are_those_of_a_metric_that_never_gets_better(run_train) -> None:
    freezing = Gradual(on="plateau", patience=2)
    freezing.assume_earliest(["stem", "block00", "block01", "head"])
    # The head's rate is as good as zero, so the loss it starts with is its best.
    record = run_train(*QUICK, "trainer.max_epochs=8", "freezing.on=plateau", "optimizer.lr=1e-20").record
    assert [stage["epoch"] for stage in record["timeline"]] == [0, *freezing.thaws]


def test_groups_are_told_in_few_words() -> None:
    order = ["stem", "block00", "block01", "block02", "head"]
    assert plan_figure.ranges(order, order) == "stem … head"
    assert plan_figure.ranges(["stem", "block01", "block02"], order) == "stem, block01 … block02"
    assert [plan_figure.duration(seconds) for seconds in (12, 205, 7500)] == ["12 s", "3:25 min", "2:05 h"]
    assert ProbeThenTune().assume_earliest(order) is None
    assert Phases([{"at": 0, "groups": ["*"]}]).decision() is None
