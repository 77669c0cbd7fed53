"""A network as timm's own model with its classifier, in the folder that `timm.create_model` loads."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from thaw.errors import UserError, first_line
from thaw.model.network import Network


def save_timm(
    network: Network, folder: Path, architecture: str, classes: Sequence[str], options: Mapping[str, Any]
) -> Callable[[Any], Tensor]:
    """Write config.json and model.safetensors; return what `timm.create_model` makes of them.

    Args:
        architecture: timm's name, without a tag.
        options: keyword arguments that the model was built with.

    Raises:
        UserError: timm's model has another head than one linear layer.
    """
    made, linear = network.preprocessing, network.head.linear
    arguments = dict(options) | {"in_chans": made["channels"]}
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        arguments["img_size"] = made["size"]
    model = timm.create_model(architecture, num_classes=linear.out_features, **arguments)
    own = model.pretrained_cfg["classifier"]
    if not isinstance(own, str) or model.get_submodule(own).weight.shape != linear.weight.shape:
        raise UserError(f"timm's {architecture} must have a head of one linear layer, and has another.")
    state = network.body.state_dict() | {f"{own}.weight": linear.weight, f"{own}.bias": linear.bias}
    pretrained_cfg = {
        "input_size": [made["channels"], made["size"], made["size"]],
        "mean": made["mean"],
        "std": made["std"],
        "interpolation": made["interpolation"],
        "crop_pct": made["crop_pct"],
        "fixed_input_size": model.pretrained_cfg.get("fixed_input_size", False),
        "first_conv": model.pretrained_cfg.get("first_conv"),
        "classifier": own,
        "num_classes": linear.out_features,
    }
    told = {
        "architecture": architecture,
        "num_classes": linear.out_features,
        "num_features": linear.in_features,
        "label_names": list(classes),
        "model_args": arguments,
        "pretrained_cfg": pretrained_cfg,
    }
    (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n")
    save_file(
        {name: values.detach().contiguous().clone() for name, values in state.items()}, folder / "model.safetensors"
    )
    try:
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).train(False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"timm's {architecture} does not load it ({first_line(error)}).") from None

    def loaded(inputs: Any) -> Tensor:
        with torch.no_grad():
            return again(inputs)

    return loaded
