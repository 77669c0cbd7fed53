"""Measure what the README says of speed; each figure is a ratio against a reference of the same run.

`python scripts/benchmark.py sweep`: 24 jobs of digits as one sweep, against 24 commands one after another (20 minutes).
`python scripts/benchmark.py search`: search=bayes against a grid, on digits with 100 labels (7 minutes).
"""

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from thaw.search.compare import interval
from thaw.search.ledger import Row, read_rows

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs") / "benchmark"
LISTED = {
    "optimizer.lr": ["1e-4", "3e-4", "1e-3"],
    "optimizer.weight_decay": ["0.01", "0.05"],
    "freezing": ["none", "gradual"],
    "seed": ["0", "1"],
}
FEW = ["data.train_size=100", "logger=none"]
GRID = ["optimizer.lr=1e-4,3e-4,1e-3", "optimizer.weight_decay=1e-3,1e-2,1e-1", "optimizer.layer_decay=0.6,0.8,1.0"]
SPACE = {
    "optimizer.lr": "tag(log,interval(1e-5,1e-2))",
    "optimizer.weight_decay": "tag(log,interval(1e-4,1e-1))",
    "optimizer.layer_decay": "interval(0.6,1.0)",
}


def train(*words: str) -> float:
    """Seconds of a command that must succeed."""
    began = time.monotonic()
    subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def sweep() -> None:
    """The reference runs half before and half after the sweep: a machine that slows down slows both."""
    points = [dict(zip(LISTED, values, strict=True)) for values in itertools.product(*LISTED.values())]
    jobs = [[f"{key}={value}" for key, value in point.items()] for point in points]
    swept = [f"{key}={','.join(values)}" for key, values in LISTED.items()]

    def one_by_one(numbers: Sequence[int]) -> list[float]:
        return [train(*jobs[n], "logger=none", "test=false", f"run.dir={FOLDER}/alone/{n}") for n in numbers]

    alone = one_by_one(range(0, len(jobs), 2))
    together = train("-m", *swept, "logger=none", f"search.dir={FOLDER}/together")
    alone += one_by_one(range(1, len(jobs), 2))
    rows = read_rows([ROOT / FOLDER / "together"])
    assert [row.status for row in rows] == ["finished"] * len(jobs)
    print("| 24 jobs of digits | seconds | ratio |\n|---|---|---|")
    print(f"| `python train.py` 24 times | {sum(alone):.0f} ({min(alone):.1f} – {max(alone):.1f} each) | 1 |")
    print(f"| one sweep, ledger included | {together:.0f} | {together / sum(alone):.2f} |")


def search() -> None:
    """What each has chosen with seed 0 is compared over five seeds that neither has seen."""
    train("-m", *FEW, *GRID, f"search.dir={FOLDER}/grid")
    space = [f"{key}={values}" for key, values in SPACE.items()]
    train("-m", *FEW, "search=bayes", *space, f"search.dir={FOLDER}/bayes")
    ledgers = {name: read_rows([ROOT / FOLDER / name]) for name in ("grid", "bayes")}
    seconds = {name: sum(row.seconds for row in rows) for name, rows in ledgers.items()}
    best = {name: max(rows, key=lambda row: row.objective or 0) for name, rows in ledgers.items()}
    values = {name: _over_seeds(name, row) for name, row in best.items()}
    gain = values["bayes"] - values["grid"]
    print(
        "| digits, 100 labels | trials | pruned | seconds of training | ratio | val/accuracy of the chosen, 5 seeds |"
    )
    print("|---|---|---|---|---|---|")
    for name, rows in ledgers.items():
        pruned = sum(row.status == "interrupted" for row in rows)  # as a job calls it that was asked to end
        ratio = seconds[name] / seconds["grid"]
        mean = f"{values[name].mean():.4f} ± {interval(values[name]):.4f}"
        print(f"| {name} | {len(rows)} | {pruned} | {seconds[name]:.0f} | {ratio:.2f} | {mean} |")
    print(f"bayes over grid, paired: {gain.mean():+.4f} ± {interval(gain):.4f}")
    for name, row in best.items():
        print(f"{name}: {' '.join(f'{key}={value}' for key, value in row.settings.items())}")


def _over_seeds(name: str, row: Row) -> np.ndarray:
    own = [f"{key}={value}" for key, value in row.settings.items()]
    train("-m", *FEW, *own, "seed=10,11,12,13,14", f"search.dir={FOLDER}/{name}_seeds")
    rows = read_rows([ROOT / FOLDER / f"{name}_seeds"])
    return np.array([row.objective for row in sorted(rows, key=lambda row: row.seed)])


def main() -> None:
    measured: dict[str, Callable[[], None]] = {"sweep": sweep, "search": search}
    if len(sys.argv) != 2 or sys.argv[1] not in measured:
        sys.exit("error: write python scripts/benchmark.py sweep, or search")
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    measured[sys.argv[1]]()


if __name__ == "__main__":
    main()
