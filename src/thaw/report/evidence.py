"""What a report is written from: everything a finished run knows of itself."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.distributed.tensor import DTensor

from thaw import config
from thaw.build import fine_tuner
from thaw.data.datamodule import DataModule
from thaw.departures import departures
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.report.answers import Answers
from thaw.run.run import Run
from thaw.task.task import Task

if TYPE_CHECKING:
    from thaw.report.intervals import Interval

Depth = Literal["none", "standard", "full"]


@dataclass(frozen=True)
class Evidence:
    """A run after its last evaluation. Sections read it and change nothing in it.

    Args:
        folder: the run's directory.
        record: its run.json.
        settings: its configuration as plain containers, without secrets.
        choices: group of the configuration → (chosen option, default option).
        departures: full key → (value, default) of the settings that differ from those of the chosen options.
        module: with the weights of the best epoch, on the CPU and in eval mode.
        data: with its transforms; `data.splits[split]` holds the samples.
        split: what was measured last: `test`, or `val` where that was not read.
        rows: index in `data.splits[split]` → the sample's row of predictions.csv, ascending; numbers are numbers.
        build: builds the network as the run began, from its configuration and seed alone.
        depth: `full` asks for the sections that take time.
    """

    folder: Path
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    choices: Mapping[str, tuple[str | None, str | None]]
    departures: Mapping[str, tuple[Any, Any]]
    module: FineTuner
    data: DataModule
    split: Literal["val", "test"]
    rows: Mapping[int, Mapping[str, Any]]
    build: Callable[[], Network]
    depth: Depth = "standard"

    @property
    def task(self) -> Task:
        return self.module.task

    @cached_property
    def start(self) -> Network:
        """The network as the run began, with its adapters where it has some: the same for a resumed run.

        Pretrained weights, and a new head from the seed. Built when it is first asked for, which takes as long as it
        took at the start of the run, and is kept.
        """
        return self.build().train(False)

    @cached_property
    def merged(self) -> tuple[Network, Network]:
        """(as the run began, as it ended) without adapters, whose updates are added to the weights beside them."""
        if not any("lora_" in name for name, _ in self.module.network.named_parameters()):
            return self.start, self.module.network
        from thaw.model.lora import merge_lora

        pair = copy.deepcopy(self.start), copy.deepcopy(self.module.network)
        for network in pair:
            merge_lora(network)
        return pair

    @cached_property
    def intervals(self) -> dict[str, "Interval"]:
        """Full name → bootstrap interval, of the metrics of the split."""
        from thaw.report.intervals import intervals

        return intervals(self.task, self.split, list(self.rows.values()), self.record["metrics"])

    @cached_property
    def answers(self) -> Answers:
        """What the network answers, sample by sample."""
        return Answers(self.task.target, self.task.classes, list(self.rows.values()))

    def names(self) -> list[str]:
        """What stands for each sample of the split in predictions.csv, by its index."""
        return list(self.data.names(self.data.splits[self.split]))


def gather(
    cfg: Any,
    run: Run,
    module: FineTuner,
    data: DataModule,
    split: Literal["val", "test"],
    rows: Mapping[int, Mapping[str, Any]],
    state: Mapping[str, Tensor],
) -> Evidence:
    """The evidence of a run whose last figures are those of `state`, the weights of the best epoch."""
    settings = cfg.copy()
    settings.regularization = None  # it may keep weights of its own, and nothing is trained

    def build() -> FineTuner:
        return fine_tuner(settings, data, module.task, module.monitor)[0]

    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        module = build()  # the other processes, which hold the rest of each parameter, do not wait for the report
    module.load_state_dict(state)
    return Evidence(
        run.folder,
        run.record,
        config.recorded(cfg),
        *departures(cfg),
        module.cpu().train(False),
        data,
        split,
        rows,
        lambda: build().network,
        cfg.report.depth,
    )
