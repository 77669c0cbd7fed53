"""Loss and metrics of classification and of several labels, against torch and scikit-learn; metrics by name."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight
from test_config import composed
from torch import Tensor
from torch.nn import functional as F

from thaw import config
from thaw.errors import UserError
from thaw.task.classification import Classification, Multilabel

BATCHES = (7, 16, 1, 12, 20)


def yaml_metrics(task: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "task" / f"{task}.yaml").metrics)


def classification(classes: int, **options: Any) -> Classification:
    """With the metrics of conf/task/classification.yaml."""
    names = [f"class{number}" for number in range(classes)]
    return Classification(names, **{"metrics": yaml_metrics("classification")} | options)


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
        "mcc": sk.matthews_corrcoef(truth, guesses),
        # scikit-learn takes the scores of one class where there are two
        "auroc": sk.roc_auc_score(truth, shares if shares.shape[1] > 2 else shares[:, 1], multi_class="ovr"),
    }
    if outputs.shape[1] >= 10:
        found["top5"] = sk.top_k_accuracy_score(truth, shares, k=5)
    return found


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_cross_entropy(training):
    outputs, targets = data(4)
    task = classification(4).train(training)
    assert float(task.loss(outputs, targets)) == pytest.approx(by_hand(outputs, F.one_hot(targets, 4)), rel=1e-5)
    assert torch.equal(task.loss(outputs, targets), F.cross_entropy(outputs, targets))


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_labels_are_smoothed_in_training_alone(smoothing):
    outputs, targets = data(4)
    task = classification(4, label_smoothing=smoothing)
    smooth = F.one_hot(targets, 4) * (1 - smoothing) + smoothing / 4
    assert float(task.train().loss(outputs, targets)) == pytest.approx(by_hand(outputs, smooth), rel=1e-5)
    hard = by_hand(outputs, F.one_hot(targets, 4))
    assert float(task.eval().loss(outputs, targets)) == pytest.approx(hard, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_targets_weigh_the_classes(smoothing):
    outputs, _ = data(4)
    soft = torch.rand(len(outputs), 4, generator=torch.Generator().manual_seed(1))
    soft /= soft.sum(dim=1, keepdim=True)
    task = classification(4, label_smoothing=smoothing)
    smooth = soft * (1 - smoothing) + smoothing / 4
    assert float(task.train().loss(outputs, soft)) == pytest.approx(by_hand(outputs, smooth), rel=1e-5)
    assert float(task.eval().loss(outputs, soft)) == pytest.approx(by_hand(outputs, soft), rel=1e-5)


def test_loss_carries_a_gradient_and_the_metrics_keep_none():
    outputs, targets = data(4)
    outputs.requires_grad_()
    task = classification(4)
    loss = task.loss(outputs, targets)
    task.update("train", loss, outputs, targets)
    assert not any(value.requires_grad for value in task.compute("train").values())
    loss.backward()
    assert outputs.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [2, 4, 12])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_metrics_agree_with_scikit_learn(classes, split):
    outputs, targets = data(classes)
    task = classification(classes).eval()
    fill(task, split, outputs, targets)
    expected = expected_metrics(outputs, targets)
    if split == "train":
        del expected["auroc"]
    found = {name: float(value) for name, value in task.compute(split).items()}
    assert found == pytest.approx({f"{split}/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_auroc_of_a_split_that_lacks_a_class_is_that_of_the_classes_it_has():
    task = classification(3).eval()
    fill(task, "val", torch.eye(3)[[0, 1] * 28] * 9, torch.tensor([0, 1] * 28))
    assert float(task.compute("val")["val/auroc"]) == 1.0


def test_metrics_of_a_split_are_over_samples_and_not_over_batches():
    """The mean of the batches' means would weigh the one sample of a last batch like a full batch."""
    outputs = torch.tensor([[9.0, 0.0]] * 4)
    targets = torch.tensor([0, 0, 0, 1])
    task = classification(2).eval()
    for part in (slice(0, 3), slice(3, 4)):
        task.update("val", task.loss(outputs[part], targets[part]), outputs[part], targets[part])
    found = task.compute("val")
    assert float(found["val/accuracy"]) == 0.75
    assert float(found["val/loss"]) == pytest.approx(float(F.cross_entropy(outputs, targets)))


def test_compute_begins_anew():
    task = classification(4).eval()
    fill(task, "val", *data(4, seed=1))
    first = task.compute("val")
    fill(task, "val", *data(4, seed=2))
    second = {name: float(value) for name, value in task.compute("val").items()}
    expected = expected_metrics(*data(4, seed=2))
    assert second == pytest.approx({f"val/{name}": value for name, value in expected.items()}, rel=1e-4)
    assert all(float(first[name]) != second[name] for name in second)


def test_splits_do_not_mix():
    task = classification(4).eval()
    for seed, split in enumerate(("train", "val", "test")):
        fill(task, split, *data(4, seed))
    for seed, split in enumerate(("train", "val", "test")):
        expected = {f"{split}/{name}": value for name, value in expected_metrics(*data(4, seed)).items()}
        expected = {name: value for name, value in expected.items() if name != "train/auroc"}
        assert {name: float(value) for name, value in task.compute(split).items()} == pytest.approx(expected, rel=1e-4)


def test_mixed_samples_count_under_their_heavier_class():
    task = classification(3)
    outputs = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.3, 0.3]])
    assert task.labels(soft).tolist() == [0, 0]
    task.update("train", task.loss(outputs, soft), outputs, soft)
    assert float(task.compute("train")["train/accuracy"]) == 0.5


@pytest.mark.parametrize("classes", [2, 9, 10, 11])
def test_top5_is_measured_from_ten_classes_on(classes):
    expected = ["loss", "accuracy", "f1", "auroc", "mcc"] + (["top5"] if classes >= 10 else [])
    assert sorted(classification(classes).names("val")) == sorted(f"val/{name}" for name in expected)
    assert "train/auroc" not in classification(classes).names("train")  # it would keep every prediction


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("val/loss", "min"),
        ("train/loss", "min"),
        ("val/accuracy", "max"),
        ("val/f1", "max"),
        ("val/auroc", "max"),
        ("val/top5", "max"),
        ("val/mcc", "max"),
    ],
)
def test_direction_tells_which_way_a_metric_gets_better(name, direction):
    assert classification(10).direction(name) == direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_of_single_precision(dtype):
    outputs, _ = data(4)
    shares = classification(4).predict(outputs.to(dtype))
    assert shares.dtype == torch.float32
    assert torch.allclose(shares.sum(dim=1), torch.ones(len(shares)), atol=1e-6)
    assert torch.equal(shares.argmax(dim=1), outputs.to(dtype).argmax(dim=1))


@pytest.mark.parametrize("absent", [False, True])
def test_per_class_table_agrees_with_scikit_learn(absent):
    outputs, targets = data(5)
    if absent:
        outputs, targets = outputs[targets != 3], targets[targets != 3]
        outputs[:, 3] = -9
    task = classification(5)
    table = task.per_class(task.rows(outputs, targets))
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
    task = classification(4).eval()
    task.update("val", torch.tensor(math.nan), outputs, targets)
    task.update("val", torch.tensor(1.0), outputs, targets)
    assert math.isnan(float(task.compute("val")["val/loss"]))


def test_a_row_names_the_truth_the_guess_and_every_probability():
    task = Classification(["ant", "bee"])
    rows = task.rows(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert [(row["target"], row["prediction"]) for row in rows] == [("ant", "ant"), ("ant", "bee")]
    assert list(rows[0]) == ["target", "prediction", "probability/ant", "probability/bee"]
    assert rows[0]["probability/ant"] == pytest.approx(torch.tensor([2.0, 0.0]).softmax(0)[0].item(), abs=1e-6)


# Imbalance


def test_balanced_weights_are_those_of_scikit_learn():
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    task = classification(3, class_counts=[60, 30, 10], class_weights="balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())
    assert task.weights.tolist() == pytest.approx(expected.tolist())
    assert float(task.weights[targets].mean()) == pytest.approx(1)
    assert not any("weights" in name for name in task.state_dict())


@pytest.mark.parametrize("focal_gamma", [0.0, 2.0])
def test_weights_count_in_training_alone(focal_gamma):
    outputs, targets = data(3)
    plain = classification(3, focal_gamma=focal_gamma)
    task = classification(3, class_weights=[1.0, 2.0, 0.5], focal_gamma=focal_gamma)
    assert task.eval().loss(outputs, targets) == F.cross_entropy(outputs, targets)
    assert plain.eval().loss(outputs, targets) == F.cross_entropy(outputs, targets)
    each = F.cross_entropy(outputs, targets, reduction="none").double()
    focus = (1 - torch.exp(-each)) ** focal_gamma
    shares = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[targets]
    assert float(task.train().loss(outputs, targets)) == pytest.approx(
        float((shares * focus * each).sum() / shares.sum())
    )
    assert float(plain.train().loss(outputs, targets)) == pytest.approx(float((focus * each).mean()))


@pytest.mark.parametrize("options", [{}, {"class_weights": [1.0, 2.0, 0.5]}, {"label_smoothing": 0.2}])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_loss_of_gamma_near_zero_is_cross_entropy(options, soft):
    outputs, targets = data(3)
    if soft:
        targets = 0.7 * F.one_hot(targets, 3).float() + 0.3 * F.one_hot(targets.roll(1), 3).float()
    plain, focal = (
        classification(3, focal_gamma=gamma, **options).train().loss(outputs, targets) for gamma in (0, 1e-7)
    )
    torch.testing.assert_close(focal, plain, rtol=1e-4, atol=1e-6)


def test_focal_loss_attends_to_what_is_wrong():
    outputs = torch.tensor([[4.0, 0.0], [0.0, 4.0]], requires_grad=True)
    shares = []
    for gamma in (0.0, 2.0):
        outputs.grad = None
        classification(2, focal_gamma=gamma).train().loss(outputs, torch.tensor([0, 0])).backward()
        right, wrong = outputs.grad.abs().sum(dim=1)
        shares.append(float(right / wrong))
    assert shares[1] < 0.1 * shares[0]


@pytest.mark.parametrize("kind", [Classification, Multilabel])
def test_weights_of_another_length_than_the_classes_are_refused(kind):
    with pytest.raises(UserError, match=r"task\.class_weights must have one number for each of the 3 classes.*got 2\."):
        kind(["a", "b", "c"], class_weights=[1.0, 2.0])


# Several labels


def label_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(sum(BATCHES), 4, generator=generator) < torch.tensor([0.5, 0.3, 0.2, 0.6])).float()
    return 2 * torch.randn(targets.shape, generator=generator) + targets, targets


def test_loss_of_labels_is_binary_cross_entropy():
    outputs, targets = label_data()
    each = sk.log_loss(targets.numpy().ravel(), outputs.double().sigmoid().numpy().ravel())
    for training in (True, False):
        task = Multilabel(list("abcd")).train(training)
        assert float(task.loss(outputs, targets)) == pytest.approx(each, rel=1e-5)
    focal = Multilabel(list("abcd"), focal_gamma=1e-7).train().loss(outputs, targets)
    assert float(focal) == pytest.approx(each, rel=1e-4)
    weighted = Multilabel(list("abcd"), class_weights=[1.0, 0.0, 0.0, 0.0]).train().loss(outputs, targets)
    expected = F.binary_cross_entropy_with_logits(outputs[:, 0], targets[:, 0]) / 4
    assert float(weighted) == pytest.approx(float(expected), rel=1e-5)


def test_metrics_of_labels_agree_with_scikit_learn():
    outputs, targets = label_data()
    task = Multilabel(list("abcd"), metrics=yaml_metrics("multilabel")).eval()
    fill(task, "val", outputs, targets)
    shares, truth = outputs.sigmoid().numpy(), targets.numpy().astype(int)
    guesses = (shares >= 0.5).astype(int)
    expected = {
        "f1": sk.f1_score(truth, guesses, average="macro"),
        "accuracy": (truth == guesses).mean(),
        "average_precision": sk.average_precision_score(truth, shares, average="macro"),
        "auroc": sk.roc_auc_score(truth, shares, average="macro"),
        "mcc": sk.matthews_corrcoef(truth.ravel(), guesses.ravel()),
    }
    found = task.compute("val")
    assert {n: float(found[f"val/{n}"]) for n in expected} == pytest.approx(expected, rel=1e-4)
    assert task.monitor == "val/f1"
    assert set(task.names("train")) == {"train/loss", "train/f1", "train/accuracy", "train/mcc"}


def test_a_row_of_labels_joins_them():
    rows = Multilabel(["art", "sport"]).rows(
        torch.tensor([[9.0, 9.0], [-9.0, -9.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    )
    assert [(row["target"], row["prediction"]) for row in rows] == [("art", "art;sport"), ("art;sport", "")]


# Metrics by name


def test_one_line_is_a_metric_more():
    outputs, targets = data(4)
    task = classification(4, metrics=yaml_metrics("classification") | {"kappa": "MulticlassCohenKappa"}).eval()
    fill(task, "val", outputs, targets)
    assert float(task.compute("val")["val/kappa"]) == pytest.approx(
        sk.cohen_kappa_score(targets, outputs.argmax(dim=1)), rel=1e-4
    )
    assert task.direction("val/kappa") == "max"


def test_a_metric_takes_arguments_and_the_first_one_is_monitored():
    task = Classification(
        list("abc"), metrics={"second": {"name": "MulticlassAccuracy", "top_k": 1, "average": "macro"}}
    )
    assert task.metrics["val_"]["second"].average == "macro"
    assert task.monitor == "val/second"
    assert Classification(list("abc"), metrics={}).monitor == "val/loss"


@pytest.mark.parametrize(
    ("metric", "given", "advice"),
    [
        ("MulticlassAccuray", "'MulticlassAccuray'", "Did you mean 'MulticlassAccuracy'?"),
        ("{name:F1Scor}", "{'name': 'F1Scor'}", "Did you mean 'F1Score'?"),
        ("{average:macro}", "{'average': 'macro'}", "Choose one of: "),
        ("null", "None", "Choose one of: "),
        ("[F1Score]", "['F1Score']", "Did you mean 'F1Score'?"),
    ],
)
def test_an_unknown_metric_is_named_alone_with_what_was_meant(metric, given, advice):
    [problem] = config.validate(composed(f"+task.metrics.mine={metric}"))
    assert problem.startswith(f"task.metrics.mine must be a metric of torchmetrics; got {given}. {advice}")


def test_of_several_unknown_metrics_each_is_named():
    problems = config.validate(composed("+task.metrics.mine=Acuracy", "+task.metrics.other=F1Scor"))
    assert [problem.partition(" ")[0] for problem in problems] == ["task.metrics.mine", "task.metrics.other"]


@pytest.mark.parametrize(
    "metric", [{"name": "MulticlassAccuracy", "averag": "macro"}, "MulticlassFBetaScore", "F1Score"]
)
def test_a_metric_that_lacks_an_argument_is_named(metric):
    with pytest.raises(UserError, match=r"task\.metrics\.mine must fit \w+: .*(averag|beta|task)"):
        Classification(list("abc"), metrics={"mine": metric})


@pytest.mark.parametrize("task", sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")))
def test_every_metric_of_every_task_builds_and_has_a_direction(task):
    cfg = composed(f"task={task}")
    known = {"classes": ["a", "b"], "class_counts": [1, 1], "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    built = config.build(cfg.task, **config.fitting(cfg.task, known))
    assert [name.removeprefix("val/") for name in built.names("val")[1:]] == [
        n for n in cfg.task.metrics if n != "top5"
    ]
    assert all(built.direction(name) in ("min", "max") for name in built.names("val"))


def test_a_label_that_does_not_occur_counts_for_nothing():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    task = Multilabel(list("abc"), metrics=yaml_metrics("multilabel"))
    task.update("val", torch.tensor(0.0), targets * 8 - 4, targets)
    found = task.compute("val")
    assert all(float(found[f"val/{name}"]) == 1 for name in ("f1", "auroc", "average_precision"))


def test_balanced_labels_weigh_presence_as_much_as_absence():
    task = Multilabel(["often", "rare"], class_counts=[900, 10], samples=1000, class_weights="balanced").train()
    assert task.rarity.tolist() == pytest.approx([100 / 900, 99.0])
    outputs, targets = torch.zeros(1000, 2), torch.zeros(1000, 2)
    targets[:900, 0], targets[:10, 1] = 1, 1
    outputs.requires_grad_(True)
    task.loss(outputs, targets).backward()
    assert outputs.grad.sum(dim=0).abs().max() < 1e-5
