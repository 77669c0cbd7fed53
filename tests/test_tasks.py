"""Numbers, tags, next tokens and transcripts: loss, metrics and rows, against torch, scikit-learn and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as sk
from test_task import yaml_metrics
from torch import Tensor
from torch.nn import functional as F

from thaw.task.regression import Regression
from thaw.task.sequence import IGNORED, LanguageModeling, SpeechRecognition, TokenClassification


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(task: Any, outputs: Any, targets: Tensor, split: str = "val", parts: int = 3) -> dict[str, float]:
    """The metrics of a split whose samples come in several batches."""
    for index in torch.arange(len(targets)).chunk(parts):
        some = outputs[index] if isinstance(outputs, Tensor) else tuple(part[index] for part in outputs)
        task.update(split, task.loss(some, targets[index]), some, targets[index])
    return {name.partition("/")[2]: float(value) for name, value in task.compute(split).items()}


# Regression


@pytest.mark.parametrize("names", [["price"], ["height", "weight"]])
@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_numbers_are_learned_in_standard_deviations_and_told_in_their_own_unit(names, loss):
    count = len(names)
    mean, std = [300.0, -2.0][:count], [50.0, 0.1][:count]
    task = Regression(names, mean, std, loss, yaml_metrics("regression"))
    units = torch.randn(40, count, generator=generator())
    truth = units * torch.tensor(std) + torch.tensor(mean)
    outputs = units + 0.5 * torch.randn(40, count, generator=generator(1))
    expected = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}[loss](outputs, units)
    assert float(task.loss(outputs, truth)) == pytest.approx(float(expected), rel=1e-3)
    assert torch.allclose(task.predict(units), truth, rtol=1e-5, atol=1e-5)

    found = measured(task, outputs, truth)
    guess, real = task.predict(outputs).numpy(), truth.numpy()
    columns = range(count)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(real, guess), rel=1e-4)
    assert found["rmse"] == pytest.approx(
        np.mean([(np.square(real - guess)[:, i].mean()) ** 0.5 for i in columns]), rel=1e-4
    )
    assert found["r2"] == pytest.approx(sk.r2_score(real, guess), rel=1e-3)
    ranks = [spearmanr(real[:, i], guess[:, i]).statistic for i in columns]
    assert found["spearman"] == pytest.approx(np.mean(ranks), rel=1e-3)


def test_a_row_of_numbers_is_in_their_own_unit():
    rows = Regression(["a", "b"], [10.0, 0.0], [2.0, 1.0]).rows(torch.tensor([[1.0, 3.0]]), torch.tensor([[11.0, 4.0]]))
    assert rows == [{"target/a": 11.0, "target/b": 4.0, "prediction/a": 12.0, "prediction/b": 3.0}]


def test_what_a_number_is_measured_in_travels_with_the_weights():
    """A checkpoint that forgot mean and standard deviation could not tell a price."""
    other = Regression(["price"])
    other.load_state_dict(Regression(["price"], [300.0], [50.0]).state_dict())
    assert other.predict(torch.tensor([[1.0]])).tolist() == [[350.0]]


def test_a_small_error_of_numbers_is_the_better_one():
    task = Regression(["price"], metrics=yaml_metrics("regression"))
    assert task.monitor == "val/mae"
    assert {n: task.direction(f"val/{n}") for n in ("loss", "mae", "rmse", "r2", "spearman")} == {
        "loss": "min", "mae": "min", "rmse": "min", "r2": "max", "spearman": "max"
    }  # fmt: skip
    assert "train/spearman" not in task.names("train")  # it would keep every prediction


# Tags


def tag_data() -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Three tags over up to nine tokens, of which some begin no word."""
    targets = torch.randint(0, 3, (30, 9), generator=generator())
    targets[torch.rand(30, 9, generator=generator(1)) < 0.4] = IGNORED
    targets[:, 0] = IGNORED
    values = torch.randn(30, 9, 3, generator=generator(2)) + F.one_hot(targets.clamp(min=0), 3)
    return (values, torch.full((30,), 9)), targets


def test_tags_are_measured_over_the_first_token_of_each_word():
    outputs, targets = tag_data()
    task = TokenClassification(["O", "PER", "LOC"], yaml_metrics("token_classification")).eval()
    counts = targets != IGNORED
    expected = F.cross_entropy(outputs[0][counts], targets[counts])
    assert float(task.loss(outputs, targets)) == pytest.approx(float(expected), rel=1e-5)
    found = measured(task, outputs, targets)
    truth, guess = targets[counts].numpy(), outputs[0][counts].argmax(dim=-1).numpy()
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess), rel=1e-4)
    assert found["f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"), rel=1e-4)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(truth, guess), rel=1e-4)
    assert task.monitor == "val/f1"
    assert task.network_arguments == {"num_outputs": 3, "per_step": True}


def test_what_stands_on_other_tokens_changes_no_figure_of_tags():
    (values, lengths), targets = tag_data()
    task = TokenClassification(["O", "PER", "LOC"])
    other = values.masked_fill((targets == IGNORED)[:, :, None], 77.0)
    assert measured(task, (values, lengths), targets) == measured(task, (other, lengths), targets)


def test_a_row_of_tags_has_one_for_each_word():
    task = TokenClassification(["LOC", "O"])
    values = F.one_hot(torch.tensor([[0, 1, 1, 0, 0]]), 2).float()
    targets = torch.tensor([[IGNORED, 1, IGNORED, 0, 1]])
    assert task.rows((values, torch.tensor([5])), targets) == [{"target": "O LOC O", "prediction": "O LOC LOC"}]


# The next token


def text_data() -> tuple[tuple[Tensor, Tensor], Tensor]:
    targets = torch.randint(0, 11, (8, 12), generator=generator())
    lengths = torch.tensor([12, 12, 9, 5, 12, 2, 7, 12])
    targets[torch.arange(12) >= lengths[:, None]] = IGNORED
    return (torch.randn(8, 12, 11, generator=generator(1)), lengths), targets


def test_each_token_is_foretold_from_those_before_it():
    outputs, targets = text_data()
    logs = outputs[0].double().log_softmax(dim=-1)
    each = [
        -float(logs[row, step, targets[row, step + 1]])
        for row in range(8)
        for step in range(11)
        if targets[row, step + 1] != IGNORED
    ]
    task = LanguageModeling(yaml_metrics("language_modeling")).eval()
    assert float(task.loss(outputs, targets)) == pytest.approx(np.mean(each), rel=1e-5)
    found = measured(task, outputs, targets)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(each)), rel=1e-4)
    assert task.monitor == "val/perplexity"
    assert task.direction("val/perplexity") == "min"
    assert task.rows(outputs, targets) == []
    assert task.network_arguments == {"num_outputs": None, "head": "pretrained"}


def test_a_network_that_sees_the_next_token_would_be_found_out():
    targets = torch.arange(10)[None]
    copying = F.one_hot(targets, 10).float() * 50  # at each step the token of that step
    knowing = F.one_hot(targets.roll(-1, dims=1), 10).float() * 50
    task, lengths = LanguageModeling(), torch.tensor([10])
    assert float(task.loss((copying, lengths), targets)) > 10
    assert float(task.loss((knowing, lengths), targets)) < 1e-6


# Transcripts

LETTERS = [" ", "a", "b", "c"]


def frames(text: str) -> Tensor:
    """Outputs (1, frames, 5) that say, with `-` for the blank, one letter a frame."""
    return F.one_hot(torch.tensor([[0 if letter == "-" else LETTERS.index(letter) + 1 for letter in text]]), 5).float()


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("aabbcc", "abc"),
        ("a-a", "aa"),
        ("--a--b-", "ab"),
        ("aa-aab", "aab"),
        ("-----", ""),
        (" ab ", "ab"),
        ("a  b", "a b"),
        ("c" * 30, "c"),
    ],
)
def test_decoding_takes_out_repeats_and_then_blanks(said, heard):
    task = SpeechRecognition(LETTERS)
    assert task.decode((frames(said), torch.tensor([len(said)]))) == [heard]


def test_decoding_stops_where_the_sound_does():
    task = SpeechRecognition(LETTERS)
    assert task.decode((frames("abccc").expand(3, -1, -1), torch.tensor([5, 2, 1]))) == ["abc", "ab", "a"]


def speech_data() -> tuple[tuple[Tensor, Tensor], Tensor, list[list[int]]]:
    texts = [[1, 2, 3], [2], [3, 3, 1, 0, 1], [1, 2]]
    targets = torch.full((4, 5), IGNORED)
    for row, text in enumerate(texts):
        targets[row, : len(text)] = torch.tensor(text)
    return (torch.randn(4, 20, 5, generator=generator()), torch.tensor([20, 7, 20, 12])), targets, texts


def test_loss_of_a_batch_is_that_of_each_recording_without_its_padding():
    outputs, targets, texts = speech_data()
    each = []
    for row, text in enumerate(texts):
        length = int(outputs[1][row])
        logs = outputs[0][row, :length].log_softmax(dim=-1)[:, None]
        letters = torch.tensor([text]) + 1
        one = F.ctc_loss(logs, letters, torch.tensor([length]), torch.tensor([len(text)]), blank=0, reduction="sum")
        each.append(float(one) / len(text))
    assert float(SpeechRecognition(LETTERS).loss(outputs, targets)) == pytest.approx(np.mean(each), rel=1e-5)


def test_what_is_padded_changes_neither_loss_nor_transcript():
    (values, lengths), targets, _ = speech_data()
    task = SpeechRecognition(LETTERS)
    other = values.clone()
    other[torch.arange(20) >= lengths[:, None]] = 9.0
    assert torch.equal(task.loss((values, lengths), targets), task.loss((other, lengths), targets))
    assert task.rows((values, lengths), targets) == task.rows((other, lengths), targets)


def test_a_recording_too_short_for_its_transcript_does_not_spoil_the_batch():
    (values, lengths), targets, _ = speech_data()
    lengths[2] = 2
    loss = SpeechRecognition(LETTERS).loss((values.requires_grad_(), lengths), targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(values.grad).all()


def test_error_rates_count_letters_and_words():
    task = SpeechRecognition(LETTERS, yaml_metrics("speech_recognition")).eval()
    outputs = torch.cat([frames("a-b c-"), frames("aaaaaa")]), torch.tensor([6, 6])
    targets = torch.tensor([[1, 2, 0, 2], [1, IGNORED, IGNORED, IGNORED]])  # "ab b", "a"
    found = measured(task, outputs, targets, parts=2)
    assert found["cer"] == pytest.approx(1 / 5)
    assert found["wer"] == pytest.approx(1 / 3)
    assert task.rows(outputs, targets) == [
        {"target": "ab b", "prediction": "ab c"},
        {"target": "a", "prediction": "a"},
    ]
    assert task.monitor == "val/cer"
    assert task.direction("val/wer") == "min"
    assert task.names("train") == ["train/loss"]  # decoding every step would make the device wait
    assert task.network_arguments == {"num_outputs": 5, "per_step": True}


def test_the_loss_of_a_split_is_the_mean_over_its_tokens():
    task = TokenClassification(["a", "b"])
    losses = []
    for length, level in ((2, 0.0), (30, 4.0)):
        values = torch.tensor([level, 0.0]).expand(1, length, 2)
        targets = torch.zeros(1, length, dtype=torch.long)
        loss = task.loss((values, torch.tensor([length])), targets)
        losses.append((float(loss), length))
        task.update("val", loss, (values, torch.tensor([length])), targets)
    expected = sum(loss * length for loss, length in losses) / 32
    assert float(task.compute("val")["val/loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_single_sample_has_no_r2_and_is_no_reason_to_stop() -> None:
    task = Regression(["value"], metrics={"r2": "R2Score"})
    task.update("val", torch.tensor(0.0), torch.zeros(1, 1), torch.ones(1, 1))
    assert math.isnan(float(task.compute("val")["val/r2"]))
