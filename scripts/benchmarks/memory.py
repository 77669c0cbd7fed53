"""Memory: what each strategy holds in order to train ViT-B/16 and BERT-base, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.measure import ROOT
from benchmarks.networks import BERT, EXAMPLES, VIT, Inputs
from thaw.freezing.by_group import Gradual, LastN, NoFreezing
from thaw.freezing.by_kind import BiasOnly
from thaw.freezing.freezing import Freezing
from thaw.freezing.lora import Lora
from thaw.memory import peak_memory
from thaw.model.network import Network
from thaw.optimizer import create_optimizer

EPOCHS = 20
BATCH = 4
# strategy, and the epoch of twenty that is measured
WAYS: dict[str, tuple[Callable[[], Freezing], int]] = {
    "full": (NoFreezing, 0),
    "gradual, first phase": (Gradual, 0),
    "gradual, last phase": (Gradual, EPOCHS - 1),
    "bias_only": (BiasOnly, 0),
    "lora, rank 8": (Lora, 0),
    "linear_probe": (lambda: LastN(n=0), 0),
}


def memory() -> None:
    """Training state is counted from the tensors; the peak is the process's, libraries and activations included."""
    for name in (VIT, BERT):
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
    example, (strategy, epoch) = EXAMPLES[name], WAYS[way]
    network = example.make(**(example.tiny if tiny else {}))
    optimizer = train_steps(network, strategy(), epoch, example.inputs(network, BATCH))
    return {"state": state_bytes(network, optimizer), "peak": peak_memory()}


def train_steps(network: Network, freezing: Freezing, epoch: int, inputs: Inputs) -> Optimizer:
    """Train two steps as a run does in this epoch of twenty."""
    freezing.prepare(network)
    network.train_groups(freezing.trains(list(network.groups), epoch, EPOCHS))
    network.train()
    optimizer = create_optimizer(network)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), torch.zeros(BATCH, dtype=torch.long)).backward()
        optimizer.step()
    return optimizer


def state_bytes(network: Network, optimizer: Optimizer) -> int:
    """Of parameters, gradients and all that the optimizer keeps."""
    parameters = list(network.parameters())
    kept = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return _bytes(parameters) + _bytes(p.grad for p in parameters if p.grad is not None) + _bytes(kept)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:3])))
