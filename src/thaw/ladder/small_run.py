"""A run on one percent of the labels: everything that a long run goes through, end to end."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from thaw.data.sampler import EpochBatches
from thaw.ladder.bench import Bench
from thaw.ladder.rung import Outcome, fails, passes, skips

SHARE, MOST_EPOCHS = 0.01, 5
VAL_BATCHES = 8  # of validation, which is as large as ever, this many tell enough
TRAIN = Path(__file__).parents[3] / "train.py"


def small_run(bench: Bench, overrides: Sequence[str]) -> Outcome:
    """Train, validate, save and load again as `train.py` does, in a process and a folder of its own.

    Args:
        overrides: of the run.
    """
    if not isinstance(bench.data.batches("train"), EpochBatches):
        return skips("the training samples come as a stream")
    strata = bench.data.targets.strata(bench.data.splits["train"].targets)
    classes = len(bench.data.classes) if strata is not None else 2
    size = max(classes, math.ceil(SHARE * bench.data.sizes["train"]))
    with tempfile.TemporaryDirectory(prefix="thaw-check-") as folder:
        run = Path(folder) / "run"
        own = [f"data.train_size={size}", "++data.shots=null", f"trainer.max_epochs={min(bench.epochs, MOST_EPOCHS)}"]
        own += ["logger=none", "report=none", "test=false", f"run.dir={run}", "resume=never"]
        own += [f"++trainer.limit_val_batches={VAL_BATCHES}"]
        command = [sys.executable, str(TRAIN), *overrides, *own]
        with (
            open(Path(folder) / "errors", "w+", encoding="utf-8") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            try:
                for line in process.stdout:
                    bench.tell(f"train.py: {line.strip()[:60]}")
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
        if code:
            told = next(
                (line for line in said if line.startswith("error: ")), said[-1] if said else f"exit code {code}"
            )
            return fails(
                f"train.py on {size:,} samples has ended with exit code {code}: {told.removeprefix('error: ')[:300]}",
                f"Write it again to see all of it: python train.py … data.train_size={size}.",
            )
        record = json.loads((run / "run.json").read_text())
    monitor, metrics = record["monitor"], record["metrics"]
    return passes(
        f"{size:,} samples, {record['epochs']} epochs in {record['seconds']:.0f} s, from the first step to the best "
        f"epoch loaded again: {monitor} {metrics[monitor]:.3f}"
    )
