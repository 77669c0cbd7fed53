"""Linear probes in one pass: each head ends as the single run of its command would, and one sweep keeps them all."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from sweeping import ledger, sweep
from test_config import composed

from thaw.config import plain, read
from thaw.run.restore import restore
from thaw.search.probe_batch import Batch

__all__ = ["sweep"]  # a fixture

FEW = ("search=probe", "data.augment=none", "data.train_size=70", "logger=none")
GRID = ("optimizer.lr=1e-4,3e-3", "optimizer.weight_decay=0.01,0.5", "model.dropout=0.0,0.4")


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Command → run.json, of all runs of a sweep."""
    found = [json.loads(path.read_text()) for path in (folder / "sweep").glob("*/run.json")]
    return {shlex.join(text for text in record["overrides"] if text != "test=false"): record for record in found}


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [
        ("trainer.max_epochs=14", "callbacks.early_stopping.patience=3", "task.label_smoothing=0.1"),
        ("trainer.max_epochs=3", "optimizer=sgd", "monitor=val/loss", "trainer.gradient_clip_val=0.05"),
        ("trainer.max_epochs=3", "scheduler=plateau", "scheduler.patience=0", "trainer.accumulate_grad_batches=3"),
        (
            "trainer.max_epochs=3",
            "data.sampler=balanced",
            "trainer.precision=bf16-mixed",
        ),
    ],
    ids=["stopping", "sgd", "plateau", "bf16"],
)
def test_each_head_ends_as_the_single_run_of_its_command(sweep, run_train, tmp_path: Path, options) -> None:
    outcome = sweep(*GRID, *options, tiny=FEW)
    assert outcome.code == 0, outcome.printed[-3000:] + outcome.errors
    found = records(tmp_path)
    assert len(found) == 8
    tolerance = 0.03 if "trainer.precision=bf16-mixed" in options else 1e-4
    for command, record in list(found.items())[::3]:
        alone = run_train(*shlex.split(command), "test=false").record
        assert record["history"] == pytest.approx(alone["history"], abs=tolerance)
        assert record["epochs"] == alone["epochs"]
        assert record["steps"] == alone["steps"]
        if tolerance == 1e-4:
            assert record["best_epoch"] == alone["best_epoch"]
        names = {name for name in alone["metrics"] if name.startswith("val/")} | {"train/loss"}
        assert names <= record["metrics"].keys()
        for name in names:
            assert record["metrics"][name] == pytest.approx(alone["metrics"][name], abs=tolerance), name
        for key in ("monitor", "mode", "data", "settled", "parameters", "timeline", "seed"):
            assert record[key] == alone[key], key


TINY = ("trainer.max_epochs=2", "optimizer.lr=1e-4,3e-3", "model.dropout=0.0", "optimizer.weight_decay=0.01")


@pytest.mark.medium
def test_seeds_fold_and_the_chosen_head_alone_reads_the_test_split(sweep, run_train, tmp_path: Path) -> None:
    outcome = sweep(*TINY, "seed=0,1", tiny=FEW)
    assert outcome.code == 0, outcome.errors
    rows = ledger(tmp_path)
    assert len(rows) == 4
    assert {row["optimizer.lr"] for row in rows if row["test/accuracy"]} == {"0.003"}
    assert "The test split was read by 2 of the runs" in outcome.printed
    assert "±" in outcome.printed
    row = next(row for row in rows if row["test/accuracy"] and row["seed"] == "1")
    alone = run_train(*shlex.split(row["command"])[2:])
    assert float(row["test/accuracy"]) == pytest.approx(alone.record["metrics"]["test/accuracy"], abs=1e-4)
    chosen = tmp_path / "sweep" / row["folder"]
    predictions = (chosen / "predictions.csv").read_text().splitlines()
    others = (alone.folders[-1] / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in predictions] == [line.split(",")[:4] for line in others]
    restored = restore(chosen)
    assert restored.measure(restored.checkpoint("best")["state_dict"], "test")["test/accuracy"] == float(
        row["test/accuracy"]
    )


@pytest.mark.medium
def test_what_is_interrupted_goes_on_and_what_is_finished_is_not_trained_again(
    sweep, tmp_path: Path, monkeypatch
) -> None:
    end_epoch, seen = Batch._end_epoch, []

    def stop(self: Batch, left: set[str], losses: list[float]) -> Any:
        ended = end_epoch(self, left, losses)
        seen.append(len(left))
        if len(seen) == 3:  # in the first epoch of the second seed
            raise KeyboardInterrupt
        return ended

    monkeypatch.setattr(Batch, "_end_epoch", stop)
    outcome = sweep(*TINY, "seed=0,1", tiny=FEW)
    assert outcome.code == 130
    assert "Go on with the same command" in outcome.printed
    statuses = [record["status"] for record in records(tmp_path).values()]
    assert sorted(statuses) == ["finished", "finished", "interrupted", "interrupted"]
    assert not list((tmp_path / "sweep").glob("*/run.lock"))
    monkeypatch.undo()
    monkeypatch.setattr(Batch, "_end_epoch", lambda self, *a: seen.append(sorted(self.runs)) or end_epoch(self, *a))
    again = sweep(*TINY, "seed=0,1", tiny=FEW)
    assert again.code == 0, again.errors
    assert len(seen) == 3 + 2
    assert {record["status"] for record in records(tmp_path).values()} == {"finished"}
    assert len(list((tmp_path / "sweep").glob("*/run.json"))) == 4
    done = len(seen)
    assert sweep(*TINY, "seed=0,1", tiny=FEW).code == 0
    assert len(seen) == done


@pytest.mark.medium
def test_a_head_that_runs_away_costs_its_trial_alone(sweep, run_train, tmp_path: Path) -> None:
    outcome = sweep("optimizer.lr=1e-3,1e30", *TINY[2:], "trainer.max_epochs=2", tiny=FEW)
    assert outcome.code == 3
    failed, good = sorted(records(tmp_path).values(), key=lambda record: record["status"] == "finished")
    assert failed["status"] == "failed"
    assert "Training must stay finite" in failed["reason"]
    assert "smaller optimizer.lr" in outcome.printed
    alone = run_train(*good["overrides"]).record
    assert good["history"] == pytest.approx(alone["history"], abs=1e-4)


@pytest.mark.medium
def test_each_view_of_a_sample_is_that_of_its_epoch(sweep, run_train, tmp_path: Path) -> None:
    few = ("search=probe", "data.views=2", "data.train_size=70", "logger=none")
    outcome = sweep(*TINY, "trainer.max_epochs=3", "monitor=val/loss", tiny=few)
    assert outcome.code == 0, outcome.errors
    command, record = next(iter(records(tmp_path).items()))
    alone = run_train(*shlex.split(command), "test=false").record
    assert record["history"] == pytest.approx(alone["history"], abs=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.augment=default", "Write data.augment=none or data.views=4."),
        ("data.mixup=0.2", "Write data.mixup=0 data.cutmix=0."),
        ("freezing=gradual", "freezing must be linear_probe with search=probe"),
        ("freezing.batch_norm=adapt", "freezing must be linear_probe with search=probe"),
        ("regularization=l2_sp", "regularization must be none with search=probe"),
        ("callbacks=ema", "callbacks.ema must be left out with search=probe"),
        ("optimizer=lion", "optimizer.name must be one of adamw, adam, sgd, rmsprop with search=probe"),
        ("trainer=ddp", "with search=probe"),
        ("monitor=train/loss", "monitor must be of validation with search=probe"),
        ("+trainer.max_steps=5", "trainer.max_steps must be left out with search=probe"),
        ("search.pruner=median", "search.pruner must be none with search=probe"),
        ("hydra/launcher=basic", "search=probe trains its heads itself"),
    ],
)
def test_what_cannot_train_together_is_told_before_anything_is_trained(
    sweep, tmp_path: Path, override: str, message: str
) -> None:
    outcome = sweep("optimizer.lr=1e-4,3e-3", override, tiny=FEW)
    assert outcome.code == 2
    assert message in outcome.errors
    assert not list((tmp_path / "sweep").glob("*"))


@pytest.mark.medium
def test_the_best_rate_of_the_probes_is_the_first_trial_of_a_search(sweep, tmp_path: Path) -> None:
    assert sweep(*TINY, tiny=FEW).code == 0
    space = ("optimizer.lr=interval(1e-4,1e-2)", "optimizer.layer_decay=interval(0.5,1.0)")
    small = ("data.train_size=30", "logger=none", "trainer.max_epochs=1", "hydra.launcher.workers=2")
    options = ("search=random", "search.n_trials=1", "search.from=sweep", "search.dir=full")
    outcome = sweep(*space, *options, tiny=small)
    assert outcome.code == 0, outcome.errors
    assert "First: optimizer.lr=0.003, of sweep." in outcome.printed
    (row,) = [json.loads(path.read_text()) for path in (tmp_path / "full").glob("*/run.json")]
    assert {"optimizer.lr=0.003", "optimizer.layer_decay=1.0"} <= set(row["overrides"])


@pytest.mark.medium
def test_a_job_composed_from_another_is_what_hydra_composes(sweep, tmp_path: Path) -> None:
    assert sweep(*TINY[1:], "trainer.max_epochs=1", tiny=FEW).code == 0
    for path in (tmp_path / "sweep").glob("*/config.yaml"):
        written = plain(read(path))
        overrides = json.loads((path.parent / "run.json").read_text())["overrides"]
        asked = plain(composed(*overrides, "search=probe", f"search.dir={written['search']['dir']}"))
        for settings in (written, asked):
            settings["run"].pop("dir")
            for name in ("resume", "search", "test", "report"):  # the chosen one has read the test split, and has one
                settings.pop(name)
        assert written == asked
