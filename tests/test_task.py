"""Loss and metrics of classification, against torch and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional as F

from thaw.task import Classification

BATCHES = (7, 16, 1, 12, 20)


def data(classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and targets with some relation between the two, and every class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(sum(BATCHES)) % classes
    targets = targets[torch.randperm(len(targets), generator=generator)]
    outputs = torch.randn(len(targets), classes, generator=generator) + F.one_hot(targets, classes)
    return outputs, targets


def fill(task: Classification, split: str, outputs: Tensor, targets: Tensor) -> None:
    for part, truth in zip(outputs.split(BATCHES), targets.split(BATCHES), strict=True):
        task.update(split, task.loss(part, truth), part, truth)


def by_hand(outputs: Tensor, soft: Tensor) -> float:
    """Cross-entropy against a distribution, in double precision."""
    logs = outputs.double() - outputs.double().logsumexp(dim=1, keepdim=True)
    return float(-(soft.double() * logs).sum(dim=1).mean())


def expected_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    shares, guesses = outputs.double().softmax(dim=1).numpy(), outputs.argmax(dim=1).numpy()
    truth = targets.numpy()
    found = {
        "loss": sk.log_loss(truth, shares),
        "accuracy": sk.accuracy_score(truth, guesses),
        "f1": sk.f1_score(truth, guesses, average="macro"),
        # scikit-learn takes the scores of one class where there are two
        "auroc": sk.roc_auc_score(truth, shares if shares.shape[1] > 2 else shares[:, 1], multi_class="ovr"),
    }
    if outputs.shape[1] >= 10:
        found["top5"] = sk.top_k_accuracy_score(truth, shares, k=5)
    return found


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_cross_entropy(training):
    outputs, targets = data(4)
    task = Classification(4).train(training)
    assert float(task.loss(outputs, targets)) == pytest.approx(by_hand(outputs, F.one_hot(targets, 4)), rel=1e-5)
    assert torch.equal(task.loss(outputs, targets), F.cross_entropy(outputs, targets))


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_labels_are_smoothed_in_training_alone(smoothing):
    outputs, targets = data(4)
    task = Classification(4, label_smoothing=smoothing)
    smooth = F.one_hot(targets, 4) * (1 - smoothing) + smoothing / 4
    assert float(task.train().loss(outputs, targets)) == pytest.approx(by_hand(outputs, smooth), rel=1e-5)
    hard = by_hand(outputs, F.one_hot(targets, 4))
    assert float(task.eval().loss(outputs, targets)) == pytest.approx(hard, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_targets_weigh_the_classes(smoothing):
    outputs, _ = data(4)
    soft = torch.rand(len(outputs), 4, generator=torch.Generator().manual_seed(1))
    soft /= soft.sum(dim=1, keepdim=True)
    task = Classification(4, label_smoothing=smoothing)
    smooth = soft * (1 - smoothing) + smoothing / 4
    assert float(task.train().loss(outputs, soft)) == pytest.approx(by_hand(outputs, smooth), rel=1e-5)
    assert float(task.eval().loss(outputs, soft)) == pytest.approx(by_hand(outputs, soft), rel=1e-5)


def test_loss_carries_a_gradient_and_the_metrics_keep_none():
    outputs, targets = data(4)
    outputs.requires_grad_()
    task = Classification(4)
    loss = task.loss(outputs, targets)
    task.update("train", loss, outputs, targets)
    assert not any(value.requires_grad for value in task.compute("train").values())
    loss.backward()
    assert outputs.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [2, 4, 12])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_metrics_agree_with_scikit_learn(classes, split):
    outputs, targets = data(classes)
    task = Classification(classes).eval()
    fill(task, split, outputs, targets)
    expected = expected_metrics(outputs, targets)
    if split == "train":
        del expected["auroc"]
    found = {name: float(value) for name, value in task.compute(split).items()}
    assert found == pytest.approx({f"{split}/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_auroc_of_a_split_that_lacks_a_class_is_that_of_the_classes_it_has():
    task = Classification(3).eval()
    fill(task, "val", torch.eye(3)[[0, 1] * 28] * 9, torch.tensor([0, 1] * 28))
    assert float(task.compute("val")["val/auroc"]) == 1.0


def test_metrics_of_a_split_are_over_samples_and_not_over_batches():
    """The mean of the batches' means would weigh the one sample of a last batch like a full batch."""
    outputs = torch.tensor([[9.0, 0.0]] * 4)
    targets = torch.tensor([0, 0, 0, 1])
    task = Classification(2).eval()
    for part in (slice(0, 3), slice(3, 4)):
        task.update("val", task.loss(outputs[part], targets[part]), outputs[part], targets[part])
    found = task.compute("val")
    assert float(found["val/accuracy"]) == 0.75
    assert float(found["val/loss"]) == pytest.approx(float(F.cross_entropy(outputs, targets)))


def test_compute_begins_anew():
    task = Classification(4).eval()
    fill(task, "val", *data(4, seed=1))
    first = task.compute("val")
    fill(task, "val", *data(4, seed=2))
    second = {name: float(value) for name, value in task.compute("val").items()}
    expected = expected_metrics(*data(4, seed=2))
    assert second == pytest.approx({f"val/{name}": value for name, value in expected.items()}, rel=1e-4)
    assert all(float(first[name]) != second[name] for name in second)


def test_splits_do_not_mix():
    task = Classification(4).eval()
    for seed, split in enumerate(("train", "val", "test")):
        fill(task, split, *data(4, seed))
    for seed, split in enumerate(("train", "val", "test")):
        expected = {f"{split}/{name}": value for name, value in expected_metrics(*data(4, seed)).items()}
        expected = {name: value for name, value in expected.items() if name != "train/auroc"}
        assert {name: float(value) for name, value in task.compute(split).items()} == pytest.approx(expected, rel=1e-4)


def test_mixed_samples_count_under_their_heavier_class():
    task = Classification(3)
    outputs = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.3, 0.3]])
    assert task.labels(soft).tolist() == [0, 0]
    task.update("train", task.loss(outputs, soft), outputs, soft)
    assert float(task.metrics["train_"]["accuracy"].compute()) == 0.5


@pytest.mark.parametrize("classes", [2, 9, 10, 11])
def test_top5_is_measured_from_ten_classes_on(classes):
    expected = ["loss", "accuracy", "f1", "auroc"] + (["top5"] if classes >= 10 else [])
    assert sorted(Classification(classes).names("val")) == sorted(f"val/{name}" for name in expected)
    assert "train/auroc" not in Classification(classes).names("train")  # it would keep every prediction


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("val/loss", "min"),
        ("train/loss", "min"),
        ("val/accuracy", "max"),
        ("val/f1", "max"),
        ("val/auroc", "max"),
        ("val/top5", "max"),
    ],
)
def test_direction_tells_which_way_a_metric_gets_better(name, direction):
    assert Classification(10).direction(name) == direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_of_single_precision(dtype):
    outputs, _ = data(4)
    shares = Classification(4).predict(outputs.to(dtype))
    assert shares.dtype == torch.float32
    assert torch.allclose(shares.sum(dim=1), torch.ones(len(shares)), atol=1e-6)
    assert torch.equal(shares.argmax(dim=1), outputs.to(dtype).argmax(dim=1))


@pytest.mark.parametrize("absent", [False, True])
def test_per_class_table_agrees_with_scikit_learn(absent):
    outputs, targets = data(5)
    if absent:
        outputs, targets = outputs[targets != 3], targets[targets != 3]
        outputs[:, 3] = -9
    task = Classification(5)
    table = task.per_class(task.predict(outputs), targets)
    expected = sk.precision_recall_fscore_support(
        targets, outputs.argmax(dim=1), labels=np.arange(5), average=None, zero_division=0
    )
    assert list(table) == ["precision", "recall", "f1", "support"]
    for found, column in zip(table.values(), expected, strict=True):
        assert found == pytest.approx(column.tolist(), abs=1e-6)
    assert (table["support"][3] == 0) == absent


def test_loss_that_is_not_a_number_is_told():
    """A diverged batch must not vanish from the mean of its epoch."""
    outputs, targets = data(4)
    task = Classification(4).eval()
    task.update("val", torch.tensor(math.nan), outputs, targets)
    task.update("val", torch.tensor(1.0), outputs, targets)
    assert math.isnan(float(task.compute("val")["val/loss"]))
