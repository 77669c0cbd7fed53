"""Start-up: what looking at the configuration costs beside bare Hydra, and a run's first step beside bare imports."""

from benchmarks.measure import FOLDER, ROOT, command, interleaved, table

HYDRA = """
import hydra

@hydra.main(config_path=".", config_name="config")
def main(cfg):
    pass

main()
"""
# The default run as it is, which ends with its first optimizer step.
FIRST_STEP = """
import os, runpy, sys
from thaw import config

preflight = config.preflight

def watched(cfg):
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(lambda *_: os._exit(0))
    return preflight(cfg)

config.preflight = watched
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
sys.exit("no step was made")
"""


def startup() -> None:
    """A first round, in which bytecode may be compiled, is left out."""
    bare = ROOT / FOLDER / "bare"
    bare.mkdir(parents=True)
    (bare / "app.py").write_text(HYDRA)
    (bare / "config.yaml").write_text("seed: 0\n")
    looking = {
        "a bare Hydra application": lambda: command(str(bare / "app.py"), "--cfg", "job"),
        "`python train.py --cfg job`": lambda: command("train.py", "--cfg", "job"),
        "`python train.py --help`": lambda: command("train.py", "--help"),
    }
    starting = {
        '`python -c "import torch, timm, lightning"`': lambda: command("-c", "import torch, timm, lightning"),
        "`python train.py` to its first step": lambda: command("-c", FIRST_STEP, f"run.dir={FOLDER}/first"),
    }
    for title, ways, rounds in (("looking", looking, 9), ("starting", starting, 5)):
        interleaved(ways, 1)
        print(table(title, "seconds", interleaved(ways, rounds), next(iter(ways))) + "\n", flush=True)
