"""Tiny networks of every kind, random but for the bundled one, and inputs for them."""

from collections.abc import Callable
from typing import Any

import torch
from test_transformers import TINY, build, samples

from thaw.model.deepspeech import deepspeech
from thaw.model.network import Network
from thaw.model.timm import timm_network

BEIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}  # reads the weight of qkv from outside
TIMM: dict[str, dict[str, Any]] = {
    "resnet_glyphs": {"weights": "pretrained"},
    "test_vit": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {"image_size": 64},
    "beit_base_patch16_224": {"image_size": 32, "options": BEIT},
}
NETWORKS: dict[str, Callable[[], Network]] = {
    **{
        name: lambda n=name, a=options: timm_network(n, 3, **({"weights": "none"} | a))
        for name, options in TIMM.items()
    },
    "deepspeech": lambda: deepspeech(3, width=32),
    **{name: lambda n=name: build(n) for name in TINY},
}


def tiny(name: str) -> Network:
    """The same weights every time, in eval mode, and no norm or bias at a value that hides a mistake."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inputs_of(network: Network, count: int = 3) -> Any:
    torch.manual_seed(1)
    kind = network.preprocessing["kind"]
    if kind == "waveform" and not network.preprocessing["extract"]:
        return {"input_values": torch.randn(count, 4000), "lengths": torch.tensor([4000, 2777, 1500][:count])}
    return samples(network, count)
