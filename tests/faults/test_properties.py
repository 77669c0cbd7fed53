"""Order, rates and locks: what holds for any size, any setting and any sequence of events."""

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from thaw import scheduler
from thaw.data.sampler import EpochBatches
from thaw.errors import UserError
from thaw.run.lock import LOCK, lock, unlock

SIZES = st.integers(1, 120)
SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 1000)
quick = settings(max_examples=100, deadline=None)


def lengths_of(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 500, size)


# Order


@quick
@given(SIZES, st.integers(1, 40), SEEDS, EPOCHS, st.booleans(), st.booleans(), st.none() | st.integers(1, 3000))
def test_every_epoch_has_every_sample_once_in_batches_that_fit(size, batch, seed, epoch, shuffle, by_length, budget):
    lengths = lengths_of(size, seed) if by_length else None
    sampler = EpochBatches(size, batch, seed, shuffle, lambda: epoch, lengths, budget if by_length else None)
    batches = list(sampler)
    assert sorted(index for part in batches for _, index in part) == list(range(size))
    assert {number for part in batches for number, _ in part} == {epoch}
    assert len(batches) == len(sampler)
    assert all(1 <= len(part) <= batch for part in batches)
    if by_length and budget:
        costs = [len(part) * max(lengths[index] for _, index in part) for part in batches]
        assert all(cost <= budget or len(part) == 1 for cost, part in zip(costs, batches, strict=True))
    assert (
        list(EpochBatches(size, batch, seed, shuffle, lambda: epoch, lengths, budget if by_length else None)) == batches
    )


@pytest.mark.fault("A3")
@quick
@given(SIZES, st.integers(1, 40), SEEDS, EPOCHS, st.integers(0, 200), st.sampled_from(["plain", "lengths", "weights"]))
def test_an_epoch_goes_on_at_any_batch_as_if_never_stopped(size, batch, seed, epoch, skip, kind):
    held = {"lengths": lengths_of(size, seed)} if kind == "lengths" else {}
    held |= {"weights": np.arange(1, size + 1)} if kind == "weights" else {}
    whole, rest = (EpochBatches(size, batch, seed, True, lambda: epoch, **held) for _ in range(2))
    expected, rest.skip = list(whole), skip
    assert list(rest) == expected[skip:]
    assert list(rest) == expected, "the next epoch is whole again"


@quick
@given(SIZES, st.integers(1, 20), SEEDS, EPOCHS, st.integers(2, 5), st.booleans(), st.booleans())
def test_the_ranks_share_an_epoch_of_equally_many_batches(size, batch, seed, epoch, ranks, shuffle, by_length):
    lengths = lengths_of(size, seed) if by_length else None
    parts = [
        EpochBatches(size, batch, seed, shuffle, lambda: epoch, lengths, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    seen = Counter(index for part in parts for group in part.batches(epoch) for index in group)
    if shuffle:
        assert len({len(part) for part in parts}) == 1
        sizes = [[len(group) for group in part.batches(epoch)] for part in parts]
        assert all(one == sizes[0] for one in sizes), "a rank with a shorter batch would hang the others"
        assert set(seen) == set(range(size))
        assert sum(seen.values()) - size < ranks * len(parts[0])
    elif size >= ranks:
        assert seen == Counter(range(size)), "each is evaluated once"


# Rates

SHARE = st.floats(0, 1)
WARMUP = st.floats(0, 0.99)
SCHEDULES = st.one_of(
    st.builds(scheduler.cosine, WARMUP, SHARE),
    st.builds(scheduler.linear, WARMUP, SHARE),
    st.builds(scheduler.constant, WARMUP),
    st.builds(scheduler.polynomial, WARMUP, st.floats(0.01, 10), SHARE),
    st.builds(scheduler.step, WARMUP, st.integers(1, 50), SHARE),
    st.builds(scheduler.one_cycle, st.floats(0.001, 0.999), SHARE, SHARE),
    st.builds(scheduler.warmup_stable_decay, WARMUP, st.floats(0.001, 1)),
    st.builds(scheduler.plateau, WARMUP, st.floats(0.01, 0.99), st.integers(0, 5)),
)


@quick
@given(SCHEDULES, SHARE)
def test_a_factor_is_real_and_from_zero_to_one_at_any_share_of_any_schedule(schedule, share):
    factor = schedule(share)
    assert isinstance(factor, (int, float))
    assert math.isfinite(factor)
    assert -1e-12 <= factor <= 1 + 1e-12


@quick
@given(SCHEDULES, SHARE, SHARE)
def test_a_warm_up_only_rises(schedule, one, other):
    low, high = sorted((one * schedule.warmup, other * schedule.warmup))
    if high < schedule.warmup:
        assert schedule(low) <= schedule(high)


@quick
@given(
    SCHEDULES,
    st.integers(1, 60),
    st.integers(0, 70),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 60)),
    SHARE,
)
def test_the_rates_of_a_resumed_run_are_those_of_the_run(schedule, steps, done, thawed, rewarm):
    thawed = {name: min(since, done) for name, since in thawed.items()}  # what thaws later is not told yet

    def fresh() -> scheduler.GroupSchedule:
        groups = [{"name": f"{name}/decay", "params": [nn.Parameter(torch.ones(1))], "lr": 0.5} for name in "abc"]
        made = scheduler.GroupSchedule(SGD(groups, lr=1.0), schedule, steps)
        made.set_thawed(thawed, rewarm)
        return made

    first = fresh()
    for _ in range(done):
        first.optimizer.step()
        first.step()
    second = fresh()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rates = [group["lr"] for group in first.optimizer.param_groups]
    assert [group["lr"] for group in second.optimizer.param_groups] == rates
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates)
    assert all(rate == 0 for name, rate in zip("abc", rates, strict=True) if name not in thawed)


# Locks

MINE = {"pid": os.getpid(), "host": socket.gethostname()}
HOLDERS = {"alive": {"pid": os.getppid(), "host": socket.gethostname()}, "elsewhere": {"pid": 1, "host": "elsewhere"}}
ACTIONS = st.lists(st.sampled_from(["lock", "unlock", "dead", "alive", "elsewhere", "empty", "half"]), max_size=12)


@pytest.fixture(scope="module")
def gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.fault("H2")
@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS)
def test_a_lock_is_taken_from_nobody_but_the_dead(gone: int, actions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, held = Path(place), None
        path = folder / LOCK
        for action in actions:
            if action == "lock":
                before = path.read_text() if path.exists() else None
                if held in (None, "dead"):
                    lock(folder)
                    held = "mine"
                    assert json.loads(path.read_text()).items() >= MINE.items()
                else:
                    with pytest.raises(UserError):
                        lock(folder)
                    assert path.read_text() == before
            elif action == "unlock":
                if held in (None, "mine"):
                    unlock(folder)
                    held = None
                    assert not path.exists()
            elif held != "mine":
                content = {"empty": "", "half": '{"pid": 1', "dead": json.dumps(MINE | {"pid": gone})}
                path.write_text(content.get(action) if action in content else json.dumps(HOLDERS[action]))
                held = action
            assert [left.name for left in folder.iterdir()] in ([], [LOCK])
