"""LoRA as a freezing strategy: the body keeps its weights, and learns beside them (arXiv:2106.09685)."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import lightning as L
from pydantic import AfterValidator, Field

from thaw.errors import UserError
from thaw.freezing.by_kind import PartOnly
from thaw.model.network import Network


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})", "Write e.g. 'query|value'.") from None
    return pattern


class Lora(PartOnly):
    """Low-rank adapters and the head train.

    Args:
        rank: of each adapter's update of a weight.
        alpha: the update is scaled by alpha / rank, or with `rslora` by alpha / √rank (arXiv:2312.03732).
        dropout: share of an adapter's inputs dropped in training.
        dora: whether magnitude and direction are learnt apart (arXiv:2402.09353).
        layers: a regular expression for the names of the layers that get an adapter; None takes all linear and
            convolution layers of the blocks.
    """

    def __init__(
        self,
        rank: Annotated[int, Field(ge=1)] = 8,
        alpha: Annotated[float, Field(gt=0)] = 16.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        rslora: bool = False,
        dora: bool = False,
        layers: Annotated[str, AfterValidator(_regular_expression)] | None = None,
        **freezing: Any,
    ) -> None:
        super().__init__(**freezing)
        self.config = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "use_rslora": rslora, "use_dora": dora}
        self.layers = layers
        self.added: list[str] = []

    def prepare(self, network: Network) -> None:
        from thaw.model.lora import add_lora  # peft takes seconds to import

        self.added = add_lora(network, self.config, self.layers)
        self.fix_all_but(network, set(self.added), "adapters")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.added:  # once
            parameters = dict(pl_module.network.named_parameters())
            called = {n: parameters[n].grad is not None for n in self.added if "lora_B" in n}
            if dead := [name for name in called if not called[name]]:
                paths = [name.removeprefix("body.").partition(".lora_B")[0] for name in called]
                alive = [path for path, name in zip(paths, called, strict=True) if called[name]]
                raise UserError(
                    "freezing.layers must match layers that the network calls; it reads the weight of "
                    f"'{paths[list(called).index(dead[0])]}' in another way. {_advice(paths, alive)}"
                )
            self.added = []


def _advice(paths: Sequence[str], alive: Sequence[str]) -> str:
    """A pattern for exactly the layers that are alive, where their last words tell them apart."""
    words = "|".join(dict.fromkeys(path.rpartition(".")[2] for path in alive))
    if words and [path for path in paths if re.search(words, path)] == list(alive):
        return f"Write freezing.layers='{words}'."
    return "Write freezing.layers for the others." if alive else "Write e.g. freezing=gradual."
