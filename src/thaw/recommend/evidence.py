"""What is measured before anything is recommended, on training and validation alone."""

import math
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from thaw.ladder.bench import Bench
from thaw.model.network import Network
from thaw.probing.features import Features
from thaw.probing.linear_probe import probe
from thaw.probing.logme import logme
from thaw.probing.neighbours import nearest


@dataclass(frozen=True)
class Evidence:
    """A data set as the body of one model sees it. Accuracies are of validation, in [0, 1].

    Args:
        samples: of training, by class.
        val_samples: how many the accuracies are of.
        probe, neighbours, logme: of the pretrained features.
        untrained: the probe on features of the same architecture with random weights; None where there are none else.
        majority: of always telling the most frequent class.
        lr: the model's own.
    """

    model: str
    samples: tuple[int, ...]
    val_samples: int
    majority: float
    parameters: int
    lr: float
    pretrained: bool
    probe: float
    neighbours: float
    logme: float
    untrained: float | None

    @property
    def size(self) -> int:
        return sum(self.samples)

    @property
    def imbalance(self) -> float:
        """How many times as frequent the most frequent class is as the rarest."""
        return max(self.samples) / max(min(self.samples), 1)

    @property
    def similarity(self) -> float:
        """Share of what random features leave open that the pretrained ones solve: 0 is none of it, 1 is all.

        How near the task is to the pretraining, whatever its own difficulty; NaN where there are no random ones.
        """
        if self.untrained is None:
            return math.nan
        return (self.probe - self.untrained) / max(1 - self.untrained, 1 / self.val_samples)

    @property
    def noise(self) -> float:
        """Half the width of the probe's 95 % interval (Agresti and Coull, 1998)."""
        z = stats.norm.ppf(0.975)
        share = (self.probe * self.val_samples + z**2 / 2) / (self.val_samples + z**2)
        return z * math.sqrt(share * (1 - share) / (self.val_samples + z**2))


def measure(model: str, bench: Bench, untrained: Network | None) -> Evidence:
    """Run the body over training and validation, and probe what comes of it.

    Args:
        untrained: the same network with random weights.
    """
    network, data = bench.module.network, bench.data
    train, val = bench.features("train"), bench.features("val")
    bench.tell("probe, neighbours, LogME")
    found = {
        "probe": _accuracy(probe(train, val.values), val),
        "neighbours": _accuracy(nearest(train, val.values), val),
        "logme": logme(train.values, train.classes),
    }
    random = None
    if network.pretrained and untrained is not None:
        other = bench.with_network(untrained)
        random_train, random_val = other.features("train"), other.features("val")
        bench.tell("probe on random features")
        random = _accuracy(probe(random_train, random_val.values), random_val)
    return Evidence(
        model=model,
        samples=tuple(data.targets.counts(data.splits["train"].targets)),
        val_samples=len(val),
        majority=bench.majority,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        lr=network.lr,
        pretrained=network.pretrained,
        untrained=random,
        **found,
    )


def _accuracy(guesses: Tensor, val: Features) -> float:
    return float((guesses == val.classes).double().mean())
