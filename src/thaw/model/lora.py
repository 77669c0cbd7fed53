"""LoRA through peft: low-rank adapters beside the body's linear and convolution layers, in their own layer groups."""

import re
import warnings

import peft
from peft.tuners.lora.layer import Conv1D
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from thaw.errors import UserError
from thaw.model.network import Network

# The exact classes: what is derived from them may be called in another way, by its weight.
ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)


def add_lora(network: Network, config: dict[str, object], layers: str | None = None) -> list[str]:
    """Put an adapter beside each layer of the body's blocks; return the names of the new parameters.

    Args:
        config: arguments of `peft.LoraConfig`.
        layers: a regular expression for the names of the layers inside the body; None takes all of the blocks.

    Raises:
        UserError: there is no such layer.
    """
    blocks = {name for group, ps in network.groups.items() if group.startswith("block") for name in ps}
    able = [
        path
        for path, module in network.body.named_modules()
        if type(module) in ADAPTED and getattr(module, "groups", 1) == 1 and f"body.{path}.weight" in blocks
    ]
    chosen = [path for path in able if layers is None or re.search(layers, path)]
    if not chosen:
        raise UserError(
            f"freezing.layers must match linear or convolution layers of the blocks, e.g. '{able[0]}'; "
            f"got {layers!r}. Write freezing.layers=null."
            if able
            else "freezing=lora must find linear or convolution layers in the blocks. Write e.g. freezing=gradual."
        )
    # One pattern for the whole names: of a list, peft would also take what merely ends in one of them.
    lora = peft.LoraConfig(target_modules="|".join(map(re.escape, chosen)), **config)
    with warnings.catch_warnings():
        # peft tells that GPT-2's Conv1D keeps its weights transposed, and sees to it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        return network.change_body(lambda body: peft.inject_adapter_in_model(lora, body))


def merge_lora(network: Network) -> None:
    """Add every adapter to the weights beside it and take it away: the plain network again, with the same outputs."""
    network.fixed.clear()
    network.change_body(_merge)


def _merge(body: nn.Module) -> None:
    for path, module in list(body.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            body.set_submodule(path, module.get_base_layer())
