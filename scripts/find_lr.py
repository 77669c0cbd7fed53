"""Find a rate for `python train.py …`, with the same words: `python scripts/find_lr.py [group=choice] [key=value]`.

The range test (arXiv:1506.01186) trains while the rate rises, until the loss explodes. No run is touched, and nothing
is written but the picture, plans/<name>-lr.png.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from thaw import command, config


@hydra.main(config_path=str(config.CONF), config_name="config", execution_whitelist=config.EXECUTION_WHITELIST)
@command.reports_errors
def find_lr(cfg: DictConfig) -> None:
    # torch comes with these, and must not slow down --help.
    from thaw import console, distributed
    from thaw import find_lr as test
    from thaw.build import fine_tuner, settle
    from thaw.plan.plan import trainer_for
    from thaw.run.folder import run_name

    console.quiet_lightning()
    data, task, trainer = config.preflight(cfg)
    processes = data.ranks = distributed.world(trainer).size
    module, freezing = fine_tuner(cfg, data, task, cfg.monitor or task.monitor)
    precision, _ = settle(cfg, module, freezing, data, trainer)
    make_trainer = trainer_for(config.builder(cfg.trainer), precision, 1, processes)
    curve = test.find_lr(module, freezing, data, make_trainer)

    name = run_name(HydraConfig.get().runtime.choices)
    picture = Path("plans") / f"{name}-lr.png"
    console.console.print(test.on_screen(curve))
    test.draw(curve, f"{name}: the loss while the rate rises, {data.batching}", picture)
    console.say(
        f"The loss is smallest at {curve.rates[curve.lowest]:.1e}, and a {test.BACK}th of that leaves room for a whole "
        f"run: write [bold]optimizer.lr={curve.suggestion:.2g}[/] (the model's own is {module.network.lr:g})."
    )
    console.say(f"Picture: [bold]{picture}[/]")


if __name__ == "__main__":
    command.main(find_lr)
