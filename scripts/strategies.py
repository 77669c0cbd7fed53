"""Compare the freezing strategies on real data, three seeds each, and print the tables of the README.

`THAW_DATA=… THAW_WEIGHTS=… python scripts/strategies.py [experiment …]`: each experiment as it is but for the strategy,
so at the rate that was chosen for full fine-tuning. What is finished is not run again.
"""

import json
import sys
from pathlib import Path

import numpy as np
from experiments import IMAGE, SEEDS, TEXT, run_all
from results import ROOT

from thaw.search.compare import interval

STRATEGIES = ("none", "linear_probe", "gradual", "probe_then_tune", "lora", "bias_only", "surgical")
# experiment → what it needs beside the data, and the metric
EXPERIMENTS = {
    "digits_labels": ("data.train_size=100", "test/accuracy"),
    "hymenoptera": (IMAGE, "val/accuracy"),
    "trec": (TEXT, "test/accuracy"),
    "banking77_10shot": (TEXT, "test/accuracy"),
}


def folder(name: str, strategy: str, seed: int) -> Path:
    return ROOT / "runs" / "strategies" / f"{name}-{strategy}-{seed}"


def measured(name: str, strategy: str) -> tuple[list[dict], np.ndarray]:
    """The records of all seeds, and their figures in %."""
    records = [json.loads((folder(name, strategy, seed) / "run.json").read_text()) for seed in SEEDS]
    return records, 100 * np.array([record["metrics"][EXPERIMENTS[name][1]] for record in records])


def row(name: str, strategy: str) -> str:
    records, values = measured(name, strategy)
    over = values - measured(name, "none")[1]
    paired = f"{over.mean():+.1f} ± {interval(over):.1f}" if over.any() else "–"
    seconds = np.mean([record["seconds"] for record in records])
    memory = np.mean([record["peak_memory_bytes"] for record in records]) / 1e9
    trains = records[0]["parameters"]["trainable_at_end"]
    figures = f"{values.mean():.1f} ± {interval(values):.1f} | {paired}"
    return f"| {strategy} | {figures} | {seconds:.0f} | {trains:,} | {memory:.1f} |"


def main() -> None:
    for name in sys.argv[1:] or EXPERIMENTS:
        needs, metric = EXPERIMENTS[name]
        pairs = [(strategy, seed) for strategy in STRATEGIES for seed in SEEDS]
        run_all([(name, seed, folder(name, s, seed), needs, f"freezing={s}") for s, seed in pairs])
        print(f"| {name} | {metric}, % | over none, paired | seconds | parameters that train | peak memory, GB |")
        print("|---" * 6 + "|")
        print(*(row(name, strategy) for strategy in STRATEGIES), sep="\n", flush=True)


if __name__ == "__main__":
    main()
