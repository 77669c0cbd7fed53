"""Strategies by layer group: phases of one's own, and thaws that wait for a plateau."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_freezing import GROUPS, fit
from torch import Tensor

from thaw.errors import UserError
from thaw.freezing.by_group import Gradual, LastN, Phases
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.run.checkpoint import load_checkpoint

QUICK = ("logger=none", "data.train_size=64", "trainer=cpu", "optimizer.lr=1e-3", "callbacks=none")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# Phases


def phases(*chosen: tuple) -> Phases:
    return Phases([dict(zip(("at", "groups", "lr"), phase, strict=False)) for phase in chosen])


def trained(strategy: Phases, epochs: int) -> list[list[str]]:
    return [list(strategy.trains(GROUPS, epoch, epochs)) for epoch in range(epochs)]


def test_phases_begin_at_epochs_and_at_shares() -> None:
    strategy = phases((0, ["head"]), (2, ["block03", "head"]), (0.5, ["*"]))
    assert trained(strategy, 8) == [["head"]] * 2 + [["block03", "head"]] * 2 + [GROUPS] * 4
    assert trained(phases((0, ["head"]), (0.5, ["*"]), (1, ["stem"])), 4) == [["head"], ["stem"], GROUPS, GROUPS]


def test_of_two_phases_that_begin_in_one_epoch_of_a_short_run_the_later_holds() -> None:
    strategy = phases((0, ["head"]), (0.2, ["block*", "head"]), (0.5, ["*"]))
    assert trained(strategy, 2) == [["block00", "block01", "block02", "block03", "head"], GROUPS]


def test_patterns_name_groups_in_forward_order() -> None:
    for patterns, expected in (
        (["head", "block0[1-2]"], ["block01", "block02", "head"]),
        (["*"], GROUPS),
        (["block*"], GROUPS[1:-1]),
        (["stem", "s*"], ["stem"]),
    ):
        assert trained(phases((0, patterns)), 1) == [expected]


def test_patterns_without_a_group_are_named_all_at_once_with_the_closest() -> None:
    network = timm_network("resnet_glyphs", 10, weights="none")
    strategy = phases((0, ["haed"]), (1, ["block9*", "blok03", "head"]), (2, []))
    with pytest.raises(UserError) as error:
        strategy.prepare(network)
    assert error.value.problems == (
        "freezing.phases[0].groups must name layer groups (stem … head); got 'haed'. Did you mean 'head'?",
        "freezing.phases[1].groups must name layer groups (stem … head); got 'block9*'. Did you mean 'block03'?",
        "freezing.phases[1].groups must name layer groups (stem … head); got 'blok03'. Did you mean 'block03'?",
        "freezing.phases[2].groups must name a layer group. Write e.g. [head].",
    )


@pytest.mark.medium
def test_mistakes_in_phases_end_a_run_before_anything_is_written(run_train, tmp_path: Path) -> None:
    for given, said in (
        ("[{at: 0, groups: [haed]}, {at: 1, groups: [blok03]}]", ["'haed'", "'blok03'", "'head'?", "'block03'?"]),
        ("[{at: 1, groups: [head]}]", ["freezing.phases must begin at 0; the first is at 1. Write at: 0."]),
        ("[{at: 0, group: [head]}]", ["freezing.phases"]),
        ("[{at: 1.5, groups: [head]}]", ["freezing.phases"]),
        ("[{at: 0, groups: [head], lr: -1}]", ["freezing.phases"]),
        ("[]", ["freezing.phases"]),
    ):
        outcome = run_train(*QUICK, "freezing=schedule", f"freezing.phases={given}")
        assert outcome.code == 2, given
        assert "Traceback" not in outcome.errors
        assert not [words for words in said if words not in outcome.errors], outcome.errors
        assert not (tmp_path / "runs").exists()


def test_the_rate_of_a_phase_scales_that_of_every_group() -> None:
    strategy = Phases(
        [{"at": 0, "groups": ["*"]}, {"at": 1, "groups": ["*"], "lr": 3e-5}, {"at": 2, "groups": ["head"]}], rewarm=0
    )
    module, snapshots, trainer = fit(strategy)
    assert module.network.lr == 3e-4
    share = [module.schedule((index + 1) / 10) for index in range(9)]
    for index, rates in enumerate(snapshots.rates):
        scale = 0.1 if index // 3 == 1 else 1
        assert rates["head/decay"] == pytest.approx(3e-3 * scale * share[index])
        assert rates["block00/decay"] == pytest.approx(0 if index // 3 == 2 else 3e-4 * scale * share[index])
    assert strategy.timeline == [(0, GROUPS, None), (1, GROUPS, 3e-5), (2, ["head"], None)]
    rows = [{row["group"]: row["lr"] for row in stage["groups"]} for stage in strategy.contract]
    assert [row["head"] for row in rows] == pytest.approx([3e-3, 3e-4, 3e-3])
    assert [row["block00"] for row in rows] == pytest.approx([3e-4, 3e-5, 0])
    assert trainer.current_epoch == 3


def test_a_group_that_a_later_phase_freezes_again_stands_still_from_then_on() -> None:
    """Also the momentum of the optimizer, which has a state for it by now, does not move it."""
    strategy = phases((0, ["*"]), (1, ["block03", "head"]), (2, ["stem", "head"]))
    module, snapshots, _ = fit(strategy)
    for epoch, moving in enumerate([set(GROUPS), {"block03", "head"}, {"stem", "head"}]):
        before, after = snapshots.states[epoch], snapshots.states[epoch + 1]
        for group, names in module.network.groups.items():
            assert {torch.equal(before[n], after[n]) for n in names} == {group not in moving}
    assert [len(stage["groups"]) for stage in strategy.contract] == [6, 6, 6]


@pytest.mark.medium
def test_the_phases_of_the_configuration_run_and_are_recorded(run_train) -> None:
    given = "[{at: 0, groups: [head]}, {at: 0.5, groups: [block0*, head], lr: 1e-4}]"
    outcome = run_train(*QUICK, "freezing=schedule", f"freezing.phases={given}", "trainer.max_epochs=4")
    assert outcome.code == 0, outcome.errors
    record = outcome.record
    assert record["timeline"] == [
        {"epoch": 0, "groups": ["head"], "lr": None},
        {"epoch": 2, "groups": GROUPS[1:], "lr": 1e-4},
    ]
    assert [stage["epoch"] for stage in record["contract"]] == [0, 2]
    rows = record["contract"][1]["groups"]
    assert [row["group"] for row in rows] == GROUPS
    assert [row["trainable"] > 0 for row in rows] == [False] + [True] * 5
    assert [row["lr"] for row in rows] == pytest.approx([0, *[1e-4] * 4, 1e-3])
    assert [row["weight_decay"] for row in rows] == pytest.approx([0] + [0.05] * 5)
    assert [row["mode"] for row in rows] == ["eval"] + ["train"] * 5
    assert record["parameters"]["trainable_at_end"] == sum(row["parameters"] for row in rows[1:])


# Plateau

SCRIPT = [0.5, 0.4, 0.6, 0.5, 0.55, 0.7]  # with patience 1 the thaws are at epochs 2, 4 and 5


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`scripted(values)`: while training, the validation accuracy of an epoch is what stands there."""
    log = FineTuner.log_dict

    def script(values: list[float]) -> None:
        def told(self: FineTuner, metrics: dict[str, Tensor], *arguments: Any, **options: Any) -> None:
            if "val/accuracy" in metrics and self.trainer.state.fn == "fit":
                metrics = metrics | {"val/accuracy": torch.tensor(values[self.current_epoch])}
            log(self, metrics, *arguments, **options)

        monkeypatch.setattr(FineTuner, "log_dict", told)

    return script


@contextmanager
def states_at_epoch_start(states: list[dict[str, Tensor]]) -> Iterator[None]:
    hook = FineTuner.on_train_batch_start

    def note(self: FineTuner, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            states.append({n: held.clone() for n, held in self.network.state_dict().items()})
        hook(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuner, "on_train_batch_start", note)
        yield


def thaws(values: list[float], scripted: Any, **options: Any) -> list[int]:
    scripted(values)
    strategy = Gradual(on="plateau", **options)
    fit(strategy, epochs=len(values), network=timm_network("resnet_glyphs", 10))
    begun = [epoch for epoch in strategy.thaws if epoch < len(values)]
    assert [stage.epoch for stage in strategy.timeline] == [0, *begun]
    assert [len(stage.groups) for stage in strategy.timeline] == list(range(1, len(begun) + 2))
    return strategy.thaws


@pytest.mark.medium
def test_a_thaw_waits_for_patience_epochs_without_improvement(scripted) -> None:
    assert thaws([0.1, 0.2, 0.3, 0.4], scripted, patience=1) == []
    assert thaws([0.5, 0.4, 0.6, 0.5, 0.6, 0.7], scripted, patience=2) == [5]  # as good is no improvement
    assert thaws([0.5] * 7, scripted, patience=2) == [3, 5, 7]  # epoch 7 is not run
    assert thaws([0.5] * 9, scripted, patience=1) == [2, 3, 4, 5, 6]  # five groups below the head


def test_a_metric_that_shall_fall_thaws_when_it_does_not(monkeypatch) -> None:
    strategy = Gradual(on="plateau", patience=1)
    values = [3.0, 2.0, 2.5, 1.0]
    log = FineTuner.log_dict

    def told(self: FineTuner, metrics: dict[str, Tensor], *arguments: Any, **options: Any) -> None:
        if "val/loss" in metrics:
            metrics = metrics | {"val/loss": torch.tensor(values[self.current_epoch])}
        log(self, metrics, *arguments, **options)

    monkeypatch.setattr(FineTuner, "log_dict", told)
    init = FineTuner.__init__
    monkeypatch.setattr(FineTuner, "__init__", lambda self, *a, **k: init(self, *a, monitor="val/loss", **k))
    fit(strategy, epochs=4)
    assert strategy.thaws == [3]


@pytest.mark.medium
def test_early_stopping_waits_for_the_last_thaw_on_a_plateau(run_train, scripted) -> None:
    scripted([0.5] * 30)
    outcome = run_train(
        *QUICK[:-1],
        "freezing.on=plateau",
        "freezing.patience=2",
        "callbacks.early_stopping.patience=3",
        "trainer.max_epochs=30",
    )
    assert outcome.code == 0
    epochs = [stage["epoch"] for stage in outcome.record["timeline"]]
    assert epochs == [0, 3, 5, 7, 9, 11]
    assert outcome.record["epochs"] == 14  # three epochs in which all trains


def plateau(run_train, *options: str):
    return run_train(
        *QUICK, "freezing.on=plateau", "freezing.patience=1", f"trainer.max_epochs={len(SCRIPT)}", *options
    )


@pytest.mark.medium
def test_roll_back_puts_the_best_epochs_weights_back_before_each_thaw(run_train, scripted) -> None:
    scripted(SCRIPT)
    for rolled in (True, False):
        starts: list[dict[str, Tensor]] = []
        with states_at_epoch_start(starts):
            outcome = plateau(run_train, f"freezing.roll_back={rolled}")
        assert outcome.code == 0, outcome.errors
        assert [stage["epoch"] for stage in outcome.record["timeline"]] == [0, 2, 4, 5]
        # Epoch 2 goes on from the end of epoch 0, epochs 4 and 5 from the end of epoch 2.
        assert same(starts[2], starts[1]) == rolled
        assert same(starts[4], starts[3]) == rolled
        assert same(starts[5], starts[3]) == rolled
        assert not same(starts[3], starts[2])
        last = load_checkpoint(outcome.folders[-1] / "checkpoints" / "last.ckpt")
        assert last["callbacks"]["Gradual"]["thaws"] == [2, 4, 5]


@pytest.mark.parametrize(("roll_back", "stops"), [(False, [1, 4]), (True, range(5))], ids=["on", "back"])
@pytest.mark.slow
def test_a_run_stopped_after_any_epoch_goes_on_with_the_same_thaws(
    run_train, scripted, stopped_after_epoch, roll_back: bool, stops
) -> None:
    scripted(SCRIPT)
    options = (f"freezing.roll_back={roll_back}",)
    whole = plateau(run_train, *options, "run.dir=runs/whole")
    expected, record = load_checkpoint(whole.folders[-1] / "checkpoints" / "last.ckpt"), whole.record
    for epoch in stops:
        folder = f"run.dir=runs/stopped{epoch}"
        with stopped_after_epoch(epoch):
            assert plateau(run_train, *options, folder).code == 130
        again = plateau(run_train, *options, folder, "resume=must")
        assert again.code == 0, again.errors
        found = load_checkpoint(again.folders[-1] / "checkpoints" / "last.ckpt")
        assert same(found["state_dict"], expected["state_dict"]), f"stopped after epoch {epoch}"
        assert found["callbacks"]["Gradual"] == expected["callbacks"]["Gradual"]
        for key in ("metrics", "best_epoch", "timeline", "contract", "freezing", "steps", "epochs"):
            assert again.record[key] == record[key], key


def test_roll_back_without_a_plateau_or_without_checkpoints_is_refused(scripted) -> None:
    with pytest.raises(UserError, match=r"roll_back must go with freezing\.on=plateau"):
        Gradual(roll_back=True)
    scripted(SCRIPT)
    with pytest.raises(UserError, match="must find the best epoch's checkpoint"):
        fit(Gradual(on="plateau", patience=1, roll_back=True))


def test_a_plateau_of_training_is_refused(run_train) -> None:
    outcome = plateau(run_train, "monitor=train/loss")
    assert outcome.code == 2
    assert "monitor must be of validation with freezing.on=plateau; got 'train/loss'" in outcome.errors


def test_an_epoch_without_validation_is_no_epoch_without_improvement(scripted) -> None:
    scripted([0.5, 0.5, 0.4, 0.4, 0.3, 0.3])
    strategy = Gradual(on="plateau", patience=2)

    class EverySecond(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, *_: object) -> None:
            trainer.check_val_every_n_epoch = 2

    fit(strategy, epochs=6, callbacks=[EverySecond()])
    assert strategy.thaws == [6]


def test_last_n_beyond_the_groups_is_all_of_them() -> None:
    assert list(LastN(n=6).trains(GROUPS, 0, 1)) == list(LastN(n=5).trains(GROUPS, 0, 1)) == GROUPS
    assert list(LastN(n=4).trains(GROUPS, 0, 1)) == GROUPS[1:]
