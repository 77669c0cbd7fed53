"""Splits, subsets and loaders, over digits and over numbers that name themselves."""

import pickle
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from thaw.data.datamodule import DataModule
from thaw.data.digits import Digits
from thaw.data.samples import Samples
from thaw.data.workers import HANDING_OVER, seconds_a_sample
from thaw.errors import UserError

DIGITS_PREPROCESSING = {
    "channels": 1,
    "size": 16,
    "mean": [0.3],
    "std": [0.35],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


def as_tensor(number: int) -> Tensor:
    return torch.tensor(float(number))


def refuse(number: int) -> Tensor:
    raise AssertionError(f"sample {number} was opened too early")


def negative(value: Tensor) -> Tensor:
    return -value - 1


class Numbers(DataModule):
    """Each sample is its own number: `counts[k]` samples of class k, and ready-made splits where wanted."""

    def __init__(self, counts=(60, 40, 20), given=(), opener=as_tensor, labels=None, **data: Any) -> None:
        self.counts, self.given, self.opener = counts, given, opener
        self.labels = labels or [f"class{index}" for index in range(len(counts))]
        super().__init__(**{"num_workers": 0} | data)

    def read(self) -> dict[str, Samples]:
        targets = np.repeat(self.labels, self.counts)
        first = 0
        splits = {}
        for split in ("train", *self.given):
            splits[split] = Samples(np.arange(first, first + len(targets)), targets, self.opener)
            first += len(targets)
        return splits

    def preprocess(self, **preprocessing: Any) -> None:
        self.transforms = {"train": negative, "eval": torch.clone}


def inputs(data: DataModule) -> dict[str, list[int]]:
    return {split: [int(number) for number in samples.inputs] for split, samples in data.splits.items()}


def class_counts(data: DataModule, split: str) -> list[int]:
    return np.bincount(data.splits[split].targets, minlength=len(data.classes)).tolist()


def batches(loader: Any) -> list[list[float]]:
    return [batch.tolist() for batch, _ in loader]


def trainer_in(epoch: int) -> SimpleNamespace:
    progress = SimpleNamespace(current=SimpleNamespace(processed=epoch))
    return SimpleNamespace(current_epoch=epoch, fit_loop=SimpleNamespace(epoch_progress=progress))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"train": 108, "val": 12}),
        ({"val_size": 0.25}, {"train": 90, "val": 30}),
        ({"test_size": 0.2}, {"train": 86, "val": 10, "test": 24}),
        ({"given": ("val",)}, {"train": 120, "val": 120}),
        ({"given": ("test",), "test_size": 0.5}, {"train": 108, "val": 12, "test": 120}),
        ({"given": ("val", "test")}, {"train": 120, "val": 120, "test": 120}),
    ],
)
def test_splits_are_disjoint_and_complete(options, expected):
    data = Numbers(**options)
    assert data.sizes == expected
    held = sorted(number for numbers in inputs(data).values() for number in numbers)
    assert held == list(range(120 * (1 + len(options.get("given", ())))))


def test_splits_the_data_already_has_are_kept_as_they_are():
    assert inputs(Numbers(given=("val",), val_size=0.5))["val"] == list(range(120, 240))


def test_digits_splits_hold_every_digit_once():
    pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    held = Counter(image.tobytes() for samples in Digits().splits.values() for image in samples.inputs)
    assert held == Counter(image.tobytes() for image in pixels)


def test_samples_keep_their_own_targets():
    data = Numbers(test_size=0.2, train_size=30)
    for samples in data.splits.values():
        for index, number in enumerate(samples.inputs):
            assert samples[index] == (as_tensor(number), int(np.searchsorted([60, 100, 120], number, "right")))


def assert_stratified(part: list[int], whole: list[int]) -> None:
    """Each class has its share of the whole, to within one sample."""
    expected = np.array(whole) * (sum(part) / sum(whole))
    assert np.abs(part - expected).max() <= 1, (part, whole)


@pytest.mark.parametrize("counts", [(60, 40, 20), (100, 100), (200, 57, 11, 31)])
def test_splits_keep_class_shares_within_one_sample(counts):
    data = Numbers(counts=counts, val_size=0.2, test_size=0.2)
    assert_stratified(class_counts(data, "test"), list(counts))
    rest = np.add(class_counts(data, "train"), class_counts(data, "val")).tolist()
    assert_stratified(class_counts(data, "val"), rest)
    assert_stratified(class_counts(data, "train"), rest)


def test_digits_splits_keep_class_shares_within_one_sample():
    data = Digits()
    assert_stratified(class_counts(data, "test"), np.bincount(load_digits().target).tolist())
    assert_stratified(
        class_counts(data, "val"), np.add(class_counts(data, "train"), class_counts(data, "val")).tolist()
    )


def test_same_seed_gives_the_same_split():
    expected = inputs(Numbers(seed=4, test_size=0.2, train_size=0.5))
    np.random.seed(77)
    torch.manual_seed(77)
    assert inputs(Numbers(seed=4, test_size=0.2, train_size=0.5)) == expected


def test_other_seed_gives_another_split():
    first, second = inputs(Numbers(seed=0, test_size=0.2)), inputs(Numbers(seed=1, test_size=0.2))
    assert all(first[split] != second[split] for split in ("train", "val", "test"))


@pytest.mark.parametrize("size", [10, 57, 100, 1000])
def test_subset_by_count_has_exactly_that_many_and_every_class(size):
    data = Digits(train_size=size)
    assert data.sizes["train"] == size
    assert min(class_counts(data, "train")) >= 1


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_subset_by_share_has_that_share_and_every_class(share):
    full, data = Digits(), Digits(train_size=share)
    assert abs(data.sizes["train"] - share * full.sizes["train"]) < 1
    assert min(class_counts(data, "train")) >= 1


@pytest.mark.parametrize("size", [90, 0.3])
def test_subset_keeps_class_shares(size):
    assert_stratified(class_counts(Digits(train_size=size), "train"), class_counts(Digits(), "train"))


def test_subset_is_part_of_train_and_leaves_val_and_test_alone():
    full, part = inputs(Numbers(test_size=0.2)), inputs(Numbers(test_size=0.2, train_size=12))
    assert set(part["train"]) < set(full["train"])
    assert (part["val"], part["test"]) == (full["val"], full["test"])


@pytest.mark.parametrize("size", [108, 1.0, None])
def test_subset_of_everything_is_everything(size):
    assert inputs(Numbers(train_size=size)) == inputs(Numbers())


@pytest.mark.parametrize("size", [107, 106])
def test_subset_may_leave_out_fewer_samples_than_there_are_classes(size):
    data = Numbers(train_size=size)
    assert data.sizes["train"] == size
    assert min(class_counts(data, "train")) >= 1


@pytest.mark.parametrize("size", [1, 2, 9, 1294, 5000])
def test_subset_below_the_class_count_or_above_the_size_is_refused(size):
    with pytest.raises(UserError, match=r"data\.train_size must") as caught:
        Digits(train_size=size)
    assert f"got {size} " in str(caught.value)
    assert "10 classes" in str(caught.value)


def counts_or_refusal(**options: Any) -> list[int] | str:
    try:
        return class_counts(Numbers(**options), "train")
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("size", [10, 0.02])
def test_subset_of_unequal_classes_keeps_every_class_or_is_refused(size):
    """A stratified draw alone gives a class of five beside one of nine hundred no place among ten."""
    found = counts_or_refusal(counts=(1000, 6), train_size=size)
    assert "data.train_size" in found if isinstance(found, str) else min(found) >= 1


@pytest.mark.parametrize("option", ["val_size", "test_size"])
def test_share_that_leaves_a_class_without_samples_is_refused(option):
    with pytest.raises(UserError, match=rf"data\.{option} must leave every class at least one sample"):
        Numbers(counts=(50, 50, 50), **{"given": ("val",) if option == "test_size" else (), option: 0.01})


@pytest.mark.fault("E9")
def test_class_of_one_sample_is_refused():
    with pytest.raises(UserError, match=r"data\.val_size .* got 0\.1 of 51 samples in 2 classes"):
        Numbers(counts=(50, 1))


def test_single_class_is_refused_by_name():
    with pytest.raises(UserError, match=r"found 1: only"):
        Numbers(counts=(50,), labels=["only"])


def test_fingerprint_is_stable():
    assert Numbers(train_size=20).fingerprint == Numbers(train_size=20, batch_size=7).fingerprint
    assert Digits().fingerprint == Digits(augment="strong").fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train_size": 20},
        {"val_size": 0.2},
        {"test_size": 0.2},
        {"labels": ["a", "b", "c"]},
        {"counts": (60, 39, 21)},
    ],
)
def test_fingerprint_changes_with_the_data(change):
    assert Numbers(**change).fingerprint != Numbers().fingerprint


def test_fingerprint_of_digits_changes_with_a_pixel():
    data = Digits()
    before = data.fingerprint
    data.splits["train"].inputs[0] = 255 - data.splits["train"].inputs[0]
    assert data.fingerprint != before


@pytest.mark.parametrize(
    ("counts", "batch_size", "expected"),
    [
        ((9, 8), 8, [8, 8]),
        ((9, 9), 8, [8, 8, 2]),
        ((8, 8), 8, [8, 8]),
        ((9, 8), 32, [17]),
        ((9, 8), 17, [17]),
        ((2, 1), 1, [1, 1, 1]),
    ],
)
def test_last_batch_of_one_sample_is_dropped_in_training(counts, batch_size, expected):
    data = Numbers(counts=counts, given=("val", "test"), batch_size=batch_size)
    data.preprocess()
    assert [len(batch) for batch in batches(data.train_dataloader())] == expected


@pytest.mark.parametrize("split", ["val", "test"])
def test_last_batch_of_one_sample_is_evaluated(split):
    data = Numbers(counts=(9, 8), given=("val", "test"), batch_size=8)
    data.preprocess()
    assert [len(batch) for batch in batches(getattr(data, f"{split}_dataloader")())] == [8, 8, 1]


def test_evaluation_is_in_order_and_not_augmented():
    data = Numbers(counts=(9, 8), given=("val",), batch_size=32)
    data.preprocess()
    assert batches(data.val_dataloader()) == [[float(number) for number in range(17, 34)]]


def test_training_is_augmented_and_in_another_order_each_epoch():
    data = Numbers(counts=(9, 8), given=("val",), batch_size=32)
    data.preprocess()
    loader = data.train_dataloader()
    orders = []
    for epoch in range(3):
        data.trainer = trainer_in(epoch)
        orders.append(tuple(batches(loader)[0]))
    assert [sorted(order) for order in orders] == [[float(-number - 1) for number in range(16, -1, -1)]] * 3
    assert len(set(orders)) == 3


@pytest.mark.parametrize("augment", ["default", "strong"])
def test_loader_gives_the_same_batches_with_and_without_workers(augment):
    epochs = []
    for workers in (0, 2):
        data = Digits(train_size=24, batch_size=8, augment=augment, num_workers=workers, seed=3)
        data.preprocess(**DIGITS_PREPROCESSING)
        data.trainer = trainer_in(4)
        epochs.append(list(data.train_dataloader()))
    assert len(epochs[0]) == len(epochs[1]) == 3
    for (alone, targets), (parallel, parallel_targets) in zip(*epochs, strict=True):
        assert torch.equal(alone, parallel)
        assert torch.equal(targets, parallel_targets)


def test_samples_are_opened_only_when_asked_for():
    data = Numbers(opener=refuse, test_size=0.2, train_size=20)
    assert data.fingerprint
    with pytest.raises(AssertionError, match="opened too early"):
        data.splits["train"][0]


def test_workers_are_as_many_as_asked_for_and_auto_chooses_them_by_the_time_of_a_batch(monkeypatch):
    monkeypatch.setattr("thaw.data.workers.cores", lambda processes: 6 // processes)
    for each, expected in ((HANDING_OVER / 33, 0), (HANDING_OVER / 31, 2), (HANDING_OVER / 7, 5), (1.0, 6)):
        monkeypatch.setattr("thaw.data.workers.seconds_a_sample", lambda samples, each=each: each)
        data = Numbers(counts=(500, 400), given=("val",), batch_size=32, num_workers="auto")
        data.preprocess()
        assert data._loader("val").num_workers == expected
        assert data.remarks == [f"val: {1000 * each:.2g} ms to load a sample, data.num_workers={expected}"]
    data.trainer = SimpleNamespace(num_devices=3)
    data._choices.clear()
    assert data._loader("val").num_workers == 2  # three processes share the six cores


@pytest.mark.parametrize(("asked", "while_busy"), [("auto", 0), (2, 2)])
def test_no_process_loads_where_it_would_take_its_core_from_what_takes_longer(asked, while_busy, monkeypatch):
    monkeypatch.setattr("thaw.data.workers.cores", lambda processes: 2)
    monkeypatch.setattr("thaw.data.workers.seconds_a_sample", lambda samples: 0.01)
    data = Numbers(counts=(500, 400), given=("val",), batch_size=4, num_workers=asked)
    data.preprocess()
    loaders = {busy: data.loader_in_order("val", variant=0, busy=busy) for busy in (0, 0.03, 0.05)}
    assert {busy: loader.num_workers for busy, loader in loaders.items()} == {0: 2, 0.03: 2, 0.05: while_busy}


@pytest.mark.parametrize(("size", "timed"), [(100, 9), (3, 4), (1, 2)])
def test_timing_samples_draws_nothing(size, timed):
    """As many as are timed, and one before."""
    taken = []

    class Noted:
        def __len__(self) -> int:
            return size

        def __getitem__(self, key: tuple[int, int]) -> None:
            taken.append(key)

    state = torch.get_rng_state()
    assert seconds_a_sample(Noted()) >= 0
    assert torch.equal(state, torch.get_rng_state())
    assert len(taken) == timed
    assert all(epoch == 0 <= index < size for epoch, index in taken)


@pytest.mark.parametrize(
    ("size", "expected"), [(10, 8), (120, 8), (165, 11), (300, 20), (479, 31), (480, 32), (900, 32)]
)
def test_few_labels_come_in_small_batches(size, expected):
    data = Numbers(counts=(500, 400), given=("val",), train_size=size)
    data.preprocess()
    assert data.batch_size == expected
    assert {len(batch) for batch in batches(data.train_dataloader())[:-1]} <= {expected}
    assert Numbers(counts=(500, 400), given=("val",), train_size=size, batch_size=64).batch_size == 64


def test_task_is_told_the_classes_and_how_often_each_occurs_in_train():
    data = Numbers(counts=(10, 20, 30), given=("val",))
    assert data.task_arguments == {"classes": ["class0", "class1", "class2"], "class_counts": [10, 20, 30]}
    assert data.network_arguments == {}
    few = Numbers(counts=(10, 20, 30), given=("val",), train_size=6)
    assert few.task_arguments["class_counts"] == [1, 2, 3]


# Shots, samplers, bad samples


@pytest.mark.parametrize("shots", [1, 5, 20])
def test_shots_are_so_many_of_each_class(shots):
    full, data = inputs(Numbers(given=("val",))), Numbers(given=("val",), shots=shots)
    assert class_counts(data, "train") == [shots] * 3
    assert set(inputs(data)["train"]) <= set(full["train"])
    assert inputs(data)["val"] == full["val"]
    assert inputs(Numbers(given=("val",), shots=shots)) == inputs(data)
    assert shots == 20 or inputs(Numbers(given=("val",), shots=shots, seed=1))["train"] != inputs(data)["train"]


def test_more_shots_than_a_class_has_are_refused_by_its_name():
    with pytest.raises(UserError, match=r"data\.shots must .* got 21, and 'class2' has 20"):
        Numbers(given=("val",), shots=21)


def test_a_balanced_sampler_is_for_training_alone():
    data = Numbers(counts=(90, 10), given=("val",), sampler="balanced", batch_size=50)
    data.preprocess()
    drawn = [number < -90 for batch in batches(data.train_dataloader()) for number in batch]
    assert 25 <= sum(drawn) <= 75  # of ten in a hundred, half
    assert batches(data.val_dataloader()) == [list(range(100, 150)), list(range(150, 200))]


def bad(reason: str, *numbers: int) -> type[Numbers]:
    class Bad(Numbers):
        def problems(self, samples: Samples) -> dict[int, str]:
            return {index: reason for index, number in enumerate(samples.inputs) if number in numbers}

    return Bad


def test_bad_samples_are_named_by_split_and_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # all of them are listed there
    with pytest.raises(UserError) as caught:
        bad("no sound", 3, 5, 99, 100, 130)(given=("val",))
    message = str(caught.value)
    assert (
        "5 cannot be used: train[3] '3' (no sound), train[5] '5' (no sound), train[99] '99' (no sound) and 2 more"
        in message
    )
    assert "data.on_bad_sample=skip" in message


@pytest.mark.fault("E2", "E3")
def test_bad_samples_up_to_one_in_a_hundred_of_a_split_are_left_out():
    kind = bad("no sound", 3, 5, 209)
    data = kind(counts=(100, 100), given=("val",), on_bad_sample="skip")
    assert data.skipped == [("train", "3", "no sound"), ("train", "5", "no sound"), ("val", "9", "no sound")]
    assert data.sizes == {"train": 198, "val": 199}
    assert not {3, 5, 209} & {number for numbers in inputs(data).values() for number in numbers}
    assert data.quality().skipped == {"no sound": 3}
    with pytest.raises(UserError, match="3 cannot be used"):
        bad("no sound", 3, 4, 5)(counts=(100, 100), given=("val",), on_bad_sample="skip")


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_sample_without_a_label_is_bad(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # all of them are listed there

    class Unlabelled(Numbers):
        def read(self) -> dict[str, Samples]:
            labels = ["a", "b", missing] * 10
            return {"train": Samples(np.arange(30), labels, as_tensor)}

    with pytest.raises(UserError, match=r"10 cannot be used: train\[2\] '2' \(no label\)"):
        Unlabelled()


@pytest.mark.parametrize(
    ("kind", "model"), [("text", "model=bert"), ("waveform", "model=wav2vec2"), ("image", "model=mobilenet")]
)
def test_data_and_a_network_that_does_not_read_it_are_told_apart(kind, model):
    class Only(DataModule):
        def read(self) -> dict[str, Samples]:
            return {"train": Samples(np.arange(30), ["a", "b", "c"] * 10, as_tensor)}

    setattr(Only, f"for_{kind}", lambda self, **_: None)
    other = "text" if kind == "image" else "image"
    with pytest.raises(UserError) as caught:
        Only().preprocess(kind=other)
    assert f"model must read what data=Only holds, and this one reads {other} inputs" in str(caught.value)
    assert model in str(caught.value)


def test_quality_tells_what_stands_twice_and_where():
    class Doubled(Numbers):
        def keys(self, samples: Samples) -> list[str]:
            return [str(number % 110) for number in samples.inputs]

    quality = Doubled(given=("val",)).quality()
    assert quality.sizes == {"train": 120, "val": 120}
    assert quality.class_counts["train"] == {"class0": 60, "class1": 40, "class2": 20}
    assert quality.duplicates == {"train": 10, "val": 10}
    assert [(leak.earlier, leak.later, leak.samples) for leak in quality.leaks] == [("train", "val", 120)]


def test_what_a_spawned_worker_gets_leaves_the_trainer_behind() -> None:
    data = Digits()
    data.preprocess(channels=1, size=32, mean=[0.5], std=[0.5], interpolation="bilinear", crop_pct=1.0)
    data.trainer = lambda: None  # cannot be pickled, as a trainer with a schedule cannot
    data.ready["val"] = lambda keys: None  # as the features of another split do
    loader = data._loader("train")
    for part in (loader.collate_fn, loader.dataset):
        pickle.loads(pickle.dumps(part))


def test_every_process_needs_a_sample_of_every_split() -> None:
    data = Digits(train_size=40, num_workers=0)
    data.share(1, 2)
    assert (data.rank, data.ranks) == (1, 2)
    with pytest.raises(UserError, match=r"each of 200 processes; train has 40 and val has \d+\. Write"):
        data.share(0, 200)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_after_the_batches_that_are_done(workers: int) -> None:
    data = Digits(train_size=64, batch_size=16, num_workers=workers, augment="strong")
    data.preprocess(channels=1, size=8, mean=[0.0], std=[1.0], interpolation="bilinear", crop_pct=1.0)
    whole, again = data._train_loader(), data._train_loader()
    again.load_state_dict({"batches": 2})
    pairs = list(zip(list(whole)[2:], list(again), strict=True))
    assert len(pairs) == 2
    assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
