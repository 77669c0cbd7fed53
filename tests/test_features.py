"""The cache of what stays frozen: the same run with it and without it, and never anything that is stale or foreign."""

import csv
import errno
import gc
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_text import BERT, sentences, write

from thaw.activations import VALUES
from thaw.cache import SEAL
from thaw.data.loader import ResumableLoader
from thaw.data.loaders import Loaders
from thaw.model.network import Network
from thaw.run.checkpoint import load_checkpoint

QUICK = ("logger=none", "trainer=cpu", "trainer.max_epochs=6", "data.train_size=64", "cache.dir=cache")
PROBE = (*QUICK, "freezing=linear_probe", "data.augment=none")
# Three phases of three epochs: head, last block, two blocks.
GRADUAL = (*QUICK, "freezing.every=3", "trainer.max_epochs=9", "data.augment=none")


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass through a whole body: its batch size."""
    passed: list[int] = []
    features = Network.features

    def counted(self: Network, inputs: torch.Tensor) -> torch.Tensor:
        passed.append(len(inputs))
        return features(self, inputs)

    monkeypatch.setattr(Network, "features", counted)
    return passed


def outcome_of(folder: Path) -> tuple[dict[str, torch.Tensor], str, str]:
    state = load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state, (folder / "metrics.csv").read_text(), (folder / "predictions.csv").read_text()


def assert_same(one: Path, other: Path) -> None:
    for first, second in zip(outcome_of(one), outcome_of(other), strict=True):
        if isinstance(first, str):
            assert first == second
        else:
            assert all(torch.equal(first[name], second[name]) for name in first)


def figures(name: str) -> list[list[float]]:
    with open(f"runs/{name}/metrics.csv", newline="") as file:
        return [[float(value or 0) for value in row.values()] for row in csv.DictReader(file)]


def kept(record: dict) -> list[tuple[str, str, bool]]:
    return [(entry["split"], entry["after"], entry["reused"]) for entry in record.get("features", [])]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (PROBE, [("train", "block03"), ("val", "block03"), ("test", "block03")]),
        (GRADUAL, [(split, f"block0{n}") for n in (3, 2, 1) for split in ("train", "val")]),
        ((*PROBE, "data.augment=strong", "data.views=2", "data.sampler=balanced"), [("train", "block03")]),
        (
            (*QUICK, "freezing=last_n", "data.augment=none", "model.dropout=0.3", "callbacks=ema"),
            [("train", "block02")],
        ),
        ((*QUICK, "freezing=linear_probe", "data.mixup=0.8"), [("val", "block03"), ("test", "block03")]),
        ((*PROBE, "trainer.precision=bf16-true"), [("train", "block03"), ("val", "block03"), ("test", "block03")]),
    ],
    ids=["linear_probe", "gradual", "views", "last_n", "mixup", "bf16"],
)
def test_a_run_is_the_same_bit_for_bit_without_the_cache(run_train, words, expected) -> None:
    kept_run = run_train(*words, "run.dir=runs/kept")
    assert kept_run.code == 0, kept_run.errors
    record = json.loads(Path("runs/kept/run.json").read_text())
    assert set(expected) <= {entry[:2] for entry in kept(record)}
    plain = run_train(*words, "run.dir=runs/plain", "cache=none")
    assert "features" not in json.loads(Path("runs/plain/run.json").read_text())
    assert plain.code == 0
    assert_same(Path("runs/kept"), Path("runs/plain"))


@pytest.mark.parametrize("freezing", ["linear_probe", "last_n"])
def test_text_of_any_length_gives_the_same_but_for_rounding(run_train, tmp_path: Path, freezing: str) -> None:
    words = (*BERT, "data=text_csv", write(tmp_path / "text", sentences(90)), f"freezing={freezing}", "logger=none")
    words += ("trainer=cpu", "trainer.max_epochs=4", "optimizer.lr=0.01", "cache.dir=cache", "data.batch_size=8")
    kept_run = run_train(*words, "run.dir=runs/kept")
    assert kept_run.code == 0, kept_run.errors
    record = json.loads(Path("runs/kept/run.json").read_text())
    assert ("train", "block01" if freezing == "linear_probe" else "block00", False) in kept(record)
    assert run_train(*words, "run.dir=runs/plain", "cache=none").code == 0
    assert np.allclose(figures("kept"), figures("plain"), rtol=1e-3, atol=1e-4)


def test_text_that_fills_all_positions_and_another_precision_are_kept_too(run_train, tmp_path: Path) -> None:
    size = "model.options={hidden_size:16,num_hidden_layers:2,num_attention_heads:2,max_position_embeddings:8}"
    words = (*BERT[:-1], size, "data=text_csv", write(tmp_path / "text", sentences(60)), "freezing=linear_probe")
    words += ("logger=none", "trainer=cpu", "trainer.max_epochs=3", "cache.dir=cache", "data.batch_size=64")
    for precision, reused in (("32-true", False), ("bf16-mixed", False), ("32-true", True)):
        outcome = run_train(*words, f"trainer.precision={precision}")
        assert outcome.code == 0, outcome.errors
        assert kept(outcome.record) == [(split, "block01", reused) for split in ("train", "val", "test")]


@pytest.mark.medium
def test_of_a_split_of_which_only_a_part_is_read_nothing_is_kept(run_train) -> None:
    outcome = run_train(*PROBE, "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1")
    assert [entry[0] for entry in kept(outcome.record)] == ["train"]


def test_the_body_runs_once_over_each_sample(run_train, forward_passes: list[int]) -> None:
    assert run_train(*PROBE).code == 0
    # Once over 64 + 144 + 360 samples, the first and last batch of each split once more, and what a build tries.
    assert 64 + 144 + 360 <= sum(forward_passes) < 64 + 144 + 360 + 6 * 32 + 32


@pytest.mark.medium
@pytest.mark.parametrize(("body", "processes"), [(0.0, 2), (0.3, 0)])
def test_processes_load_for_the_cache_only_where_that_takes_longer_than_the_body(
    run_train, monkeypatch: pytest.MonkeyPatch, body: float, processes: int
) -> None:
    """Loading takes 0.16 s a batch, the body `body` more than it does."""
    started: list[int] = []
    loader, features = Loaders.loader_in_order, Network.features

    def noted(self: Loaders, *arguments, **named) -> ResumableLoader:
        found = loader(self, *arguments, **named)
        started.append(found.num_workers)
        return found

    def slow(self: Network, inputs: torch.Tensor) -> torch.Tensor:
        time.sleep(body)
        return features(self, inputs)

    monkeypatch.setattr(Loaders, "loader_in_order", noted)
    monkeypatch.setattr(Network, "features", slow)
    monkeypatch.setattr("thaw.data.workers.seconds_a_sample", lambda samples: 0.005)
    monkeypatch.setattr("thaw.data.workers.cores", lambda processes: 2)
    outcome = run_train(*PROBE, "trainer.max_epochs=3", "data.num_workers=auto", "data.val_size=0.1", "test=false")
    assert outcome.code == 0
    assert started == [processes, processes]  # of train and of val


@pytest.mark.medium
def test_another_rate_and_another_dropout_find_what_the_first_has_computed(run_train, forward_passes) -> None:
    assert run_train(*PROBE).code == 0
    forward_passes.clear()
    outcome = run_train(*PROBE, "optimizer.lr=0.01", "model.dropout=0.2")
    assert all(reused for *_, reused in kept(outcome.record))
    assert sum(forward_passes) < 64 + 144


@pytest.mark.medium
@pytest.mark.parametrize(
    "other",
    ["model.weights=none", "data.image_size=40", "data.batch_size=16", "seed=1", "data.train_size=65"],
)
def test_other_weights_samples_or_shapes_are_not_served(run_train, other: str) -> None:
    assert run_train(*PROBE).code == 0
    outcome = run_train(*PROBE, other)
    assert ("train", "block03", False) in kept(outcome.record)


@pytest.mark.medium
def test_what_is_whole_under_its_key_and_yet_wrong_is_found_and_computed_again(run_train) -> None:
    first = run_train(*PROBE, "run.dir=runs/first")
    assert first.code == 0
    for path in Path("cache").glob(f"*/{VALUES}"):
        values = np.load(path)
        np.save(path, values + 1)
        seal = json.loads((path.parent / SEAL).read_text())
        seal["files"][VALUES] = [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        (path.parent / SEAL).write_text(json.dumps(seal))
    gc.collect()  # this process must not still hold what the first run has used
    run_train(*PROBE, "run.dir=runs/second")
    record = json.loads(Path("runs/second/run.json").read_text())
    assert [reused for *_, reused in kept(record)] == [False] * 3
    assert_same(Path("runs/first"), Path("runs/second"))


@pytest.mark.medium
def test_a_run_that_was_stopped_goes_on_from_the_cache_to_the_same_end(run_train, stopped_after_epoch) -> None:
    assert run_train(*GRADUAL, "run.dir=runs/whole").code == 0
    for epoch in (1, 4):
        with stopped_after_epoch(epoch):
            assert run_train(*GRADUAL, "run.dir=runs/parts", "resume=auto").code == 130
    assert run_train(*GRADUAL, "run.dir=runs/parts", "resume=auto").code == 0
    assert_same(Path("runs/whole"), Path("runs/parts"))


@pytest.mark.medium
def test_augmentation_that_draws_anew_is_told_and_only_validation_is_kept(run_train) -> None:
    outcome = run_train(*QUICK, "freezing=linear_probe")
    assert [entry[0] for entry in kept(outcome.record)] == ["val", "test"]
    assert "data.views=4" in outcome.printed


@pytest.mark.medium
@pytest.mark.parametrize("words", ["freezing=none", "freezing=lora", "freezing.batch_norm=adapt", "freezing=bias_only"])
def test_what_moves_is_not_kept(run_train, words: str) -> None:
    outcome = run_train(*QUICK, "data.augment=none", words)
    assert outcome.code == 0
    assert not kept(outcome.record)


@pytest.mark.medium
def test_a_system_that_cannot_set_room_aside_keeps_them_too(run_train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("thaw.activations.os.posix_fallocate")
    assert len(kept(run_train(*PROBE).record)) == 3


@pytest.mark.medium
def test_a_disk_that_is_full_stops_no_run(run_train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("thaw.activations.os.posix_fallocate", full)
    outcome = run_train(*PROBE)
    assert outcome.code == 0
    assert not kept(outcome.record)
    assert not list(Path("cache").glob("*/"))


@pytest.mark.medium
def test_no_room_and_no_right_to_write_stop_no_run(run_train) -> None:
    assert not kept(run_train(*PROBE, "cache.max_gb=0.00001").record)
    Path("file").touch()
    outcome = run_train(*PROBE, "cache.dir=file/cache")
    assert outcome.code == 0
    assert not kept(outcome.record)
