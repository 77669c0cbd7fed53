"""Nothing is computed twice of what stays frozen: batches come as its activations, wherever that gives the same."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from thaw.cache import Cache
from thaw.console import say
from thaw.data.datamodule import DataModule
from thaw.data.loaders import Split
from thaw.distributed import FSDP
from thaw.freezing.freezing import Freezing
from thaw.frozen_part import FrozenPart
from thaw.model.cut import NoCutError
from thaw.model.network import Network
from thaw.run.disk import megabytes
from thaw.run.run import Run

# Computing and keeping them costs about as much as an epoch, so that fewer epochs than these gain nothing.
FEWEST_EPOCHS = 3


class FeatureCache(L.Callback):
    """Lets batches come as activations of what is frozen, as long as it stays so.

    At the start of each stage it finds the layer groups from the stem on that are frozen. Where they are the whole body
    its features are kept, else the activations at the group boundary, if the network is provably a chain there. A stem
    alone is as quick as reading what it makes.

    Args:
        freezing: this callback must stand after it.
        track: see `FrozenPart.kept`.
    """

    def __init__(
        self, data: DataModule, freezing: Freezing, cache: Cache, run: Run, track: Callable[..., Iterable[Any]]
    ) -> None:
        self.data, self.freezing, self.cache, self.run, self.track = data, freezing, cache, run, track
        self._stage: object = None
        self._told: set[str] = set()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stage is self.freezing.states:
            return
        self._stage = self.freezing.states
        network = pl_module.network
        left = self._epochs_left(network, trainer.current_epoch, trainer.max_epochs)
        if self._in_full("train", [trainer.num_training_batches]) and left >= FEWEST_EPOCHS:
            last = trainer.current_epoch + left == trainer.max_epochs
            val = ["val"] if self._in_full("val", trainer.num_val_batches) else []
            self._offer(trainer, network, ["train", *val], again=not last)
        else:
            self._clear(network)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._evaluate(trainer, pl_module.network, "val", trainer.num_val_batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, pl_module.network, "test", trainer.num_test_batches)

    def _evaluate(self, trainer: L.Trainer, network: Network, split: Split, batches: Sequence[int]) -> None:
        """After the training, a body that has not trained is the same as in every other run."""
        whole = len(frozen_groups(network)) == len(network.groups) - 1
        self._offer(trainer, network, [split] if whole and self._in_full(split, batches) else [])

    def _in_full(self, split: Split, batches: Sequence[int | float]) -> bool:
        """Whether so many batches are all of a split, which `trainer.limit_…_batches` may have cut."""
        return split in self.data.splits and sum(batches) == len(self.data.batches(split))

    def _clear(self, network: Network) -> None:
        self.data.ready.clear()
        network.cut = None

    def _epochs_left(self, network: Network, epoch: int, epochs: int) -> int:
        """Epochs from this one on in which what is frozen now stays so."""
        groups, frozen = list(network.groups), set(frozen_groups(network))
        later = (self.freezing.trains(groups, number, epochs) for number in range(epoch, epochs))
        return len(list(itertools.takewhile(frozen.isdisjoint, later))) if frozen else 0

    def _offer(self, trainer: L.Trainer, network: Network, splits: Sequence[Split], again: bool = False) -> None:
        self._clear(network)
        groups = frozen_groups(network)
        if len(groups) < 2 or not self.cache.max_bytes or isinstance(trainer.strategy, FSDP):
            return
        precision = trainer.precision_plugin

        def on_device(batch: Any) -> Any:
            return trainer.strategy.batch_to_device(precision.convert_input(batch))

        for split in splits:
            stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING  # nothing is mixed into it
            try:
                began, said = time.monotonic(), f"features of {split} after {groups[-1]}"
                part = FrozenPart(network, groups, self.data, split, on_device, precision.forward_context)
                activations, reused = part.kept(self.cache, self.track, again)
            except NoCutError as reason:
                self._tell(f"{said}: computed in every epoch, because {reason}")
                continue
            finally:
                trainer.state.stage = stage
            size = megabytes(part.bytes)
            if activations is None:
                self._tell(
                    f"{said}: computed in every epoch, because {size} are more than cache.max_gb or the disk have"
                )
                continue
            self._tell(f"{said}: {'in the cache' if reused else f'{time.monotonic() - began:.1f} s'}, {size}")
            self.data.ready[split], network.cut = part.ready(activations), part.cut
            entry = {"epoch": trainer.current_epoch, "split": split, "after": groups[-1]}
            entry |= {"bytes": part.bytes, "reused": reused}
            self.run.update(features=[*self.run.record.get("features", []), entry])

    def _tell(self, text: str) -> None:
        if text not in self._told:
            say(f"[dim]{text}[/]")
        self._told.add(text)


def frozen_groups(network: Network) -> list[str]:
    """The body's layer groups before the first that trains or whose statistics follow the data."""
    moves = {id(p) for p in network.parameters() if p.requires_grad}
    for module in network.modules():
        if module.training and list(module.buffers(recurse=False)):
            moves |= {id(parameter) for parameter in module.parameters(recurse=False)}
    body = [(name, parameters) for name, parameters in network.groups.items() if name != "head"]
    return [name for name, _ in itertools.takewhile(lambda pair: moves.isdisjoint(map(id, pair[1].values())), body)]
