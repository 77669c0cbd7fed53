"""A run built again from its directory, and what is made of finished runs: interpolations and soups."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Outcome

from thaw.errors import UserError
from thaw.interpolation import interpolate, wise_ft
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.restore import read_run, restore
from thaw.soup import greedy_soup, runs_in

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=2", "trainer=cpu", "optimizer.lr=1e-3")


@pytest.fixture
def finished(run_train):
    """`finished("freezing=none")` is the directory of a finished run."""

    def run(*overrides: str) -> Path:
        outcome: Outcome = run_train(*QUICK, *overrides)
        assert outcome.code == 0, outcome.errors
        return outcome.folders[-1]

    return run


def moved(folder: Path, name: str) -> Path:
    """The run in a folder of runs, as a sweep leaves them."""
    sweep = folder.parents[1] / "sweep"
    sweep.mkdir(exist_ok=True)
    return folder.rename(sweep / name)


def state(folder: Path, role: str = "best") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"{role}.ckpt")["state_dict"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.medium
@pytest.mark.parametrize("options", [(), ("task.class_weights=balanced", "monitor=val/loss"), ("data.batch_size=24",)])
def test_a_restored_run_measures_exactly_what_the_run_did(finished, options: tuple[str, ...]) -> None:
    folder = finished(*options)
    run = restore(folder)
    metrics = run.record["metrics"]
    found = run.measure(run.checkpoint()["state_dict"], "test") | run.measure(run.checkpoint()["state_dict"], "val")
    assert found == {name: value for name, value in metrics.items() if not name.startswith("train/")}
    assert run.mode == ("min" if run.metric.endswith("loss") else "max")


@pytest.mark.medium
def test_a_restored_run_may_have_been_moved(finished, tmp_path: Path) -> None:
    folder = finished()
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    run = restore(moved)
    assert run.measure(run.checkpoint()["state_dict"], "test")["test/loss"] == run.record["metrics"]["test/loss"]


@pytest.mark.medium
def test_a_monitor_of_training_does_not_choose_between_weights(finished) -> None:
    assert restore(finished("monitor=train/loss")).metric == "val/accuracy"


def test_a_missing_or_unfinished_run_is_named(run_train, stopped_after_epoch, tmp_path: Path, run_script) -> None:
    with stopped_after_epoch(0):
        stopped = run_train(*QUICK).folders[-1]
    for folder, said in ((tmp_path / "nothing", "there is no run.json"), (stopped, "is interrupted")):
        with pytest.raises(UserError, match=said):
            restore(folder)
        for script in ("interpolate", "soup"):
            code, _, errors = run_script(script, folder)
            assert code == 2
            assert str(folder) in errors
            assert "Traceback" not in errors


@pytest.mark.medium
@pytest.mark.fault("S5")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("_target_: thaw.task.classification.Classification", "_target_: os.system"), "EXECUTION_WHITELIST"),
        (("_target_: thaw.data.digits.Digits", "_target_: torch.load"), "EXECUTION_WHITELIST"),
        (("dropout: 0.0", "dropout: 7"), "model.dropout must be less than 1"),
        (("seed: 0", "seed: 1"), "they are others than in that run"),
        (("optimizer:", "optimisers:"), "no section 'optimizer'"),
        (("seed: 0", "seed: [0"), "must be what a run has written"),
    ],
)
def test_the_settings_of_a_run_are_checked_as_those_of_a_fresh_one(finished, change: tuple, said: str) -> None:
    path = finished() / "config.yaml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UserError, match=said):
        restore(path.parent)


@pytest.mark.medium
@pytest.mark.fault("S1")
def test_a_checkpoint_that_would_run_code_is_refused(finished, tmp_path: Path) -> None:
    folder = finished()

    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Hostile()}, folder / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="plain containers"):
        restore(folder).checkpoint()
    assert not (tmp_path / "ran").exists()


@pytest.mark.medium
def test_weights_of_another_network_are_refused_in_words(finished) -> None:
    run = restore(finished())
    with pytest.raises(UserError, match="must fit the network"):
        run.measure({"network.head.linear.weight": torch.zeros(3, 3)}, "val")


def test_interpolation_is_exact_at_its_ends_and_where_both_are_equal() -> None:
    start, end = torch.randn(1000) * 1e3, torch.randn(1000)
    states = [{"w": w, "same": start, "count": torch.tensor(n)} for w, n in ((start, 1), (end, 9))]
    assert torch.equal(interpolate(*states, 0.0)["w"], start)
    assert torch.equal(interpolate(*states, 1.0)["w"], end)
    for alpha in (0.1, 1 / 3, 0.7):
        mixed = interpolate(*states, alpha)
        assert torch.equal(mixed["same"], start)
        assert mixed["count"] == 9
        torch.testing.assert_close(mixed["w"], (1 - alpha) * start + alpha * end)


@pytest.mark.medium
def test_wise_ft_goes_from_the_pretrained_body_to_the_run_itself(finished, run_script) -> None:
    from thaw.model.timm import timm_network

    folder = finished("freezing=none")
    run = restore(folder)
    curve = wise_ft(run, steps=3)
    assert list(curve.values) == [0.0, 0.5, 1.0]
    assert curve.test[1.0] == {n: v for n, v in run.record["metrics"].items() if n.startswith("test/")}
    assert curve.values[1.0] == run.record["metrics"]["val/accuracy"]

    tuned, start = state(folder), timm_network("resnet_glyphs", 10).state_dict()
    probe = {n: start[n.removeprefix("network.")] if n.startswith("network.body.") else v for n, v in tuned.items()}
    assert curve.values[0.0] == run.measure(probe, "val")["val/accuracy"]
    assert set(curve.test) == {curve.chosen, 1.0}
    assert curve.values[curve.chosen] == max(curve.values.values())

    kept = load_checkpoint(folder / "checkpoints" / "interpolated.ckpt")
    assert kept["alpha"] == curve.chosen
    assert run.measure(kept["state_dict"], "test") == curve.test[curve.chosen]
    code, printed, errors = run_script("interpolate", folder, "--steps", 2)
    assert code == 0, errors
    assert "chosen" in printed
    assert "The head is the tuned one" in printed
    assert (folder / "interpolation.png").stat().st_size > 1000


@pytest.mark.medium
def test_between_equal_values_the_one_nearest_to_the_run_is_chosen(finished) -> None:
    assert wise_ft(restore(finished("freezing=linear_probe")), steps=3).chosen == 1.0


@pytest.mark.medium
@pytest.mark.parametrize(("options", "said"), [(("model.weights=none",), "pretrained weights to go back to")])
def test_there_must_be_pretrained_weights_to_go_back_to(finished, options: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        wise_ft(restore(finished(*options)))


@pytest.mark.medium
def test_one_step_is_no_way(finished, run_script) -> None:
    code, _, errors = run_script("interpolate", finished(), "--steps", 1)
    assert (code, errors.strip()) == (2, "error: --steps must be at least 2, for both ends; got 1.")


@pytest.mark.medium
def test_a_soup_of_one_checkpoint_is_that_checkpoint(finished, tmp_path: Path, monkeypatch) -> None:
    folder = finished("freezing=none")
    shutil.copy(folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt")
    with monkeypatch.context() as away:  # of a run that was copied to another computer
        away.setattr("thaw.model.timm._pretrained_file", lambda *_: tmp_path / "nowhere")
        soup = greedy_soup([folder], tmp_path / "out")
    assert [ingredient.kept for ingredient in soup.order] == [True, True]
    assert same(load_checkpoint(tmp_path / "out" / "soup.ckpt")["state_dict"], state(folder))
    assert soup.test["soup"] == soup.test["best single"]
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert soup.test["soup"] == {name: value for name, value in metrics.items() if name.startswith("test/")}


@pytest.mark.medium
def test_a_greedy_soup_keeps_what_does_not_lower_validation(finished, tmp_path: Path, run_script) -> None:
    folders = [
        moved(finished("freezing=none", "monitor=val/loss", f"optimizer.lr={lr}"), lr) for lr in ("3e-3", "1e-3")
    ]
    broken = moved(finished("freezing=none", "monitor=val/loss"), "broken")
    checkpoint = load_checkpoint(broken / "checkpoints" / "best.ckpt")
    checkpoint["state_dict"] = {n: v.neg() if v.is_floating_point() else v for n, v in checkpoint["state_dict"].items()}
    AtomicCheckpointIO().save_checkpoint(checkpoint, broken / "checkpoints" / "best.ckpt")

    code, printed, errors = run_script("soup", broken.parent)
    assert code == 0, errors
    out = tmp_path / "runs" / "soup-1"
    found = json.loads((out / "soup.json").read_text())
    order = {Path(entry["run"]).name: entry for entry in found["order"]}
    alone = [entry["alone"] for entry in found["order"]]
    assert alone == sorted(alone)
    assert not order["broken"]["kept"]
    assert found["order"][0]["kept"]
    together = [entry["together"] for entry in found["order"] if entry["kept"]]
    assert together == sorted(together, reverse=True)
    assert "left" in printed
    assert found["test"].keys() == {"soup", "best single"}

    kept = [state(Path(entry["run"])) for entry in found["order"] if entry["kept"]]
    soup = load_checkpoint(out / "soup.ckpt")["state_dict"]
    for name, value in soup.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(part[name] for part in kept) / len(kept), rtol=1e-4, atol=1e-5)
    assert restore(folders[0]).measure(soup, "test") == found["test"]["soup"]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("seed=1",), "which samples stand in which split"),
        (("data.train_size=32",), "which samples stand in which split"),
        (("model.weights=none",), "model.weights (pretrained, none)"),
        (("monitor=val/loss",), "monitor (None, val/loss)"),
    ],
)
def test_runs_that_have_no_mean_are_refused_in_words(finished, run_script, options: tuple[str, ...], said: str) -> None:
    code, _, errors = run_script("soup", finished(), finished(*options))
    assert code == 2
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.medium
def test_unfinished_runs_of_a_sweep_are_left_out(finished, run_train, stopped_after_epoch, run_script) -> None:
    folder = moved(finished(), "whole")
    with stopped_after_epoch(0):
        moved(run_train(*QUICK).folders[-1], "half")
    assert runs_in([folder.parent]) == ([folder], [folder.parent / "half"])
    code, printed, errors = run_script("soup", folder.parent, "--out", "mixed")
    assert code == 0, errors
    assert "half" in printed
    assert (folder.parents[1] / "mixed" / "soup.json").is_file()


@pytest.mark.medium
def test_what_is_read_of_a_run_is_plain(finished) -> None:
    record, settings = read_run(finished())
    assert record["status"] == "finished"
    assert type(settings["model"]) is dict
