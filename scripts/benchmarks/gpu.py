"""A GPU's speed: samples/s in bf16, share of the chip's FLOPs, and a bare PyTorch loop with the same kernels."""

import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import thaw.trainer
from benchmarks.gpu_steps import Case, bare_step, thaw_step, transformers_trainer
from benchmarks.measure import interleaved, ratio
from benchmarks.networks import BERT, CLASSES, EXAMPLES, RESNET, VIT, Example
from thaw.console import console, quiet_lightning
from thaw.freezing.by_group import LastN, NoFreezing
from thaw.freezing.lora import Lora
from thaw.model.network import Network

# Dense bf16 FLOPs a second of the tensor cores, by a part of the chip's name.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
BATCHES = {RESNET: 256, VIT: 128, BERT: 128}
FEATURES = "cached probe"
WAYS = {"full": NoFreezing, "gradual, middle phase": lambda: LastN(n=6), "lora, rank 8": Lora, FEATURES: NoFreezing}


def gpu(names: Sequence[str] = tuple(EXAMPLES), tiny: bool = False) -> None:
    """Every way is warmed up, then takes turns with the bare loop.

    Args:
        names: of the networks.
        tiny: try the code on any machine; the figures mean nothing.
    """
    if not (tiny or torch.cuda.is_available()):
        print("There is no GPU here, and nothing of it is measured.")
        return
    quiet_lightning()
    console.quiet = True
    warnings.filterwarnings("ignore")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chip = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    peak = next((value for name, value in PEAKS.items() if name in chip), None)
    if tiny:
        thaw.trainer.BACKEND = "eager"  # traced, but not compiled
    print(f"\n{chip}, bf16-mixed, AdamW; BERT at 128 tokens, unpacked: Thaw packs no sequences.\n")
    columns = ("network, batch", "way", "samples/s", "spread", "share of the chip's FLOPs", "over bare", "peak, GB")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in names:
        example = EXAMPLES[name]
        batch = 4 if tiny else BATCHES[name]
        for way in WAYS:
            case = make_case(example, way, batch, 2 if tiny else 30, device, tiny)
            for compiled in (False, True):
                told = f"{way}, compiled" if compiled else way
                print(
                    f"| {name}, {batch} | {told} | {row(case, batch, compiled, peak, 1 if tiny else 5)} |", flush=True
                )
        if name == BERT:
            rate = batch / transformers_trainer(example, batch, 2 if tiny else 30, device, tiny)
            print(f"| {name}, {batch} | transformers' Trainer, full | {rate:,.0f} | – | – | – | – |")
    print("\ntimm has no trainer in its package: its train.py is a loop like the bare one.")


def make_case(example: Example, way: str, batch: int, steps: int, device: torch.device, tiny: bool) -> Case:
    torch.manual_seed(0)
    network = example.make(**(example.tiny if tiny else {}))
    inputs, targets = example.inputs(network, batch), torch.randint(CLASSES, (batch,))
    if way == FEATURES:  # what a run trains whose body stays frozen, once its features are known
        with torch.inference_mode():
            inputs = network.train(False).features(inputs)
        inputs = inputs.clone()
        network = Network(nn.Identity(), network.head, {})
    strategy = WAYS[way]()
    strategy.prepare(network)
    network.train_groups(strategy.trains(list(network.groups), 0, 1))
    network.train()
    return Case(network, _to(inputs, device), targets.to(device), steps, device)


def row(case: Case, batch: int, compiled: bool, peak: float | None, rounds: int) -> str:
    """The cells of one way."""
    peaks: list[int] = []

    def thaws() -> float:
        with _memory(peaks):
            return thaw_step(case, compiled)

    ways = {"Thaw": thaws, "bare": lambda: bare_step(case, compiled)}
    for way in ways.values():
        way()
    found = interleaved(ways, rounds)
    rates = [batch / seconds for seconds in found["Thaw"]]
    share = f"{flops(case) / statistics.median(found['Thaw']) / peak:.2f}" if peak else "–"
    spread = f"{min(rates):,.0f} – {max(rates):,.0f}"
    memory = f"{max(peaks) / 1e9:.2f}" if case.device.type == "cuda" else "–"
    return f"{statistics.median(rates):,.0f} | {spread} | {share} | {1 / ratio(found, 'Thaw', 'bare'):.2f} | {memory}"


def flops(case: Case) -> float:
    """Of a forward and a backward pass."""
    network = case.copied()
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(case.inputs), case.targets).backward()
    return counter.get_total_flops()


class _memory:  # noqa: N801  (used as a word)
    """Notes the most that a GPU holds at once."""

    def __init__(self, peaks: list[int]) -> None:
        self.peaks = peaks

    def __enter__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def __exit__(self, *_: object) -> None:
        self.peaks.append(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def _to(inputs: Any, device: torch.device) -> Any:
    return {key: held.to(device) for key, held in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
