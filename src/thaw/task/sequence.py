"""An answer for each step of a sequence: tags of words, the next token, letters of speech."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from thaw.task.metrics import Metrics, build_metrics
from thaw.task.task import Task

IGNORED = -100  # torch's index for targets that count for nothing
TAGS = {"accuracy": {"name": "MulticlassAccuracy", "average": "micro"}, "f1": "MulticlassF1Score"}
BLANK = 0  # the output that means no letter, in CTC

Steps = tuple[Tensor, Tensor]  # values (batch, steps, num_outputs), lengths (batch,)


class TokenClassification(Task):
    """One tag for each word: cross-entropy over the first token of each.

    Args:
        metrics: see `build_metrics`; they read probabilities (words, tags).
    """

    target = "tags"
    network_options: ClassVar = {"per_step": True}

    def __init__(self, classes: Sequence[str], metrics: Metrics = TAGS) -> None:
        super().__init__(classes, build_metrics(metrics, num_classes=len(classes)), len(classes))
        self.assert_measurable(*_example(len(classes), len(classes)))

    def loss(self, outputs: Steps, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0].flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def count(self, targets: Tensor) -> Tensor:
        return (targets != IGNORED).sum()

    def measured(self, outputs: Steps, targets: Tensor) -> tuple[Tensor, Tensor]:
        counts = targets != IGNORED
        return outputs[0][counts].float().softmax(dim=-1), targets[counts]

    def truths(self, targets: Tensor) -> list[dict[str, Any]]:
        return [{"target": self._joined(truth[truth != IGNORED])} for truth in targets]

    def answers(self, outputs: Steps, targets: Tensor) -> list[dict[str, Any]]:
        pairs = zip(outputs[0].argmax(dim=-1), targets, strict=True)
        return [{"prediction": self._joined(guess[truth != IGNORED])} for guess, truth in pairs]

    def read_back(self, rows: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        """Of the probabilities a row tells only which is the largest."""
        index = {name: number for number, name in enumerate(self.classes)}

        def tags(row: dict[str, Any], column: str) -> Tensor:
            return torch.tensor([index[tag] for tag in row[column].split()], dtype=torch.long)

        return [(F.one_hot(tags(row, "prediction"), len(index)).float(), tags(row, "target")) for row in rows]

    def _joined(self, tags: Tensor) -> str:
        return " ".join(self.classes[tag] for tag in tags.tolist())


class LanguageModeling(Task):
    """The next token, from those before it: cross-entropy under the network's own head.

    Args:
        metrics: see `build_metrics`; they read logits (batch, steps, vocabulary) and targets (batch, steps).
    """

    target = "text"
    network_options: ClassVar = {"head": "pretrained"}

    def __init__(self, metrics: Metrics | None = None) -> None:
        chosen = metrics or {"perplexity": {"name": "Perplexity", "ignore_index": IGNORED}}
        super().__init__([], build_metrics(chosen))
        self.assert_measurable(*_example(8, 8))

    def loss(self, outputs: Steps, targets: Tensor) -> Tensor:
        logits, following = self.measured(outputs, targets)
        return F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED)

    def count(self, targets: Tensor) -> Tensor:
        return (targets[:, 1:] != IGNORED).sum()

    def measured(self, outputs: Steps, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs[0][:, :-1], targets[:, 1:]


class SpeechRecognition(Task):
    """What was said, letter by letter: CTC with greedy decoding (Graves et al., 2006).

    Args:
        classes: the letters; output 0 of the network is the blank, output n the letter n - 1.
        metrics: see `build_metrics`; they read lists of transcripts.
    """

    target = "transcript"
    network_options: ClassVar = {"per_step": True}

    def __init__(self, classes: Sequence[str], metrics: Metrics | None = None) -> None:
        chosen = metrics or {"cer": "CharErrorRate", "wer": "WordErrorRate"}
        # Decoding every step of the training would make the device wait.
        super().__init__(classes, build_metrics(chosen), len(classes) + 1, train_metrics=False)
        self.assert_measurable(*_example(len(classes) + 1, len(classes)))

    def loss(self, outputs: Steps, targets: Tensor) -> Tensor:
        values, lengths = outputs
        chances = values.float().log_softmax(dim=-1).transpose(0, 1)
        letters = (targets != IGNORED).sum(dim=-1)
        padded = (targets + 1).clamp(min=0)
        # A clip too short for its transcript has an infinite loss, which says nothing about the others.
        return F.ctc_loss(chances, padded, lengths.cpu(), letters.cpu(), blank=BLANK, zero_infinity=True)

    def decode(self, outputs: Steps) -> list[str]:
        """The most likely letter of each frame, with repeats and blanks taken out."""
        guesses = outputs[0].argmax(dim=-1).tolist()
        lengths = outputs[1].tolist()
        return [
            "".join(self.classes[letter - 1] for letter, _ in groupby(frames[:length]) if letter != BLANK).strip()
            for frames, length in zip(guesses, lengths, strict=True)
        ]

    def transcripts(self, targets: Tensor) -> list[str]:
        """The letters of each sample (batch, letters) as text."""
        return ["".join(self.classes[letter] for letter in row[row != IGNORED].tolist()) for row in targets]

    def measured(self, outputs: Steps, targets: Tensor) -> tuple[list[str], list[str]]:
        return self.decode(outputs), self.transcripts(targets)

    def truths(self, targets: Tensor) -> list[dict[str, Any]]:
        return [{"target": said} for said in self.transcripts(targets)]

    def answers(self, outputs: Steps, targets: Tensor) -> list[dict[str, Any]]:
        return [{"prediction": heard} for heard in self.decode(outputs)]

    def read_back(self, rows: Sequence[dict[str, Any]]) -> list[tuple[list[str], list[str]]]:
        return [([row["prediction"]], [row["target"]]) for row in rows]


def _example(num_outputs: int, classes: int) -> tuple[Steps, Tensor]:
    """Four samples of six steps."""
    values = torch.zeros(4, 6, num_outputs)
    return (values, torch.full((4,), 6)), torch.arange(24).reshape(4, 6) % classes
