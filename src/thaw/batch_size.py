"""`data.batch_size=auto`: the largest batch that fits on a GPU, on a CPU the fastest, found with real steps."""

import copy
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from thaw.console import say
from thaw.data.datamodule import DataModule
from thaw.data.sampler import EpochBatches
from thaw.defaults import MOST_EPOCHS, SMALLEST_BATCH, STEPS_AN_EPOCH
from thaw.distributed import world
from thaw.errors import UserError
from thaw.freezing.freezing import Freezing
from thaw.memory import is_short
from thaw.module import FineTuner
from thaw.trainer import Trainer

STEPS = 3  # timed, after one that warms up
# Share of a GPU's memory that the steps may take: other batches, and the allocator's gaps, need some more.
MARGIN = 0.9
# Of the best samples/s a smaller batch has to reach so much to be preferred: it takes more steps an epoch.
ENOUGH = 0.95


def conflicts(data: DataModule, trainer: Trainer) -> list[str]:
    """What keeps batches from having the size that is asked for, in words."""
    if data.auto_batch_size:
        if data.max_tokens:
            return ["data.batch_size must not be auto with data.max_tokens, which bounds a batch. Leave it out."]
        if not isinstance(data.batches("train"), EpochBatches):
            return ["data.batch_size must be a number with data.streaming, where the longest samples are not known."]
        if (target := trainer.target_batch_size) and target % world(trainer).size:
            return [f"trainer.target_batch_size must be a multiple of {world(trainer).size} processes; got {target}."]
        return []
    try:
        trainer.fill_target(data)
    except UserError as error:
        return list(error.problems)
    return []


def find(module: FineTuner, freezing: Freezing, data: DataModule, make_trainer: Callable[..., Trainer]) -> int:
    """Try training steps of the longest samples, where all trains that ever does, on copies.

    On a GPU the batch doubles until its memory is spent; on a CPU until the samples/s no longer rise. It stays so small
    that an epoch has fifteen steps, and with a `target_batch_size` it is a part of that.

    Args:
        make_trainer: builds the run's trainer for one process, without a trace on disk or screen.

    Raises:
        UserError: not even one sample fits into the memory.
    """
    target = make_trainer().target_batch_size
    tried: dict[int, float] = {}  # batch size → samples/s
    samples = len(data.splits["train"]) // data.ranks
    most = min(max(samples // STEPS_AN_EPOCH, SMALLEST_BATCH), samples)
    sizes = candidates(most, target and target // data.ranks)

    def rate(size: int) -> float:
        tried[size] = size / step_seconds(module, freezing, data, make_trainer, size)
        return tried[size]

    def fits(size: int) -> bool:
        try:
            rate(size)
            return _share_of_memory() <= MARGIN
        except Exception as error:
            if not is_short(error):
                raise
            return False
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    with isolate_rng():
        on_cpu = make_trainer().strategy.root_device.type == "cpu"
        found = fastest(sizes, rate) if on_cpu else largest(sizes, fits)
    told = ", ".join(f"{size}: {value:,.0f}" for size, value in sorted(tried.items()))
    say(f"data.batch_size=auto: {found}, {'the fastest' if on_cpu else 'the largest that fits'} ({told} samples/s)")
    return found


def candidates(most: int, target: int | None = None) -> list[int]:
    """Ascending batch sizes to try: powers of two, or the divisors of a target."""
    if target:
        return [size for size in range(1, min(most, target) + 1) if target % size == 0]
    return [2**power for power in range(most.bit_length())]


def fastest(sizes: Sequence[int], rate: Callable[[int], float]) -> int:
    """The smallest within a few percent of the best samples/s; tried until two in a row are no faster than before."""
    rates: dict[int, float] = {}
    for size in sizes[_begin(sizes) :]:
        rates[size] = rate(size)
        values = list(rates.values())
        if len(values) > 2 and max(values[-2:]) * ENOUGH < max(values[:-2]):
            break
    return next(size for size, value in rates.items() if value >= ENOUGH * max(rates.values()))


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The last that fits, upwards from a usual size, or else downwards.

    Raises:
        UserError: none does.
    """
    begin, found = _begin(sizes), None
    for size in sizes[begin:]:
        if not fits(size):
            break
        found = size
    smaller = (size for size in reversed(sizes[:begin]) if fits(size))
    found = found or next(smaller, None)
    if found is None:
        raise UserError(
            "data.batch_size=auto must fit at least one sample into the memory; none fits. "
            "Write e.g. model.gradient_checkpointing=true or freezing=linear_probe."
        )
    return found


def _begin(sizes: Sequence[int]) -> int:
    return max(index for index, size in enumerate(sizes) if size <= max(SMALLEST_BATCH, sizes[0]))


def step_seconds(
    module: FineTuner, freezing: Freezing, data: DataModule, make_trainer: Callable[..., Trainer], size: int
) -> float:
    """Seconds of the fastest of a few training steps with the longest `size` samples; all is done to copies."""
    loader, lengths = data.train_dataloader(), data.lengths("train")
    order = np.arange(len(data.splits["train"])) if lengths is None else np.argsort(-lengths, kind="stable")
    batch = loader.collate_fn([loader.dataset[(0, int(index))] for index in order[:size]])
    trial = copy.copy(data)
    trial.train_dataloader = lambda: DataLoader([batch] * (1 + STEPS), batch_size=None, collate_fn=_as_it_is)
    clock = _Clock(copy.deepcopy(freezing))
    # Compiling would take longer than it could tell.
    plain = {"compile": False, "target_batch_size": None, "accumulate_grad_batches": 1}
    whole = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 1.0, "limit_val_batches": 0}
    make_trainer(callbacks=[clock], **plain, **whole).try_out(copy.deepcopy(module), trial)
    return min(clock.seconds[1:])


class _Clock(L.Callback):
    def __init__(self, freezing: Freezing) -> None:
        self.freezing, self.seconds = freezing, []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.freezing.on_train_start(trainer, pl_module)  # some find out only now what trains
        train_all(pl_module, self.freezing)

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = _now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(_now() - self._began)


def train_all(module: FineTuner, freezing: Freezing) -> None:
    """Let train at once what the strategy ever trains in a long run."""
    network, groups = module.network, list(module.network.groups)
    stages = freezing.stages(groups, MOST_EPOCHS - 1, MOST_EPOCHS)
    ever = {group for stage in stages for group in stage.groups} | {*freezing.last(groups, MOST_EPOCHS)}
    network.train_groups(ever, freezing.batch_norm)
    network.train()


def _as_it_is(batch: Any) -> Any:
    return batch


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _share_of_memory() -> float:
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties().total_memory
