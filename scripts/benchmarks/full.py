"""Full fine-tuning of real networks against a plain PyTorch loop: what the machine can do, and what Thaw lets it."""

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.measure import WEIGHTS, interleaved, table
from benchmarks.steps import CLASSES, Batch, plain_loop, quiet, thaw_loop
from thaw.model.network import Network
from thaw.model.timm import timm_network
from thaw.model.transformers import transformers_network

WARM, ROUNDS = 3, 9


def full() -> None:
    """Full fine-tuning: the same network, batches, optimizer and clipping in a loop of one's own and in Thaw."""
    quiet()
    generator = torch.Generator().manual_seed(0)

    def images() -> tuple[Network, list[Batch]]:
        network = timm_network("resnet18", CLASSES, weights="none", dropout=0.1, image_size=32)
        inputs = torch.randn(24, 32, 3, 32, 32, generator=generator)
        return network, list(zip(inputs, torch.randint(CLASSES, (24, 32), generator=generator), strict=True))

    def text() -> tuple[Network, list[Batch]]:
        network = transformers_network(str(WEIGHTS / "minilm"), CLASSES, dropout=0.1)
        tokens = torch.randint(1000, 20_000, (16, 32, 32), generator=generator)
        inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens]
        return network, list(zip(inputs, torch.randint(CLASSES, (16, 32), generator=generator), strict=True))

    for name, make in {"ResNet-18, 32 px": images, "MiniLM, length 32": text}.items():
        network, batches = make()
        _assert_dropout(network, batches[0][0])
        timed = (len(batches) - 1 - WARM) * 32

        def plain(network: Network = network, batches: list[Batch] = batches, timed: int = timed) -> float:
            return timed / plain_loop(copy.deepcopy(network), batches, clip=1.0, warm=WARM)

        def thaw(network: Network = network, batches: list[Batch] = batches, timed: int = timed) -> float:
            return timed / thaw_loop(copy.deepcopy(network), batches, clip=1.0, warm=WARM)

        found = interleaved({"a plain loop": plain, "Thaw": thaw}, ROUNDS)
        print(table(name, "samples/s", found, "a plain loop", 1) + "\n", flush=True)


def _assert_dropout(network: Network, inputs: Any) -> None:
    """What is left out must differ from one pass to the next, or the loops would not do the same work."""
    network.train()
    assert any(module.training and module.p > 0 for module in network.modules() if isinstance(module, nn.Dropout))
    network.body.eval()  # batch norm aside
    with torch.no_grad():
        assert not torch.equal(network(inputs), network(inputs))
    network.train()
