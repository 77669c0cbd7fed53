"""Measure what the README says of speed: `python scripts/benchmark.py step probe …`, ratios within one run.

Every benchmark is a function in `scripts/benchmarks/` and prints the table that the README carries. THAW_DATA and
THAW_WEIGHTS name the folders with the data sets and the weights.
"""

import importlib
import shutil
import sys

from benchmarks.measure import FOLDER, ROOT, machine

# name → (file, what it measures and how long that takes on two cores)
BENCHMARKS = {
    "step": ("steps", "the fixed cost of a training step beside a plain loop, Lightning and transformers (4 minutes)"),
    "full": ("full", "full fine-tuning of ResNet-18 and MiniLM against a plain loop (6 minutes)"),
    "probe": ("features", "a linear probe with and without the cache, and by Lightning's callback (13 minutes)"),
    "gradual": ("features", "six phases with and without it, and by finetuning-scheduler, if installed (35 minutes)"),
    "probes": ("probes", "27 linear probes in one pass, as a sweep, and as 27 commands (10 minutes)"),
    "text": ("text", "an epoch of TREC with MiniLM: length batching, random batches, padding to 128 (12 minutes)"),
    "startup": ("startup", "--cfg job, --help and the first step against bare Hydra and bare imports (4 minutes)"),
    "large": ("large", "tables of 10^4 to 10^6 rows, streamed or not: memory, start, cost of a sample (15 minutes)"),
    "memory": ("memory", "training state of each strategy, ViT-B/16 and BERT-base (3 minutes, 4 GB)"),
    "gpu": ("gpu", "samples/s and FLOP utilisation of ResNet-50, ViT-B/16 and BERT-base on a GPU (30 minutes)"),
    "sweep": ("sweeps", "24 jobs of digits as one sweep, against 24 commands one after another (20 minutes)"),
    "search": ("sweeps", "search=bayes against a grid, on digits with 100 labels (7 minutes)"),
}


def main() -> None:
    if not sys.argv[1:] or set(sys.argv[1:]) - BENCHMARKS.keys():
        listed = "\n".join(f"  {name:12} {what}" for name, (_, what) in BENCHMARKS.items())
        sys.exit(f"error: write python scripts/benchmark.py and one or more of:\n{listed}")
    print(machine(), flush=True)
    for name in sys.argv[1:]:
        shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
        getattr(importlib.import_module(f"benchmarks.{BENCHMARKS[name][0]}"), name)()


if __name__ == "__main__":
    main()
