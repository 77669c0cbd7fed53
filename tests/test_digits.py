"""The embedded data set, as it is configured and as a network gets it."""

import socket

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from thaw import config
from thaw.data.digits import Digits

PREPROCESSING = {"channels": 1, "size": 32, "mean": [0.3], "std": [0.35], "interpolation": "bilinear", "crop_pct": 1.0}


def test_digits_are_ten_classes_in_splits_of_known_size():
    data = Digits()
    assert data.classes == [str(digit) for digit in range(10)]
    assert data.sizes == {"train": 1293, "val": 144, "test": 360}


def test_pixels_and_targets_come_from_the_same_row():
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    known = {(image.tobytes(), int(target)) for image, target in zip(levels, digits.target, strict=True)}
    assert len(known) > 1700
    for samples in Digits().splits.values():
        assert {(np.asarray(image).tobytes(), target) for image, target in samples} <= known


def test_images_are_eight_by_eight_grey_and_use_every_level():
    image, target = Digits().splits["train"][0]
    assert (image.mode, image.size) == ("L", (8, 8))
    assert isinstance(target, int | np.integer)
    pixels = np.stack([np.asarray(image) for image, _ in Digits().splits["val"]])
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert len(np.unique(pixels)) == 17


def test_digits_need_no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert sum(Digits().sizes.values()) == 1797


def test_configuration_of_digits_builds():
    data = config.build(OmegaConf.load(config.CONF / "data" / "digits.yaml"), seed=3)
    assert isinstance(data, Digits)
    assert data.fingerprint == Digits(seed=3).fingerprint
    assert not data.flip


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_batches_fit_a_one_channel_network(split):
    data = Digits(train_size=64, batch_size=16, num_workers=0)
    data.preprocess(**PREPROCESSING)
    inputs, targets = data.on_after_batch_transfer(next(iter(getattr(data, f"{split}_dataloader")())), 0)
    assert inputs.shape == (16, 1, 32, 32)
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert inputs.min() >= (0 - 0.3) / 0.35 - 1e-6
    assert inputs.max() <= (1 - 0.3) / 0.35 + 1e-6
    assert 0 <= targets.min() <= targets.max() <= 9
