"""The loader's clock: what a step waits for, and nothing else."""

import time

import pytest

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
