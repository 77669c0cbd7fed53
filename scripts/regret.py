"""How far scripts/advise.py stays behind an exhaustive search, in points, as the table of the README.

`THAW_DATA=… THAW_WEIGHTS=… python scripts/regret.py [--only digits-100 …] [--minutes 60]`: a grid of the
strategies of scripts/strategies.py at four rates on one seed, its best by validation and the advised command on three.
What is finished is not run again, so that it can be stopped and gone on with; after `--minutes` none is started.
"""

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from experiments import IMAGE, SEEDS, TEXT, run_all
from results import ROOT
from strategies import STRATEGIES

# name → experiment, what it needs beside the data, metric, the rates of its grid
IMAGE_RATES, TEXT_RATES = ("1e-4", "3e-4", "1e-3", "3e-3"), ("3e-5", "1e-4", "3e-4", "1e-3")
SETS = {
    "digits-100": ("digits_labels", "data.train_size=100", "accuracy", IMAGE_RATES),
    "hymenoptera": ("hymenoptera", IMAGE, "accuracy", IMAGE_RATES),
    "trec": ("trec", TEXT, "accuracy", TEXT_RATES),
    "banking77_10shot": ("banking77_10shot", TEXT, "accuracy", TEXT_RATES),
    "emotion": ("emotion", TEXT, "f1", TEXT_RATES),
    "fsdd_mel": ("fsdd_mel", IMAGE, "accuracy", IMAGE_RATES),
}


def folder(name: str, run: str, seed: int = 0) -> Path:
    return ROOT / "runs" / "regret" / name / f"{run}-{seed}"


def record(place: Path) -> dict:
    path = place / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def advised(name: str) -> tuple[str, ...]:
    """What scripts/advise.py adds to the command of an experiment, asked once."""
    experiment, needs, *_ = SETS[name]
    path = ROOT / "runs" / "regret" / name / "advice.txt"
    given = needs.format(weights=Path(os.environ.get("THAW_WEIGHTS", "weights")).absolute()).split()
    if not path.is_file():
        command = [sys.executable, "scripts/advise.py", f"experiment={experiment}", "data.num_workers=0", *given]
        said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said)
    line = shlex.split(path.read_text().splitlines()[-1])[2:]
    return tuple(word for word in line if word not in (*given, f"experiment={experiment}", "data.num_workers=0"))


def grid(name: str) -> dict[str, tuple[str, ...]]:
    """Name of a run → its overrides."""
    pairs = ((strategy, rate) for strategy in STRATEGIES for rate in SETS[name][3])
    return {f"{strategy}-{rate}": (f"freezing={strategy}", f"optimizer.lr={rate}") for strategy, rate in pairs}


def figure(name: str, place: Path, split: str) -> float:
    """The metric in %; of validation where there is no test split."""
    metrics, metric = record(place)["metrics"], SETS[name][2]
    return 100 * metrics.get(f"{split}/{metric}", metrics[f"val/{metric}"])


def best(name: str) -> str:
    """The run of the grid that validation chooses; of equal ones the first."""
    return max(grid(name), key=lambda run: figure(name, folder(name, run), "val"))


def left(name: str) -> list[tuple]:
    """The runs that are still to do, as `run_all` takes them; those of other seeds come when the grid is whole."""
    experiment, needs, *_ = SETS[name]
    runs = [("advised", seed, advised(name)) for seed in SEEDS]
    runs += [(run, 0, words) for run, words in grid(name).items()]
    if not (open_ := [run for run in runs if record(folder(name, *run[:2])).get("status") != "finished"]):
        again = [(best(name), seed, grid(name)[best(name)]) for seed in SEEDS]
        open_ = [run for run in again if record(folder(name, *run[:2])).get("status") != "finished"]
    return [(experiment, seed, folder(name, run, seed), needs, *words) for run, seed, words in open_]


def row(name: str) -> tuple[str, float]:
    chosen = best(name)
    ours, theirs = (
        np.mean([figure(name, folder(name, run, seed), "test") for seed in SEEDS]) for run in ("advised", chosen)
    )
    most = max(figure(name, folder(name, run), "test") for run in grid(name))
    words = " ".join(word for word in advised(name) if not word.startswith(("trainer", "data")))
    hours = sum(record(folder(name, run))["seconds"] for run in grid(name)) / 3600
    spent = np.mean([record(folder(name, "advised", seed))["seconds"] for seed in SEEDS]) / 60
    cells = (f"`{words}`", f"{ours:.1f}", f"{chosen.replace('-', ', ', 1)}", f"{theirs:.1f}", f"{theirs - ours:+.1f}")
    return f"| {name} | {' | '.join(cells)} | {most:.1f} | {spent:.1f} | {hours:.1f} |", float(theirs - ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=[*SETS], metavar="SET", help=", ".join(SETS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after these no further run is started")
    options = parser.parse_args()
    until, rows = time.monotonic() + 60 * options.minutes, []
    for name in options.only:
        while (jobs := left(name)) and time.monotonic() < until:
            run_all(jobs, until)
        if jobs:
            print(f"{name}: {len(jobs)} runs or more are still to do; write the same command again", flush=True)
        else:
            rows.append(row(name))
    if rows:
        print("| data | advised | test, % | best of the grid by validation | test, % | regret | highest of the grid "
              "(one seed) | minutes, advised | hours, grid |\n" + "|---" * 9 + "|")  # fmt: skip
        print(*(cells for cells, _ in rows), sep="\n")
        print(f"Mean regret: {np.mean([regret for _, regret in rows]):+.2f} points over {len(rows)} sets")


if __name__ == "__main__":
    main()
