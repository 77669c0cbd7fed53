"""Sweeps: their cost beside single commands, and what a search finds in how much training."""

import itertools
from collections.abc import Sequence

import numpy as np

from benchmarks.measure import FOLDER, ROOT, command
from thaw.search.compare import interval
from thaw.search.ledger import Row, read_rows

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


def sweep() -> None:
    """The reference runs half before and half after the sweep: a machine that slows down slows both."""
    points = [dict(zip(LISTED, values, strict=True)) for values in itertools.product(*LISTED.values())]
    jobs = [[f"{key}={value}" for key, value in point.items()] for point in points]
    swept = [f"{key}={','.join(values)}" for key, values in LISTED.items()]

    def one_by_one(numbers: Sequence[int]) -> list[float]:
        plain = ["logger=none", "test=false"]
        return [command("train.py", *jobs[n], *plain, f"run.dir={FOLDER}/alone/{n}") for n in numbers]

    alone = one_by_one(range(0, len(jobs), 2))
    together = command("train.py", "-m", *swept, "logger=none", f"search.dir={FOLDER}/together")
    alone += one_by_one(range(1, len(jobs), 2))
    rows = read_rows([ROOT / FOLDER / "together"])
    assert [row.status for row in rows] == ["finished"] * len(jobs)
    print("| 24 jobs of digits | seconds | ratio |\n|---|---|---|")
    print(f"| `python train.py` 24 times | {sum(alone):.0f} ({min(alone):.1f} – {max(alone):.1f} each) | 1 |")
    print(f"| one sweep, ledger included | {together:.0f} | {together / sum(alone):.2f} |")


def search() -> None:
    """What each has chosen with seed 0 is compared over five seeds that neither has seen."""
    command("train.py", "-m", *FEW, *GRID, f"search.dir={FOLDER}/grid")
    space = [f"{key}={values}" for key, values in SPACE.items()]
    command("train.py", "-m", *FEW, "search=bayes", *space, f"search.dir={FOLDER}/bayes")
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
    command("train.py", "-m", *FEW, *own, "seed=10,11,12,13,14", f"search.dir={FOLDER}/{name}_seeds")
    rows = read_rows([ROOT / FOLDER / f"{name}_seeds"])
    return np.array([row.objective for row in sorted(rows, key=lambda row: row.seed)])
