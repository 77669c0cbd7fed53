"""What the rungs try things on: copies of the run's own parts, a small batch, and the body's features."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch

from thaw import config, distributed
from thaw.build import fine_tuner, settle
from thaw.cache import Cache, default_folder
from thaw.data.datamodule import DataModule
from thaw.data.sampler import EpochBatches
from thaw.freezing.freezing import Freezing
from thaw.model.cut import NoCutError
from thaw.model.network import Network
from thaw.module import Batch, FineTuner
from thaw.plan.plan import trainer_for
from thaw.probing.features import Features, body_features, refusal, unaugmented


class Bench:
    """A run that never begins.

    Args:
        module, freezing: as a run would begin with them; they are left as they are.
        make_trainer: see `thaw.plan.plan.trainer_for`.
        epochs: that the run would have.
        cache: keeps the features.
    """

    def __init__(
        self,
        module: FineTuner,
        freezing: Freezing,
        data: DataModule,
        make_trainer: Callable[..., L.Trainer],
        epochs: int,
        cache: Cache,
    ) -> None:
        self.module, self.freezing, self.data, self.make_trainer = module, freezing, data, make_trainer
        self.network, self.epochs, self.cache = module.network, epochs, cache
        self.tell: Callable[[str], None] = lambda text: None  # how far it is, for the screen
        self.plain = unaugmented(data)
        trainer = make_trainer()
        self.device, self._to_device = trainer.strategy.root_device, trainer.strategy.batch_to_device
        self.context = trainer.precision_plugin.forward_context
        self._features: dict[str, Features] = {}

    @classmethod
    def of(cls, cfg: Any) -> "Bench":
        """Build the parts of a run from a configuration, through all checks of a run.

        Raises:
            UserError: what a run would say.
        """
        data, task, trainer = config.preflight(cfg)
        processes = data.ranks = distributed.world(trainer).size
        module, freezing = fine_tuner(cfg, data, task, cfg.monitor or task.monitor)
        precision, epochs = settle(cfg, module, freezing, data, trainer)
        make_trainer = trainer_for(config.builder(cfg.trainer), precision, epochs, processes)
        cache = Cache(Path(cfg.cache.dir or default_folder()), int(cfg.cache.max_gb * 1e9))
        return cls(module, freezing, data, make_trainer, epochs, cache)

    def with_network(self, network: Network) -> "Bench":
        """The same with the features of another network."""
        other = copy.copy(self)
        other.network, other._features = network, {}
        return other

    def copies(self) -> tuple[FineTuner, Freezing]:
        """The module, where it is to compute, and its strategy."""
        module, freezing = copy.deepcopy((self.module, self.freezing))
        return module.to(self.device), freezing

    def on_device(self, batch: Any) -> Any:
        return self.plain.on_after_batch_transfer(self._to_device(batch), 0)

    def batch(self, size: int) -> Batch:
        """The first training samples that a run reads, `size` at most, without augmentation."""
        batches = self.data.batches("train")
        if not isinstance(batches, EpochBatches):  # a stream
            inputs, targets = next(iter(batches))
            few = {name: value[:size] for name, value in inputs.items()}
            return self._to_device((few, targets[:size]))
        order = [index for batch in batches.batches(0) for index in batch]
        return self.on_device(self.plain.batch("train", [(0, index) for index in order[:size]]))

    @cached_property
    def refusal(self) -> str:
        """Why there are no features to probe, in words; empty where there are."""
        if reason := refusal(self.data):
            return reason
        try:
            self.features("train")
        except NoCutError as error:
            return str(error)
        return ""

    def features(self, split: str) -> Features:
        """Of the body as the run begins with it.

        Raises:
            NoCutError: see `refusal`.
        """
        if split not in self._features:
            network = copy.deepcopy(self.network).to(self.device)
            found = body_features(network, self.plain, split, self.cache, self._track, self.on_device, self.context)
            self._features[split] = found
        return self._features[split]

    def _track(self, items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            self.tell(f"{description}, {number} of {total}")
            yield item

    @property
    def majority(self) -> float:
        """Share of validation that is of the class most frequent in training."""
        train, val = (self.data.splits[split].targets for split in ("train", "val"))
        counts = torch.bincount(torch.as_tensor(train), minlength=len(self.data.classes))
        return float((torch.as_tensor(val) == counts.argmax()).double().mean())
