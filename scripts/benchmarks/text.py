"""Length batching: an epoch of real questions in batches of similar length, of random ones, and padded to 128."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from benchmarks.measure import DATA, WEIGHTS, interleaved, ratio, seconds, table
from thaw.data.sampler import EpochBatches
from thaw.data.text import Text
from thaw.model.transformers import transformers_network

ROUNDS, SAMPLES, BATCH_SIZE, LONGEST = 5, 960, 32, 128
Batch = tuple[dict[str, Tensor], Tensor]


def text() -> None:
    """Full fine-tuning of MiniLM on the same questions of TREC, an epoch each way in turns; the data is loaded too."""
    data = Text(DATA / "trec", train_size=SAMPLES, batch_size=BATCH_SIZE, num_workers=0)
    name = str(WEIGHTS / "minilm")
    network = transformers_network(name, num_outputs=len(data.classes))
    data.preprocess(**network.preprocessing)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    network.train()
    epochs = iter(range(10_000))
    ways: dict[str, Callable[[int], Iterator[Batch]]] = {
        "length batching": lambda epoch: _epoch(data, epoch, by_length=True),
        "random batches, padded to their longest": lambda epoch: _epoch(data, epoch, by_length=False),
        f"padded to {LONGEST}": lambda epoch: map(_to_longest, _epoch(data, epoch, by_length=False)),
    }

    def train(batches: Iterator[Batch]) -> None:
        for inputs, targets in batches:
            cross_entropy(network(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    for batches in ways.values():  # memory is found, and kernels are chosen
        train(batch for batch, _ in zip(batches(0), range(2), strict=False))
    found = interleaved(
        {way: lambda make=make: seconds(lambda: train(make(next(epochs)))) for way, make in ways.items()}, ROUNDS
    )
    print(table(f"{len(data.splits['train']):,} questions of TREC, MiniLM", "seconds", found, "length batching"))
    lengths = data.lengths("train")
    for way, make in ways.items():
        shapes = [inputs["input_ids"].numel() for inputs, _ in make(0)]
        print(f"{way}: {sum(shapes) / lengths.sum():.2f} tokens computed for each that is text")
    assert ratio(found, f"padded to {LONGEST}", "length batching") > 1


def _epoch(data: Text, epoch: int, by_length: bool) -> Iterator[Batch]:
    lengths = data.lengths("train")
    order = EpochBatches(
        len(lengths), BATCH_SIZE, 0, shuffle=True, epoch=lambda: epoch, lengths=lengths if by_length else None
    )
    return iter(data._loader_of(data._transformed("train"), order, workers=0))


def _to_longest(batch: Batch) -> Batch:
    inputs, targets = batch
    return {key: pad(ids, (0, LONGEST - ids.shape[1])) for key, ids in inputs.items()}, targets
