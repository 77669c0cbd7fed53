"""Start small: `python scripts/check.py [group=choice] [key=value]` tries what must hold before a long `train.py …`.

Each rung is told as it ends: pass, FAIL with what to do, or skip with why. What is left is plans/<name>-curve.png, and
features in the cache. Exit codes: 0 all pass, 1 a rung fails, 2 a mistake you can mend.
"""

import functools
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from thaw import command, config


@hydra.main(config_path=str(config.CONF), config_name="config", execution_whitelist=config.EXECUTION_WHITELIST)
@command.reports_errors
def check(cfg: DictConfig) -> None:
    # torch comes with these, and must not slow down --help.
    from thaw import console
    from thaw.ladder.bench import Bench
    from thaw.ladder.ladder import EARLY, climb
    from thaw.ladder.learning_curve import learning_curve
    from thaw.ladder.small_run import small_run
    from thaw.run.folder import run_name

    console.quiet_lightning()
    bench, job = Bench.of(cfg), HydraConfig.get()
    name = run_name(job.runtime.choices)
    curve = {"picture": Path("plans") / f"{name}-curve.png", "title": f"{name}: what more labels bring"}
    rungs = {
        **EARLY,
        "1 % run": functools.partial(small_run, overrides=list(job.overrides.task)),
        "learning curve": functools.partial(learning_curve, **curve),
    }
    if failed := climb(bench, rungs):
        console.say(f"[red]{len(failed)} of {len(rungs)} rungs do not hold:[/] {', '.join(failed)}")
        sys.exit(1)


if __name__ == "__main__":
    command.main(check)
