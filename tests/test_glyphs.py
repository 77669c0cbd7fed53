"""The bundled weights: the recorded file, and the recorded worth of it."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.linear_model import LogisticRegression

from thaw.data.digits import Digits
from thaw.data.glyphs import CLASSES, augmentation, glyph_bank
from thaw.model.glyphs import WEIGHTS
from thaw.model.timm import timm_network

SHA256 = "a8ed1bab1a478101c208bc68c5316075f378f03adcf656c407e7d6337834d8f3"
# Test accuracy of logistic regression on the frozen features, all training digits, split of seed 0.
PROBE = 0.9944


def features(data: Digits, split: str) -> tuple[np.ndarray, np.ndarray]:
    network = timm_network("resnet_glyphs", 10).eval()
    data.preprocess(**network.preprocessing)
    samples = data.splits[split]
    images = torch.stack([data.transforms["eval"](image) for image, _ in samples])
    with torch.no_grad():
        return network.features(images).numpy(), samples.targets


def test_the_weights_are_those_of_the_readme() -> None:
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == SHA256
    assert SHA256 in (ROOT / "README.md").read_text()
    assert WEIGHTS.stat().st_size <= 1.5e6


def test_the_weights_give_the_recorded_probe_accuracy() -> None:
    data = Digits(seed=0)
    probe = LogisticRegression(max_iter=2000).fit(*features(data, "train"))
    assert probe.score(*features(data, "test")) == pytest.approx(PROBE, abs=0.003)


def test_glyphs_are_every_class_in_every_font_with_ink() -> None:
    images, labels = glyph_bank()
    assert images.dtype == torch.uint8
    assert torch.equal(labels.bincount(), torch.full((len(CLASSES),), len(images) // len(CLASSES)))
    assert len(images) // len(CLASSES) >= 20
    assert (images.flatten(1).max(dim=1).values == 255).all()


def test_augmentation_is_seeded_and_stays_an_image() -> None:
    images, _ = glyph_bank()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(augmentation()(images[:16]))
    assert drawn[0].shape == (16, 1, 32, 32)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert 0 <= drawn[0].min() <= drawn[0].max() <= 1
