"""Fine-tune a pretrained network: `python train.py [group=choice] [key=value]`.

compose (Hydra) → validate → build → fit → test; returns the monitored value of the best epoch.
"""

import gc
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from thaw import command, config


@hydra.main(config_path=str(config.CONF), config_name="config", execution_whitelist=config.EXECUTION_WHITELIST)
@command.reports_errors
def train(cfg: DictConfig) -> float:
    gc.disable()  # until all is built: what is imported stays, and looking for cycles in it takes a second or two
    # torch comes with these, and must not slow down --help.
    from thaw import advice, console, distributed
    from thaw.build import TRAINER, fine_tuner, settle
    from thaw.cache import Cache, default_folder
    from thaw.features import FeatureCache
    from thaw.guarded_logger import guarded
    from thaw.logger import closing_wandb, csv_logger
    from thaw.report import report
    from thaw.report.evidence import gather
    from thaw.run import record
    from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
    from thaw.run.finite import Finite
    from thaw.run.folder import run_name
    from thaw.run.interruption import Interruption
    from thaw.run.kept_checkpoints import checkpoints
    from thaw.run.resume import assert_ready
    from thaw.run.run import Run

    console.quiet_lightning()
    data, task, trainer = config.preflight(cfg)
    world = distributed.world(trainer)
    console.console.quiet = world.rank > 0
    data.share(world.rank, world.size)
    monitor = cfg.monitor or task.monitor
    mode = config.monitor_direction(monitor, task)
    module, freezing = fine_tuner(cfg, data, task, monitor)
    gc.freeze()
    gc.enable()

    job = HydraConfig.get()

    def open_run() -> Run:
        run = Run.open(cfg.run.dir, run_name(job.runtime.choices), list(job.overrides.task), cfg.resume)
        try:
            changed = config.changes(cfg, run.folder / "config.yaml")
            _, epochs = settle(cfg, module, freezing, data, trainer, run.record.get("settled", {}).get("batch_size"))
            assert_ready(run, changed, data, module, freezing.ever_trains(list(module.network.groups), epochs))
            if data.auto_batch_size:  # other processes read it there
                run.update(settled=run.record.get("settled", {}) | {"batch_size": data.batch_size})
        except BaseException:
            run.abandon()
            raise
        return run

    run = distributed.open_together(world, trainer, open_run)
    precision, epochs = settle(cfg, module, freezing, data, trainer, run.record.get("settled", {}).get("batch_size"))
    trained = "checkpoints" in run.record  # written when training has ended; the status is that of this process
    if run.finished and (run.record.get("split") == "test" or not cfg.test or "test" not in data.splits):
        console.say_finished(run)
        run.release()
        return run.record["metrics"][monitor]

    with run, closing_wandb(run), advice.in_words(lambda: config.plain(cfg), run):
        settled = {"precision": precision, "max_epochs": epochs, "batch_size": data.batch_size, "processes": world.size}
        quality = data.quality()
        run.update(seed=cfg.seed, monitor=monitor, mode=mode, data=record.describe(data, quality), settled=settled)
        if run.leads:
            config.write(cfg, run.folder / "config.yaml")
        record.keep_model(run, data, module.network)
        console.say_start(run, precision, epochs, data.batching)
        console.say_quality(quality)
        console.say_random_weights(module.network, freezing, epochs)
        keep = checkpoints(run.folder / "checkpoints", monitor, mode, **cfg.checkpoint)
        chosen = config.build_each(cfg.callbacks, monitor=monitor, mode=mode)
        place = {"save_dir": run.folder, "folder": str(run.folder), "name": run.folder.name}
        loggers = config.build_each({"logger": cfg.logger if run.leads else None}, **place)
        screen = console.Screen(freezing, monitor)
        cache = Cache(Path(cfg.cache.dir or default_folder()), int(cfg.cache.max_gb * 1e9))
        data.cache, data.track = cache, screen.track
        ours = [freezing, FeatureCache(data, freezing, cache, run, screen.track), Finite(run, data)]
        told = [screen, record.Recorder(run, freezing)]
        trainer = config.build(
            cfg.trainer,
            callbacks=[*ours, *chosen, *keep, *told, Interruption(run)],
            logger=guarded([csv_logger(run), *loggers]),
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run.folder,
            precision=precision,
            max_epochs=epochs,
            **TRAINER,
        )
        if not trained:
            record.fit(trainer, module, data, run)
        kept = {role: str(run.folder / "checkpoints" / f"{role}.ckpt") for role in ("best", "last")}
        best = load_checkpoint(kept["best"] if trained else keep[0].path)
        run.update(checkpoints=kept, best_epoch=best["epoch"])
        split, measured = record.evaluate(trainer, module, data, run, best, cfg.test)
        metrics = best["metrics"] | measured
        run.update(metrics=metrics, split=split)
        rows = record.predictions(data, module, split)
        per_class = record.write_predictions(run, data, task, split, rows)
        console.say_results(run, per_class, split)
        run.finish()
        if cfg.report.depth != "none" and run.leads:
            report.write(run, partial(gather, cfg, run, module, data, split, rows, best["state_dict"]), trainer.loggers)
        return metrics[monitor]


if __name__ == "__main__":
    command.main(train)
