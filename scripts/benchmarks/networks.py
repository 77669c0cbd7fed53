"""The networks that memory and speed are measured on, at random weights, and inputs for them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thaw.model.network import Network

CLASSES = 10
TOKENS = 128
Inputs = Tensor | dict[str, Tensor]


class Example(NamedTuple):
    """A network and its inputs.

    Args:
        make: builds it; with other options of its architecture for a tiny one.
        inputs: (network, batch) → inputs of so many samples.
        tiny: arguments of `make` that leave a network of the same kind, to try the code with.
    """

    make: Callable[..., Network]
    inputs: Callable[[Network, int], Inputs]
    tiny: Mapping[str, Any]


def timm_model(name: str, options: Mapping[str, Any] | None = None, size: int = 224) -> Network:
    from thaw.model.timm import timm_network

    return timm_network(name, CLASSES, "none", image_size=size, options=options)


def bert(options: Mapping[str, Any] | None = None) -> Network:
    from thaw.model.transformers import transformers_network

    return transformers_network(
        "bert", CLASSES, weights="none", options={"vocab_size": 30522} if options is None else options
    )


def images(network: Network, batch: int) -> Tensor:
    size = network.preprocessing["size"]
    return torch.randn(batch, network.preprocessing["channels"], size, size)


def texts(network: Network, batch: int) -> dict[str, Tensor]:
    tokens = torch.randint(5, 200, (batch, TOKENS))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
RESNET, VIT, BERT = "ResNet-50", "ViT-B/16", "BERT-base"
EXAMPLES = {
    RESNET: Example(
        lambda name="resnet50", **kw: timm_model(name, **kw), images, {"name": "resnet_glyphs", "size": 32}
    ),
    VIT: Example(lambda **kw: timm_model("vit_base_patch16_224", **kw), images, {"options": TINY_VIT, "size": 32}),
    BERT: Example(bert, texts, {"options": TINY_BERT}),
}
