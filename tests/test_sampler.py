"""Order and augmentation as functions of (seed, epoch, index) alone."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from thaw.data.sampler import EpochBatches, Transformed

SIZE = 40


def flat(batches: Iterable[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [key for batch in batches for key in batch]


def order(seed: int, epoch: int, size: int = SIZE, shuffle: bool = True) -> list[tuple[int, int]]:
    return flat(EpochBatches(size, 7, seed, shuffle, lambda: epoch))


def samples(size: int = SIZE) -> list[tuple[float, int]]:
    return [(float(index), index % 3) for index in range(size)]


def noisy(value: float) -> torch.Tensor:
    return value + torch.rand(4)


def failing(value: float) -> torch.Tensor:
    torch.rand(3)
    raise ValueError("no such sample")


def epoch_of(num_workers: int, seed: int, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = EpochBatches(SIZE, 7, seed, True, lambda: epoch)
    dataset = Transformed(samples(), noisy, seed)
    return list(DataLoader(dataset, batch_sampler=batches, num_workers=num_workers))


@pytest.mark.parametrize("size", [1, 2, SIZE])
@pytest.mark.parametrize("epoch", [0, 5])
def test_shuffled_order_is_a_permutation_tagged_with_the_epoch(size, epoch):
    assert sorted(order(3, epoch, size)) == [(epoch, index) for index in range(size)]


def test_order_is_shuffled():
    assert [index for _, index in order(0, 0)] != list(range(SIZE))


@pytest.mark.parametrize("epoch", [0, 4])
def test_order_without_shuffling_is_ascending(epoch):
    assert order(3, epoch, shuffle=False) == [(epoch, index) for index in range(SIZE)]


def test_order_depends_on_seed_and_epoch_only():
    expected = order(seed=7, epoch=3)
    now = 0
    walked = EpochBatches(SIZE, 7, 7, True, lambda: now)
    for now in range(4):
        torch.manual_seed(now)
        last = flat(walked)
    assert last == expected
    assert flat(walked) == expected


@pytest.mark.parametrize("shuffle", [True, False])
def test_order_that_has_begun_keeps_its_epoch(shuffle):
    """Workers fetch ahead: an order asked for in one epoch may be read on in the next."""
    now = 2
    begun = iter(EpochBatches(SIZE, 7, 7, shuffle, lambda: now))
    first = next(begun)
    now = 3
    assert flat([first, *begun]) == order(7, 2, shuffle=shuffle)


def test_orders_differ_between_epochs_and_seeds():
    orders = [tuple(index for _, index in order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_leaves_the_global_generator_alone(shuffle):
    before = torch.get_rng_state()
    order(1, 2, shuffle=shuffle)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "sizes"), [(9, [4, 4, 1]), (8, [4, 4]), (3, [3])])
def test_sampler_length_is_the_number_of_batches(shuffle, size, sizes):
    batches = EpochBatches(size, 4, 0, shuffle, int)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_augmentation_is_the_same_with_and_without_workers():
    for (alone, targets), (parallel, parallel_targets) in zip(epoch_of(0, 5, 2), epoch_of(2, 5, 2), strict=True):
        assert torch.equal(alone, parallel)
        assert torch.equal(targets, parallel_targets)


def test_augmentation_does_not_depend_on_what_was_drawn_before():
    dataset = Transformed(samples(), noisy, seed=1)
    first, _ = dataset[(2, 11)]
    torch.manual_seed(99)
    for index in range(SIZE):
        dataset[(2, index)]
    again, _ = dataset[(2, 11)]
    assert torch.equal(first, again)


def test_augmentation_differs_by_seed_epoch_and_index():
    constant = [(0.0, 0)] * 5
    draws = {
        tuple(Transformed(constant, noisy, seed)[(epoch, index)][0].tolist())
        for seed in range(3)
        for epoch in range(4)
        for index in range(5)
    }
    assert len(draws) == 3 * 4 * 5


def test_augmentation_is_not_drawn_from_the_generator_of_the_order():
    """An index of its own keeps the first sample from repeating the numbers that shuffled the epoch."""
    shuffled = torch.tensor([index for _, index in order(0, 0)])
    dataset = Transformed([(0.0, 0)] * SIZE, lambda _: torch.randperm(SIZE), seed=0)
    assert not any(torch.equal(dataset[(0, index)][0], shuffled) for index in range(SIZE))


def test_augmentation_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Transformed(samples(), noisy, seed=1)[(0, 0)]
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_is_restored_when_the_transform_fails():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="no such sample"):
        Transformed(samples(), failing, seed=1)[(0, 0)]
    assert torch.equal(torch.get_rng_state(), before)


def test_transformed_keeps_targets_and_length():
    dataset = Transformed(samples(), float, seed=1)
    assert len(dataset) == SIZE
    assert [dataset[(0, index)] for index in range(SIZE)] == samples()


# Batches by length


def lengths(size: int = 300, seed: int = 0, most: int = 90) -> np.ndarray:
    """As of sentences: most of them short, a few long."""
    return np.clip(np.random.default_rng(seed).geometric(0.08, size), 1, most)


def by_length(held: np.ndarray, shuffle: bool = True, batch_size: int = 16, **options: object) -> EpochBatches:
    return EpochBatches(len(held), batch_size, 3, shuffle, int, lengths=held, **options)


@pytest.mark.parametrize("max_tokens", [None, 100, 333])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("epoch", [0, 4])
def test_every_sample_stands_in_one_batch_by_length(max_tokens, shuffle, epoch):
    batches = by_length(lengths(), shuffle, max_tokens=max_tokens)
    assert sorted(index for batch in batches.batches(epoch) for index in batch) == list(range(300))


@pytest.mark.parametrize("max_tokens", [90, 100, 333])
@pytest.mark.parametrize("seed", range(5))
def test_the_budget_holds_with_padding_and_the_number_of_batches_is_that_of_every_epoch(max_tokens, seed):
    held = lengths(seed=seed)
    batches = by_length(held, max_tokens=max_tokens)
    for epoch in range(20):
        found = batches.batches(epoch)
        assert len(found) == len(batches)
        assert max(len(batch) * held[batch].max() for batch in found) <= max_tokens
        assert max(map(len, found)) <= 16


def test_a_budget_of_whole_samples_is_used_up():
    """Samples that are all cut to the same length fill it without a rest."""
    assert [len(batch) for batch in by_length(np.full(64, 50), max_tokens=400).batches(0)] == [8] * 8


def test_batches_hold_samples_of_similar_length_and_little_padding():
    held = lengths(3000, most=512)
    padded, plain = (
        sum(len(batch) * held[batch].max() for batch in EpochBatches(3000, 16, 3, True, int, lengths=given).batches(0))
        for given in (held, None)
    )
    assert padded < 1.1 * held.sum()
    assert plain > 2 * held.sum()


def test_batches_by_length_differ_between_epochs_in_order_and_in_company():
    batches = by_length(lengths())
    first, second = batches.batches(0), batches.batches(1)
    assert first == batches.batches(0)
    company = [{frozenset(batch) for batch in found} for found in (first, second)]
    assert len(company[0] & company[1]) < 0.2 * len(first)
    longest = [[int(lengths()[batch].max()) for batch in found] for found in (first, second)]
    assert longest[0] != sorted(longest[0])
    assert longest[0] != longest[1]


def test_lengths_in_seconds_are_lengths_too():
    held = np.random.default_rng(0).uniform(0.02, 3, 100)
    found = by_length(held).batches(0)
    assert sorted(index for batch in found for index in batch) == list(range(100))
    assert sum(len(batch) * held[batch].max() for batch in found) < 1.25 * held.sum()


def test_evaluation_by_length_goes_from_short_to_long_and_is_the_same_every_time():
    held = lengths()
    batches = by_length(held, shuffle=False)
    assert batches.batches(0) == batches.batches(7)
    order = [index for batch in batches.batches(0) for index in batch]
    longest = [held[batch].max() for batch in batches.batches(0)]
    assert longest == sorted(longest)
    results = [f"result of {index}" for index in order]
    assert [found for _, found in sorted(zip(order, results, strict=True))] == [f"result of {i}" for i in range(300)]


@pytest.mark.parametrize("max_tokens", [None, 200])
@pytest.mark.parametrize("held", [None, lengths()])
def test_an_epoch_can_go_on_at_any_batch(max_tokens, held):
    batches = EpochBatches(300, 16, 3, True, lambda: 5, lengths=held, max_tokens=max_tokens)
    whole = list(batches)
    for done in (0, 1, len(whole) // 2, len(whole) - 1):
        batches.skip = done
        assert list(batches) == whole[done:]
        assert list(batches) == whole  # the next epoch is whole


@pytest.mark.parametrize("held", [None, lengths()])
def test_a_balanced_sampler_draws_every_class_equally_often(held):
    targets = np.array([0] * 200 + [1] * 80 + [2] * 20)
    weights = 1 / np.bincount(targets)[targets]
    batches = EpochBatches(300, 16, 3, True, int, lengths=held, weights=weights)
    drawn = Counter()
    for epoch in range(30):
        found = batches.batches(epoch)
        assert sum(map(len, found)) == 300
        drawn.update(targets[[index for batch in found for index in batch]].tolist())
    expected = 30 * 300 / 3
    noise = (30 * 300 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(count - expected) < 5 * noise for count in drawn.values()), drawn
    assert batches.batches(0) != batches.batches(1)


def test_a_last_batch_of_one_is_left_out_where_that_is_asked_for():
    assert [len(batch) for batch in EpochBatches(9, 4, 0, True, int, drop_single=True)] == [4, 4]
    assert [len(batch) for batch in EpochBatches(1, 4, 0, True, int, drop_single=True)] == [1]


def test_a_sample_that_is_drawn_again_is_augmented_in_another_way() -> None:
    batches = EpochBatches(40, 64, 0, True, int, weights=np.r_[100.0, np.ones(39)])
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)
    data = Transformed([(0, 0)] * 40, lambda _: torch.rand(()).item(), seed=0)
    drawn = [data[key][0] for key in keys if key[1] == 0]
    assert len(drawn) > 5
    assert len(set(drawn)) == len(drawn)


# Several processes

LENGTHS = np.random.default_rng(0).integers(3, 60, 83)
KINDS = {
    "plain": {},
    "by length": {"lengths": LENGTHS},
    "by tokens": {"lengths": LENGTHS, "max_tokens": 200},
    "balanced": {"weights": np.linspace(0.1, 1, 83)},
    "balanced by length": {"weights": np.linspace(0.1, 1, 83), "lengths": LENGTHS},
}


def of_rank(rank: int, ranks: int, size: int = 83, batch: int = 8, shuffle: bool = True, **options) -> EpochBatches:
    return EpochBatches(size, batch, 0, shuffle, lambda: 0, rank=rank, ranks=ranks, drop_single=shuffle, **options)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_share_the_batches_of_one_process(kind: str, ranks: int) -> None:
    options = dict(KINDS[kind])
    alone = of_rank(
        0, 1, batch=8 * ranks, **options | {"max_tokens": 200 * ranks} if "max_tokens" in options else options
    )
    for epoch in range(3):
        parts = [of_rank(rank, ranks, **options).batches(epoch) for rank in range(ranks)]
        whole = alone.batches(epoch)
        assert len({len(part) for part in parts}) == 1
        assert len(parts[0]) == len(whole) == len(of_rank(0, ranks, **options))
        for number, batch in enumerate(whole):
            cut = [part[number] for part in parts]
            assert len({len(samples) for samples in cut}) == 1  # equal parts weigh the same in the mean of gradients
            together = sorted(index for samples in cut for index in samples)
            extra = len(together) - len(batch)
            assert 0 <= extra < ranks
            assert set(together) == set(batch)
            if not extra:
                assert together == sorted(batch)
            if "max_tokens" in options:
                # what fills up a part may be one sample beyond the budget
                assert all((len(samples) - 1) * LENGTHS[samples].max() <= 200 for samples in cut)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "by length", "by tokens"])
def test_the_ranks_evaluate_each_sample_once(kind: str, ranks: int) -> None:
    parts = [of_rank(rank, ranks, shuffle=False, **KINDS[kind]).batches(0) for rank in range(ranks)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(83))
    assert all(batch for part in parts for batch in part)
