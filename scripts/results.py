"""Make the results table and picture of the README: digits with few labels, five ways, five seeds.

`python scripts/results.py` takes about five minutes on two cores; what is finished is not run again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
LABELS, SEEDS = (20, 100, 1000), (0, 1, 2, 3, 4)
SCRATCH = ["model.weights=none", "freezing=none", "optimizer.head_lr_scale=1", "optimizer.lr=1e-2"]
WAYS = {"from scratch": SCRATCH} | {
    way: [f"freezing={way}"] for way in ("linear_probe", "none", "gradual", "probe_then_tune")
}


def run(seed: int) -> subprocess.Popen:
    """All jobs of one seed, one after the other in one process."""
    sizes = ",".join(map(str, LABELS))
    script = "set -e; " + "; ".join(
        f"{sys.executable} train.py -m experiment=digits_labels seed={seed} data.train_size={sizes} "
        f"{' '.join(overrides)} resume=auto 'run.dir=runs/results/{way.replace(' ', '_')}-${{data.train_size}}-{seed}'"
        for way, overrides in WAYS.items()
    )
    quiet = {"stdout": subprocess.DEVNULL, "cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    return subprocess.Popen(["bash", "-c", script], **quiet)


def accuracies(way: str, labels: int) -> np.ndarray:
    folders = [ROOT / "runs" / "results" / f"{way.replace(' ', '_')}-{labels}-{seed}" for seed in SEEDS]
    return np.array([json.loads((f / "run.json").read_text())["metrics"]["test/accuracy"] for f in folders]) * 100


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t over seeds."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def main() -> None:
    waiting, running = list(SEEDS), []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(run(waiting.pop(0)))
            print(f"seed {len(SEEDS) - len(waiting)} of {len(SEEDS)} started", flush=True)
        if running.pop(0).wait():
            sys.exit("error: a job failed; run again, or look into runs/results/*/error.log")

    print("| labels | " + " | ".join(WAYS) + " |")
    print("|---|" + "---|" * len(WAYS))
    for labels in LABELS:
        columns = [accuracies(way, labels) for way in WAYS]
        cells = [f"{values.mean():.1f} ± {interval(values):.1f}" for values in columns]
        print(f"| {labels:,} | " + " | ".join(cells) + " |")
    for way in ("gradual", "probe_then_tune"):
        for other in ("from scratch", "none"):
            gain = accuracies(way, 100) - accuracies(other, 100)
            print(f"{way} over {other}, 100 labels, paired: {gain.mean():+.2f} ± {interval(gain):.2f}")

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for index, way in enumerate(WAYS):
        means = [accuracies(way, labels).mean() for labels in LABELS]
        errors = [interval(accuracies(way, labels)) for labels in LABELS]
        shifted = [labels * 1.04 ** (index - 2) for labels in LABELS]  # so that the bars do not hide one another
        axes.errorbar(shifted, means, errors, marker="o", capsize=3, label=way)
    axes.set(xscale="log", xlabel="labels", ylabel="test accuracy (%)", xticks=LABELS, xticklabels=LABELS)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "digits.png", dpi=160)


if __name__ == "__main__":
    main()
