"""Memory: what each strategy holds in order to train ViT-B/16 and BERT-base, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable

import torch
from benchmarks.measure import ROOT
from torch import Tensor, nn

from thaw.freezing.by_group import Gradual, LastN, NoFreezing
from thaw.freezing.by_kind import BiasOnly
from thaw.freezing.freezing import Freezing
from thaw.freezing.lora import Lora
from thaw.memory import peak_memory
from thaw.model.network import Network
from thaw.optimizer import create_optimizer

EPOCHS = 20
BATCH, PIXELS, TOKENS, VOCABULARY = 4, 224, 128, 30522
# strategy, and the epoch of twenty that is measured
WAYS: dict[str, tuple[Callable[[], Freezing], int]] = {
    "full": (NoFreezing, 0),
    "gradual, first phase": (Gradual, 0),
    "gradual, last phase": (Gradual, EPOCHS - 1),
    "bias_only": (BiasOnly, 0),
    "lora, rank 8": (Lora, 0),
    "linear_probe": (lambda: LastN(n=0), 0),
}


def vit(options: dict[str, int] | None = None, size: int = PIXELS) -> Network:
    from thaw.model.timm import timm_network

    return timm_network("vit_base_patch16_224", 10, "none", image_size=size, options=options)


def bert(options: dict[str, int] | None = None) -> Network:
    from thaw.model.transformers import transformers_network

    return transformers_network("bert", 10, weights="none", options={"vocab_size": VOCABULARY} | (options or {}))


def images(network: Network, batch: int) -> Tensor:
    size = network.preprocessing["size"]
    return torch.randn(batch, network.preprocessing["channels"], size, size)


def texts(network: Network, batch: int) -> dict[str, Tensor]:
    tokens = torch.randint(5, 200, (batch, TOKENS))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


NETWORKS = {"ViT-B/16": (vit, images), "BERT-base": (bert, texts)}
TINY = {
    "ViT-B/16": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "BERT-base": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
}


def memory() -> None:
    """Training state is counted from the tensors; the peak is the process's, libraries and activations included."""
    for name in NETWORKS:
        print(f"\n| {name}, AdamW, batch {BATCH} | training state, MB | ratio | peak of the process, MB | ratio |")
        print("|---|---|---|---|---|")
        full: dict[str, int] = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.memory", name, way]
            found = json.loads(subprocess.run(command, cwd=ROOT / "scripts", check=True, capture_output=True).stdout)
            full = full or found
            cells = (f"{found[key] / 1e6:,.0f} | {found[key] / full[key]:.2f}" for key in ("state", "peak"))
            print(f"| {way} | {' | '.join(cells)} |", flush=True)


def measured(name: str, way: str, tiny: bool = False) -> dict[str, int]:
    """Bytes of {parameters + gradients + optimizer state}, and the peak of this process, after two steps."""
    make, inputs = NETWORKS[name]
    network = make(TINY[name]) if tiny else make()
    strategy, epoch = WAYS[way]
    network, optimizer = train_steps(network, strategy(), epoch, inputs(network, BATCH))
    return {"state": state_bytes(network, optimizer), "peak": peak_memory()}


def train_steps(
    network: Network, freezing: Freezing, epoch: int, inputs: object, steps: int = 2
) -> tuple[Network, torch.optim.Optimizer]:
    """Train as a run does in this epoch of twenty."""
    freezing.prepare(network)
    network.train_groups(freezing.trains(list(network.groups), epoch, EPOCHS))
    network.train()
    optimizer = create_optimizer(network)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), torch.zeros(BATCH, dtype=torch.long)).backward()
        optimizer.step()
    return network, optimizer


def state_bytes(network: Network, optimizer: torch.optim.Optimizer) -> int:
    """Of parameters, gradients and all that the optimizer keeps."""
    parameters = list(network.parameters())
    kept = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return _bytes(parameters) + _bytes(p.grad for p in parameters if p.grad is not None) + _bytes(kept)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:3])))
