"""Run the experiments of conf/experiment on real data, three seeds each, and print the table of the README.

`THAW_DATA=… THAW_WEIGHTS=… python scripts/experiments.py [name …]`: the folders with the data sets, and with `minilm/`
and `mobilenetv2_100.safetensors`. Two runs at a time, one core each; what is finished is not run again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from results import ROOT, interval

SEEDS = (0, 1, 2)
TEXT, IMAGE = "model.name={weights}/minilm", "model.weights={weights}/mobilenetv2_100.safetensors"
# experiment → what it needs beside the data, the metric, the least it must reach
EXPERIMENTS = {
    "trec": (TEXT, "test/accuracy", 0.965),
    "sst2": (TEXT, "test/accuracy", 0.885),
    "banking77_10shot": (TEXT, "test/accuracy", 0.875),
    "banking77": (TEXT, "test/accuracy", 0.925),
    "emotion": (TEXT, "test/f1", 0.72),
    "cifar10_sub": (IMAGE, "test/accuracy", 0.80),
    "fsdd_mel": (IMAGE, "test/accuracy", 0.985),
    "fsdd_deepspeech": ("", "test/accuracy", 0.97),
    "fsdd_asr": ("", "test/cer", 0.05),
    "tiny_gpt": ("", "test/perplexity", None),
}


def folder(name: str, seed: int) -> Path:
    return ROOT / "runs" / "experiments" / f"{name}-{seed}"


def start(name: str, seed: int) -> subprocess.Popen:
    needs = EXPERIMENTS[name][0].format(weights=Path(os.environ.get("THAW_WEIGHTS", "weights")).absolute())
    command = [sys.executable, "train.py", f"experiment={name}", f"seed={seed}", "logger=none", "data.num_workers=0"]
    command += [f"run.dir={folder(name, seed)}", "resume=auto", *needs.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def row(name: str) -> str:
    _, metric, least = EXPERIMENTS[name]
    records = [json.loads((folder(name, seed) / "run.json").read_text()) for seed in SEEDS]
    values, chosen = ([r["metrics"][f"{s}/{metric.partition('/')[2]}"] for r in records] for s in ("test", "val"))
    minutes = np.mean([record["seconds"] for record in records]) / 60
    mean = f"{np.mean(values):.4f} ± {interval(np.array(values)):.4f}"
    return f"| {name} | {metric} | {mean} | {np.mean(chosen):.4f} | {'–' if least is None else least} | {minutes:.1f} |"


def main() -> None:
    names = sys.argv[1:] or list(EXPERIMENTS)
    waiting, running = [(name, seed) for name in names for seed in SEEDS], []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(start(*waiting[0]))
            print(f"{waiting[0][0]}, seed {waiting.pop(0)[1]}: started; {len(waiting)} waiting", flush=True)
        if running.pop(0).wait():
            sys.exit("error: a run failed; look into runs/experiments/*/error.log, then run again")
    print("| experiment | metric | mean of three seeds | validation | target | minutes |\n|---|---|---|---|---|---|")
    print(*(row(name) for name in names), sep="\n")


if __name__ == "__main__":
    main()
