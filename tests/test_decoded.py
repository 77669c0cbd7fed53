"""Images that are decoded once: the same pixels, for these very files, as long as they pay and fit."""

import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from test_images import GREY, PREPROCESSING, gradient, load, noise, packed, tree

from thaw.cache import Cache
from thaw.data import decoded, images
from thaw.data.decoded import Decoded
from thaw.data.images import ImageFolder
from thaw.errors import UserError


def photographs(folder: Path) -> Path:
    """Of every size, grey, turned and with transparency."""
    tree(folder, count=6)
    noise(1, (31, 57)).save(folder / "cat" / "tall.jpg")
    noise(2, (40, 12), channels=1).save(folder / "dog" / "grey.png")
    gradient(25, 44).convert("RGBA").save(folder / "dog" / "clear.png")
    exif = noise(0).getexif()
    exif[0x0112] = 6
    noise(3, (50, 30)).save(folder / "cat" / "turned.jpg", exif=exif)
    return folder


def training(epochs: int = 3, epoch: int = 0) -> Any:
    processed = SimpleNamespace(current=SimpleNamespace(processed=epoch))
    loop = SimpleNamespace(
        epoch_progress=processed, epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=None))
    )
    return SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), max_epochs=epochs, fit_loop=loop)


def loaded(
    root: Path, cache: Cache | None, trainer: Any = None, preprocessing: Any = None, **options: Any
) -> ImageFolder:
    data = load(root, **{"batch_size": 4} | options)
    data.preprocess(**preprocessing or PREPROCESSING)
    data.cache, data.trainer = cache, trainer or training()
    return data


def batches(data: ImageFolder, split: str) -> list[torch.Tensor]:
    return [images for images, _ in data._loader(split)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are decoded from now on."""
    seen: list[str] = []
    open_image = images.open_image

    def note(path: str, draft: bool = False) -> Any:
        if not draft:
            seen.append(path)
        return open_image(path, draft)

    monkeypatch.setattr(decoded.inspect, "getsource", lambda _: "the same code")
    monkeypatch.setattr(images, "open_image", note)
    return seen


@pytest.mark.parametrize("augment", ["none", "default", "strong"])
@pytest.mark.parametrize("preprocessing", [PREPROCESSING, GREY])
@pytest.mark.parametrize("zipped", [False, True])
def test_batches_are_the_same_bit_for_bit_with_and_without(tmp_path, augment, preprocessing, zipped) -> None:
    photographs(tmp_path / "train")
    if zipped:
        packed(tmp_path / "train", tmp_path / "train.zip")
    cache = Cache(tmp_path / "cache", 10**8)
    for epoch in (0, 1):
        trainer = training(epoch=epoch)
        found = [loaded(tmp_path, kept, trainer, preprocessing, augment=augment) for kept in (None, cache)]
        for split in ("train", "val"):
            plain, stored = (batches(data, split) for data in found)
            assert len(plain) == len(stored) > 0
            assert all(torch.equal(a, b) for a, b in zip(plain, stored, strict=True))
        assert set(found[1]._decoded) == {"train", "val"}
        assert None not in found[1]._decoded.values()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_once_in_all_epochs_seeds_and_runs(tmp_path, opened, workers) -> None:
    root, cache = photographs(tmp_path / "data"), Cache(tmp_path / "cache", 10**8)
    data = loaded(root, cache, num_workers=workers)
    for _ in range(2):
        batches(data, "train")
    assert sorted(opened) == sorted(str(path) for path in root.glob("*/*"))  # with those that val has by this seed
    again = loaded(root, Cache(tmp_path / "cache", 10**8), training(1), seed=5)
    assert set(again.splits["train"].inputs) != set(data.splits["train"].inputs)
    batches(again, "train")
    assert len(opened) == 16


@pytest.mark.medium
@pytest.mark.parametrize(
    ("strategy", "after"),
    [
        # Three stages, of whose frozen groups each needs activations of its own.
        (("freezing.every=3", "trainer.max_epochs=9"), ["block03", "block02", "block01"]),
        # One, on a CPU: its threads decode at first, and then are free for the body.
        (("freezing=linear_probe", "trainer.max_epochs=3"), ["block03"]),
    ],
)
def test_what_fills_the_cache_finds_the_images_decoded(run_train, tmp_path, opened, strategy, after) -> None:
    photographs(tmp_path / "data")
    small = ("model.in_channels=3", "model.weights=none", "data.batch_size=4", "data.num_workers=0", "trainer=cpu")
    words = ("data=image_folder", f"data.root={tmp_path}/data", "data.augment=none", "report=none", "test=false")
    outcome = run_train(*words, *small, *strategy, "cache.dir=cache", "logger=none")
    assert outcome.code == 0
    assert [entry["after"] for entry in outcome.record["features"] if entry["split"] == "train"] == after
    assert outcome.printed.count("images are kept decoded") == 2
    # Once for all; before that one of train and one of val are looked at.
    assert len(opened) <= len(set(opened)) + 2


def test_a_few_of_many_images_are_decoded_alone(tmp_path, opened) -> None:
    batches(loaded(photographs(tmp_path / "data"), Cache(tmp_path / "cache", 10**8), shots=2), "train")
    assert len(opened) == 4


@pytest.mark.parametrize("hashed", [True, False])
def test_a_changed_image_is_decoded_anew(tmp_path, monkeypatch, hashed) -> None:
    monkeypatch.setattr(images, "CHECKED_FILES", 20_000 if hashed else 0)
    root, cache = tree(tmp_path / "data"), Cache(tmp_path / "cache", 10**8)
    before = batches(loaded(root, cache, augment="none"), "train")
    for path in root.glob("*/*"):
        size, changed = path.stat().st_size, path.stat().st_mtime_ns
        noise(99).save(path)
        if hashed:  # of the same age: only what it holds can tell
            os.utime(path, ns=(changed, changed))
        assert size
    after = batches(loaded(root, cache, augment="none"), "train")
    plain = batches(loaded(root, None, augment="none"), "train")
    assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("most", "trainer", "told"),
    [
        (1000, training(), ["train: 8 images do not fit into the cache decoded, 0.0 MB"]),
        (10**8, training(1), []),
        (10**8, SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING), max_epochs=3), []),
    ],
)
def test_images_are_decoded_each_time_where_they_do_not_fit_or_are_read_once(tmp_path, most, trainer, told) -> None:
    data = loaded(tree(tmp_path / "data"), Cache(tmp_path / "cache", most), trainer)
    assert [data.keep("train") for _ in range(2)] == [False, False]
    assert data.served("train")[0] is data.splits["train"]
    assert data.remarks == told


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    data = loaded(tree(tmp_path / "data"), Cache(tmp_path / "cache", 10**8))
    assert len(batches(data, "train")) == 2
    assert data.remarks == ["train: images are not kept decoded (No space left on device)"]


def test_a_broken_image_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(images, "CHECKED_FILES", 0)
    root = tree(tmp_path / "data")
    (root / "cat" / "0.png").write_text("no image")
    data = loaded(root, Cache(tmp_path / "cache", 10**8))
    with pytest.raises(UserError, match=r"cat/0\.png' is not"):
        data.keep("train")


def test_what_a_spawned_process_gets_is_the_place_alone(tmp_path) -> None:
    np.save(tmp_path / "shapes.npy", np.array([[2, 3, 1], [1, 2, 3]]))
    np.save(tmp_path / "pixels.npy", np.arange(12, dtype=np.uint8))
    opened = Decoded(tmp_path)
    assert np.asarray(opened(1)).tolist() == [[[6, 7, 8], [9, 10, 11]]]
    again = pickle.loads(pickle.dumps(opened))
    assert set(vars(again)) == {"folder"}
    assert np.asarray(again(0)).tolist() == [[0, 1, 2], [3, 4, 5]]
    shutil.rmtree(tmp_path)
