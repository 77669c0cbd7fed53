"""Surgical fine-tuning: the few layer groups that the new data asks to change (arXiv:2210.11466)."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import lightning as L
import torch
from pydantic import Field

from thaw.freezing.freezing import Freezing, select
from thaw.model.network import Network

SHOWN = 3  # groups of which the decision tells the gradient


class Surgical(Freezing):
    """The head and some layer groups train from the first step: named ones, or those with the largest gradients.

    Args:
        groups: names or patterns; or `auto`, the `count` groups whose gradient is largest relative to their weights,
            measured before the first step.
        batches: training batches that `auto` looks at.
    """

    def __init__(
        self,
        groups: Literal["auto"] | list[str] = "auto",
        count: Annotated[int, Field(ge=1)] = 1,
        batches: Annotated[int, Field(ge=1)] = 4,
        **freezing: Any,
    ) -> None:
        super().__init__(**freezing)
        self.groups, self.count, self.batches = groups, count, batches
        self.relative_norms: dict[str, float] = {}

    def prepare(self, network: Network) -> None:
        if self.groups != "auto":
            select(list(network.groups), self.groups, "freezing.groups")

    def trains(self, groups: Sequence[str], epoch: int, epochs: int) -> Sequence[str]:
        if self.groups == "auto":
            largest = sorted(self.relative_norms, key=self.relative_norms.get, reverse=True)[: self.count]
        else:
            largest = select(groups, self.groups, "freezing.groups")
        return [group for group in groups if group in largest or group == groups[-1]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.groups == "auto" and not self.relative_norms:
            measured = relative_gradient_norms(trainer, pl_module, self.batches)
            self.relative_norms = trainer.strategy.broadcast(measured)  # each rank has seen samples of its own

    def decision(self) -> str | None:
        if not self.relative_norms:
            return None
        largest = sorted(self.relative_norms, key=self.relative_norms.get, reverse=True)
        found = ", ".join(f"{group} {self.relative_norms[group]:.2g}" for group in largest[: max(SHOWN, self.count)])
        more = ", …" * (len(largest) > max(SHOWN, self.count))
        return f"surgical: {found}{more} → {', '.join(largest[: self.count])}"

    def state_dict(self) -> dict[str, Any]:
        return {"relative_norms": dict(self.relative_norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.relative_norms = dict(state["relative_norms"])


def relative_gradient_norms(trainer: L.Trainer, module: L.LightningModule, batches: int) -> dict[str, float]:
    """Layer group of the body → mean over batches of |gradient| / |weights|, in eval mode.

    Nothing of the run is touched: no gradient is kept, no statistic moves, no random number is drawn.
    """
    network = module.network
    chosen = {group: list(ps.values()) for group, ps in network.groups.items() if group != "head"}
    found = torch.zeros(len(chosen), dtype=torch.float64)
    loader = trainer.datamodule.train_dataloader()
    seen, state = 0, torch.get_rng_state()
    network.train_groups(network.groups)
    network.train(False)
    for batch in islice(loader, batches):
        inputs, targets = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        # Not compiled: of a network that all trains, a few batches would not be worth it.
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            loss = module.task.loss(network(inputs), targets)
        for number, parameters in enumerate(chosen.values()):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            pairs = [(g, p) for g, p in zip(gradients, parameters, strict=True) if g is not None]
            size = torch.stack([p.detach().float().norm() for _, p in pairs]).norm()
            found[number] += float(torch.stack([g.float().norm() for g, _ in pairs]).norm() / size) if pairs else 0.0
        seen += 1
    torch.set_rng_state(state)
    return dict(zip(chosen, (found / seen).tolist(), strict=True))
