"""Show what `python train.py …` would do, without training: `python scripts/plan.py [group=choice] [key=value]`.

Phases, layer groups, rates over the run, time and memory measured on a few batches, and what would be written; the
picture goes to plans/<name>.png.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from thaw import command, config


@hydra.main(config_path=str(config.CONF), config_name="config", execution_whitelist=config.EXECUTION_WHITELIST)
@command.reports_errors
def plan(cfg: DictConfig) -> None:
    # torch comes with these, and must not slow down --help.
    from rich.markup import escape

    from thaw import console, distributed
    from thaw.build import fine_tuner, settle
    from thaw.plan import figure as plan_figure
    from thaw.plan.cost import BATCHES, measure
    from thaw.plan.plan import files, make_plan, trainer_for
    from thaw.run.folder import free_folder, run_name

    console.quiet_lightning()
    data, task, trainer = config.preflight(cfg)
    processes = data.ranks = distributed.world(trainer).size
    module, freezing = fine_tuner(cfg, data, task, cfg.monitor or task.monitor)
    precision, epochs = settle(cfg, module, freezing, data, trainer)
    make_trainer = trainer_for(config.builder(cfg.trainer), precision, epochs, processes)
    planned = make_plan(module, freezing, data, make_trainer)
    measure(planned, module, freezing, data, make_trainer)

    name = run_name(HydraConfig.get().runtime.choices)
    folder, picture = free_folder(cfg.run.dir, name), Path("plans") / f"{name}.png"
    plan_figure.draw(planned, f"{name}, {planned.steps:,} steps", picture)
    console.console.print(plan_figure.on_screen(planned))
    samples, alone = len(data.splits["train"]), f"in one of {processes} processes, which exchange nothing, "
    memory = "the GPU's" if planned.device == "cuda" else "the largest of this process so far"
    console.say(f"{planned.epochs} epochs of {samples:,} training samples, {data.batching}, {precision}.")
    console.say(
        f"Measured {alone * (processes > 1)}on {BATCHES} batches of each phase, too few to show a loader that falls "
        f"behind; callbacks, checkpoints and the test come on top. The memory is {memory}."
    )
    for remark in filter(None, [freezing.decision(), *planned.remarks]):
        console.say(f"[yellow]{remark}[/]")
    console.say_random_weights(module.network, freezing, epochs)
    written = ", ".join(files(task, cfg.logger.get("_target_"), cfg.report.depth != "none"))
    console.say(f"The run would write into {escape(str(folder))}: {written}")
    console.say(f"Picture: [bold]{picture}[/]")


if __name__ == "__main__":
    command.main(plan)
