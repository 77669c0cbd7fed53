"""The rules by which a configuration is recommended: few, each with its reason and where that comes from.

They read `Evidence`, which is of training and validation; no figure of a test split has made one of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thaw.defaults import default_batch_size, default_epochs
from thaw.recommend.evidence import Evidence

FEW = 1_000  # labels
NEAR = 0.5  # similarity to the pretraining from which on features are worth keeping
LARGE = 50_000_000  # parameters
STEPS, FEWEST_EPOCHS = 600, 5
MANY_CLASSES, SHOTS = 20, 20


@dataclass(frozen=True)
class Rule:
    """One line of advice.

    Args:
        setting: as an override has it.
        holds: whether the rule applies; the first that does gives the setting.
        value: of the setting.
        reason: in words, which may name fields of the evidence.
        source: where it comes from.
    """

    setting: str
    holds: Callable[[Evidence], bool]
    value: Callable[[Evidence], Any]
    reason: str
    source: str


def epochs(evidence: Evidence) -> int:
    """As many as make 600 steps, at least 5 and at most the default, which makes 300 of few labels."""
    steps = math.ceil(evidence.size / default_batch_size(evidence.size))
    return max(FEWEST_EPOCHS, min(math.ceil(STEPS / steps), default_epochs(steps)))


RULES: Sequence[Rule] = (
    Rule(
        "freezing",
        lambda e: not e.pretrained,
        lambda e: "none",
        "the weights are random: all of them have to be learnt",
        "nothing pretrained is there to keep",
    ),
    Rule(
        "freezing",
        lambda e: e.parameters > LARGE,
        lambda e: "lora",
        "{parameters:,} parameters: adapters come near to full fine-tuning, at about a quarter of its training state",
        "arXiv:2106.09685; how near: arXiv:2405.09673; state: README",
    ),
    Rule(
        "freezing",
        lambda e: e.size < FEW and e.similarity >= NEAR,
        lambda e: "probe_then_tune",
        "{size:,} labels and features that already tell the classes apart: a random head would first distort them",
        "arXiv:2202.10054",
    ),
    Rule(
        "freezing",
        lambda e: True,
        lambda e: "none",
        "{size:,} labels, {similarity}: tuning everything gains over frozen features",
        "arXiv:1805.08974, arXiv:1411.1792",
    ),
    Rule(
        "optimizer.lr",
        lambda e: e.pretrained and e.similarity < NEAR,
        lambda e: 3 * e.lr,
        "{similarity}: far from the pretraining, so the body has to move; three times the model's own",
        "arXiv:2002.11770",
    ),
    Rule(
        "optimizer.lr",
        lambda e: True,
        lambda e: e.lr,
        "{similarity}: the model's own rate",
        "arXiv:2002.11770",
    ),
    Rule(
        "optimizer.head_lr_scale",
        lambda e: e.pretrained and len(e.samples) >= MANY_CLASSES and e.size < SHOTS * len(e.samples),
        lambda e: 50,
        "{size:,} labels of {classes} classes: each row of the head sees few samples, and starts from nothing",
        "validation of banking77_10shot",
    ),
    Rule(
        "trainer.max_epochs",
        lambda e: True,
        epochs,
        "about 600 steps, 5 epochs at least; of few labels 300 steps, for a new head needs them",
        "arXiv:2006.05987, arXiv:2006.04884",
    ),
    Rule(
        "data.batch_size",
        lambda e: True,
        lambda e: default_batch_size(e.size),
        "15 steps an epoch or more, and 32 samples at most",
        "arXiv:1804.07612",
    ),
)


@dataclass(frozen=True)
class Choice:
    """What a rule has chosen, and why."""

    setting: str
    value: Any
    reason: str
    source: str

    @property
    def override(self) -> str:
        return f"{self.setting}={self.value:.3g}" if isinstance(self.value, float) else f"{self.setting}={self.value}"


def choose(evidence: Evidence, rules: Sequence[Rule] = RULES) -> list[Choice]:
    """For each setting the first rule that holds."""
    chosen: dict[str, Choice] = {}
    similarity = "similarity not known" if evidence.untrained is None else f"similarity {evidence.similarity:.2f}"
    known: Mapping[str, Any] = vars(evidence) | {
        "size": evidence.size, "similarity": similarity, "classes": len(evidence.samples),
    }  # fmt: skip
    for rule in rules:
        if rule.setting not in chosen and rule.holds(evidence):
            reason = rule.reason.format_map(known)
            chosen[rule.setting] = Choice(rule.setting, rule.value(evidence), reason, rule.source)
    return list(chosen.values())


def best(candidates: Sequence[Evidence]) -> Evidence:
    """The candidate whose probe is best on validation; of those within its noise, the smallest."""
    top = max(candidates, key=lambda evidence: evidence.probe)
    equal = [evidence for evidence in candidates if evidence.probe >= top.probe - top.noise / 2]
    return min(equal, key=lambda evidence: evidence.parameters)
