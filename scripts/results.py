"""Make the results table and picture of the README: digits with few labels, five ways, five seeds.

`python scripts/results.py` takes about five minutes on two cores; what is finished is not run again.
"""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

from thaw.search.compare import interval
from thaw.search.ledger import read_rows

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
LABELS, SEEDS = (20, 100, 1000), (0, 1, 2, 3, 4)
SCRATCH = ["model.weights=none", "freezing=none", "optimizer.head_lr_scale=1", "optimizer.lr=1e-2"]
WAYS = {"from scratch": SCRATCH} | {
    way: [f"freezing={way}"] for way in ("linear_probe", "none", "gradual", "probe_then_tune")
}


def folder(way: str) -> Path:
    return ROOT / "runs" / "results" / way.replace(" ", "_")


def sweep(way: str) -> None:
    """All sizes and seeds of one way; every run measures the test split, for nothing is chosen by it."""
    swept = [f"data.train_size={','.join(map(str, LABELS))}", f"seed={','.join(map(str, SEEDS))}"]
    given = ["experiment=digits_labels", *WAYS[way], "test=true", f"search.dir={folder(way).relative_to(ROOT)}"]
    if subprocess.run([sys.executable, "train.py", "-m", *given, *swept], cwd=ROOT).returncode:
        sys.exit(f"error: a job failed; run again, or look into {folder(way)}/results.md")


def accuracies(way: str, labels: int) -> np.ndarray:
    """(seeds,), in %."""
    rows = {row.seed: row for row in read_rows([folder(way)]) if row.settings["data.train_size"] == str(labels)}
    return np.array([rows[str(seed)].metrics["test/accuracy"] for seed in SEEDS]) * 100


def main() -> None:
    for way in WAYS:
        sweep(way)

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
