"""Order and augmentation as functions of (seed, epoch, index) alone."""

import pytest
import torch
from torch.utils.data import DataLoader

from thaw.data.sampler import EpochSampler, Transformed

SIZE = 40


def order(seed: int, epoch: int, size: int = SIZE, shuffle: bool = True) -> list[tuple[int, int]]:
    return list(EpochSampler(size, seed, shuffle, lambda: epoch))


def samples(size: int = SIZE) -> list[tuple[float, int]]:
    return [(float(index), index % 3) for index in range(size)]


def noisy(value: float) -> torch.Tensor:
    return value + torch.rand(4)


def failing(value: float) -> torch.Tensor:
    torch.rand(3)
    raise ValueError("no such sample")


def epoch_of(num_workers: int, seed: int, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    sampler = EpochSampler(SIZE, seed, True, lambda: epoch)
    dataset = Transformed(samples(), noisy, seed)
    return list(DataLoader(dataset, batch_size=7, sampler=sampler, num_workers=num_workers))


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
    walked = EpochSampler(SIZE, 7, True, lambda: now)
    for now in range(4):
        torch.manual_seed(now)
        last = list(walked)
    assert last == expected
    assert list(walked) == expected


@pytest.mark.parametrize("shuffle", [True, False])
def test_order_that_has_begun_keeps_its_epoch(shuffle):
    """Workers fetch ahead: an order asked for in one epoch may be read on in the next."""
    now = 2
    begun = iter(EpochSampler(SIZE, 7, shuffle, lambda: now))
    first = next(begun)
    now = 3
    assert [first, *begun] == order(7, 2, shuffle=shuffle)


def test_orders_differ_between_epochs_and_seeds():
    orders = [tuple(index for _, index in order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_leaves_the_global_generator_alone(shuffle):
    before = torch.get_rng_state()
    order(1, 2, shuffle=shuffle)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_length_is_the_number_of_keys(shuffle):
    sampler = EpochSampler(9, 0, shuffle, int)
    assert len(sampler) == len(list(sampler)) == 9


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
