"""Loading beside training: what a step waits for, what is clocked, and who yields to whom."""

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from processes import in_a_process

from thaw.data.digits import Digits
from thaw.data.loader import ResumableLoader


class Slow:
    """Samples that take a twentieth of a second each."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_only_the_wait_for_a_batch_is_clocked(workers: int) -> None:
    loader = ResumableLoader(Slow(), batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    assert loader.waited == 0.0
    for _ in range(2):
        before, began = loader.waited, time.perf_counter()
        for _ in loader:
            time.sleep(0.3)  # a step, in which a process of the loader goes on
        waited, whole = loader.waited - before, time.perf_counter() - began
        assert 0.08 <= waited <= whole - 0.6
        assert workers or waited >= 0.2


def seen_by(start: Callable[[int], None]) -> tuple[int, bool]:
    """How much a process yields after it has started, and whether Ctrl-C leaves it alone."""
    start(0)
    return os.nice(0), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(("device", "yields"), [("cpu", 10), ("cuda", 0)])
def test_what_loads_yields_to_what_trains_on_the_same_cores(device: str, yields: int) -> None:
    data = Digits(num_workers=1)
    data.preprocess(channels=1, size=32, mean=[0.5], std=[0.5], interpolation="bilinear", crop_pct=1.0)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    start = data._loader("train").worker_init_fn
    assert in_a_process(seen_by, start) == (os.nice(0) + yields, True)


@pytest.mark.medium
def test_a_slow_loader_makes_a_long_wait_that_is_told_and_recorded(run_train, monkeypatch) -> None:
    quick = ("freezing=none", "data.train_size=40", "trainer.max_epochs=1", "logger=none", "test=false")
    outcome = run_train(*quick)
    assert 0 <= outcome.record["data_wait"] <= 1

    def slow(*arguments: object) -> object:
        time.sleep(0.1)
        return transformed(*arguments)

    from thaw.data.sampler import Transformed

    transformed = Transformed._transformed
    monkeypatch.setattr(Transformed, "_transformed", slow)
    outcome = run_train(*quick)
    assert outcome.record["data_wait"] > 0.5
    assert "of the training time went by in waiting for data. Write data.num_workers=auto." in outcome.printed
    assert not [name for name in outcome.record["metrics"] if "wait" in name]  # those are the same in every run
