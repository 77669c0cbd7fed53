"""A finished run measured again, on its own samples or on others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thaw.run.record import predictions, write_predictions
from thaw.run.restore import restore
from thaw.run.run import Run
from thaw.run.unfinished import replacing


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        measured: full name of a metric → value.
        before: the same metrics in run.json, of the run's own samples; empty where they are others or another
            checkpoint's.
        everything: whether there was no test split, and all samples were taken for it.
    """

    checkpoint: str
    split: str
    samples: int
    measured: dict[str, float]
    before: dict[str, float]
    everything: bool


def evaluate(
    folder: Path, overrides: Sequence[str] = (), role: Literal["best", "last"] = "best", out: Path | None = None
) -> Evaluation:
    """Measure a checkpoint on the split that the run was measured on, or on the test split of other samples.

    Args:
        out: folder for `evaluation.json`, `predictions.csv` and `per_class.csv`; None writes nothing.

    Raises:
        UserError: no finished run, a broken checkpoint, or samples that do not fit it.
    """
    run = restore(folder, overrides, weights=False)
    split = "test" if overrides and "test" in run.data.splits else run.record["split"]
    measured = run.measure(run.checkpoint(role)["state_dict"], split)
    own = run.record["metrics"] if role == "best" and not overrides else {}
    everything = bool(overrides) and run.data.splits[split] is run.data.splits["train"] and "test" not in run.data.whole
    before = {name: own[name] for name in measured if name in own}
    found = Evaluation(role, split, run.data.sizes[split], measured, before, everything)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        rows = predictions(run.data, run.module, split)
        write_predictions(Run(out), run.data, run.task, split, rows)
        told: dict[str, Any] = {"run": str(folder), "overrides": list(overrides), "checkpoint": role, "split": split}
        with replacing(out / "evaluation.json") as file:
            file.write(json.dumps(told | {"samples": found.samples, "metrics": measured}, indent=2) + "\n")
    return found
