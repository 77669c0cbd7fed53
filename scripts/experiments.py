"""Run the experiments of conf/experiment on real data, three seeds each, and print the table of the README.

`THAW_DATA=… THAW_WEIGHTS=… python scripts/experiments.py [name …]`: the folders with the data sets, and with `minilm/`
and `mobilenetv2_100.safetensors`. A run on each core that this process may use; what is finished is not run again.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import torch
from results import ROOT

from thaw.search.compare import interval

SEEDS = (0, 1, 2)
TEXT, IMAGE = "model.name={weights}/minilm", "model.weights={weights}/mobilenetv2_100.safetensors"
# experiment → what it needs beside the data, the metric, and what else one would pick, measured on the same machine
EXPERIMENTS = {
    "trec": (TEXT, "accuracy", "0.964 Trainer, 3 epochs; 0.900 logistic regression on frozen features"),
    "sst2": (TEXT, "accuracy", "0.867 Trainer, 1 epoch; 0.813 on frozen features"),
    "banking77_10shot": (TEXT, "accuracy", "0.663 Trainer, 20 epochs; 0.859 on frozen features"),
    "banking77": (TEXT, "accuracy", "0.914 TF-IDF + logistic regression"),
    "emotion": (TEXT, "f1", "0.632 TF-IDF + logistic regression"),
    "cifar10_sub": (IMAGE, "accuracy", "–"),
    "fsdd_mel": (IMAGE, "accuracy", "0.963 flat MFCC + linear"),
    "fsdd_deepspeech": ("", "accuracy", "0.963 flat MFCC + linear"),
    "fsdd_asr": ("", "cer", "–"),
    "tiny_gpt": ("", "perplexity", "–"),
}


def folder(name: str, seed: int) -> Path:
    return ROOT / "runs" / "experiments" / f"{name}-{seed}"


def start(name: str, seed: int, place: Path, needs: str, *overrides: str) -> subprocess.Popen:
    needs = needs.format(weights=Path(os.environ.get("THAW_WEIGHTS", "weights")).absolute())
    command = [sys.executable, "train.py", f"experiment={name}", f"seed={seed}", "logger=none", "data.num_workers=0"]
    command += [f"run.dir={place}", "resume=auto", "report=none", *needs.split(), *overrides]
    if needs.startswith("model.name") and torch.cpu._is_avx512_bf16_supported():
        command.append("trainer.precision=bf16-mixed")  # half the time
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def row(name: str) -> str:
    _, metric, beside = EXPERIMENTS[name]
    records = [json.loads((folder(name, seed) / "run.json").read_text()) for seed in SEEDS]
    val, test = (np.array([record["metrics"][f"{split}/{metric}"] for record in records]) for split in ("val", "test"))
    minutes = np.mean([record["seconds"] for record in records]) / 60
    figures = f"{val.mean():.3f} | {test.mean():.3f} ± {interval(test):.3f} | {minutes:.1f}"
    return f"| {name} | {metric} | {figures} | {beside} |"


def run_all(jobs: list[tuple], until: float = float("inf")) -> None:
    """Run the jobs, the arguments of `start`, as many at a time as there are cores; start none after `until`."""

    def run(job: tuple, waiting: int) -> None:
        if time.monotonic() < until:
            print(f"{job[2].name}: started; {waiting} waiting", flush=True)
            if start(*job).wait():
                raise ChildProcessError(f"a run failed; look into {job[2]}/error.log, then run again")

    pool = joblib.Parallel(joblib.cpu_count(), prefer="threads", batch_size=1)
    try:
        pool(joblib.delayed(run)(job, len(jobs) - 1 - number) for number, job in enumerate(jobs))
    except ChildProcessError as failed:
        sys.exit(f"error: {failed}")


def main() -> None:
    names = sys.argv[1:] or list(EXPERIMENTS)
    run_all([(name, seed, folder(name, seed), EXPERIMENTS[name][0]) for name in names for seed in SEEDS])
    print("| experiment | metric | validation | test | minutes | beside |\n|---|---|---|---|---|---|")
    print(*(row(name) for name in names), sep="\n")


if __name__ == "__main__":
    main()
