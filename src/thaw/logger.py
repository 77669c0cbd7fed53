"""Loggers: metrics.csv always; Weights & Biases online where it can be, else offline, never with a prompt."""

import csv
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from rich.markup import escape

from thaw.console import say
from thaw.errors import first_line
from thaw.run.run import Run

# In seconds: the first two together bound what an unreachable server can cost at the start.
ANSWER_TIMEOUT, INIT_TIMEOUT, FINISH_TIMEOUT = 5, 14, 15

# W&B's own notes hold the command, the address of the repository and the user's e-mail; run.json has what matters.
PRIVATE = {"x_disable_meta": True, "x_save_requirements": False, "disable_git": True, "disable_code": True}


class _Experiment:
    """Stands for the W&B run, which Lightning asks every logger for before it trains, and does nothing with."""

    def __init__(self, late: "LateWandb") -> None:
        self._late = late

    def __getattr__(self, name: str) -> Any:
        return getattr(self._late.logger.experiment, name)


class LateWandb(Logger):
    """A W&B logger that is started when there are metrics to log: importing and starting W&B takes seconds.

    Args:
        name: of the project.
        start: makes the logger.
    """

    def __init__(self, folder: str, name: str, start: Callable[[], Logger]) -> None:
        super().__init__()
        self._folder, self._name, self._start = folder, name, start
        self._started: Logger | None = None
        self._hyperparams: list[tuple[Any, ...]] = []

    @property
    def logger(self) -> Logger:
        """The logger itself, from now on started."""
        if self._started is None:
            self._started = self._start()
            for given in self._hyperparams:
                self._started.log_hyperparams(*given)
        return self._started

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int | str | None:
        return self._started.version if self._started else None

    @property
    def save_dir(self) -> str:
        return self._folder

    @property
    def experiment(self) -> "_Experiment":
        return _Experiment(self)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logger.log_metrics(metrics, step)

    @property
    def takes_images(self) -> bool:
        return self._started is not None and not self._started.experiment.disabled

    def log_image(self, key: str, images: list[Any], **options: Any) -> None:
        self.logger.log_image(key, images, **options)

    def log_hyperparams(self, *given: Any) -> None:
        if self._started is None:
            self._hyperparams.append(given)
        else:
            self._started.log_hyperparams(*given)

    def finalize(self, status: str) -> None:
        if self._started is not None:
            self._started.finalize(status)


def wandb_logger(
    folder: str,
    name: str,
    project: str = "thaw",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
) -> LateWandb:
    """A logger into the run's own directory, started at the first metrics; see `started_wandb`."""
    return LateWandb(folder, project, partial(started_wandb, folder, name, project, entity, mode))


def started_wandb(
    folder: str,
    name: str,
    project: str = "thaw",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
) -> WandbLogger:
    """A logger into the run's own directory.

    Args:
        folder: the run's directory. It keeps the W&B run's id, so that a resumed run goes on in the same one.
        mode: `auto` and `online` are online where a key is configured and the server answers, and offline elsewhere.
            The environment's WANDB_MODE goes before it.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE", mode)
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # W&B's own older words
    quiet = {"silent": True, "console": "off", **PRIVATE}
    settings = {"project": project, "entity": entity, "name": name, "dir": folder, "reinit": "finish_previous"}
    settings |= {"id": _kept_id(Path(folder)), "resume": "allow"}
    reason = "as WANDB_MODE or logger.mode says" if mode == "offline" else None
    if mode in ("auto", "online"):
        reason = _why_offline()  # with `online` too: without a key W&B would ask at the keyboard and wait
    run = None
    if mode == "disabled":
        run = wandb.init(mode="disabled", **settings)
    elif reason is None:
        try:
            bounded = wandb.Settings(init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, **quiet)
            run = wandb.init(mode="online", settings=bounded, **settings)
            say(f"W&B: {run.url}")
        except Exception as error:  # of its server, its client, and the service between them
            reason = first_line(error, 100)
    if run is None:
        try:
            run = wandb.init(mode="offline", settings=wandb.Settings(**quiet), **settings)
            say(f"W&B: offline ({escape(reason)}). Later: {_sync(run)}")
        except Exception as error:
            run = wandb.init(mode="disabled", **settings)
            say(f"W&B: off ({escape(first_line(error, 100))}). metrics.csv has it all.")
    return WandbLogger(experiment=run, log_model=False)


def sweep_environment(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Variables for the jobs of a sweep: one W&B group for all, and one wait for a server that does not answer."""
    mode = os.environ.get("WANDB_MODE", settings.get("mode"))
    wanted = str(settings.get("_target_", "")).endswith("wandb_logger") and mode in ("auto", "online")
    reason = _why_offline() if wanted else None
    if reason:
        say(f"W&B: offline for all jobs ({escape(reason)}).")
    return {"WANDB_RUN_GROUP": name} | ({"WANDB_MODE": "offline"} if reason else {})


def _sync(run: Any) -> str:
    return f"[bold]wandb sync {escape(os.path.relpath(Path(run.dir).parent))}[/]"


@contextmanager
def closing_wandb(run: Run) -> Iterator[None]:
    """Close the W&B run of this job, if there is one, with the final figures and the right exit code."""
    exit_code = 0
    try:
        yield
    except BaseException as error:
        exit_code = {KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}.get(type(error), 1)
        raise
    finally:
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run is not None:
            _close(wandb.run, run.record.get("metrics", {}), exit_code)


def _close(logged: Any, metrics: Mapping[str, Any], exit_code: int) -> None:
    try:
        logged.summary.update(metrics)
        logged.finish(exit_code=exit_code)
    except Exception as error:  # its service may have died; what the run has found stands in run.json
        reason = f"{type(error).__name__}: {escape(first_line(error))}"
        say(f"[yellow]W&B: not all is logged ({reason}). Later: {_sync(logged)}[/]")


def csv_logger(run: Run) -> CSVLogger:
    """`metrics.csv` in the run's directory, where a resumed run goes on below the rows of the one before it."""
    path = run.folder / "metrics.csv"
    earlier = []
    if path.is_file():
        text = path.read_text(errors="replace")
        whole = text[: text.rfind("\n") + 1].splitlines()  # what has no end was cut short by a kill or a full disk
        earlier = [row for line in csv.DictReader(whole) if (row := _row(line))]
    logger = CSVLogger(run.folder, name="", version="")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Experiment logs directory.*")  # its file is in `earlier`
        _ = logger.experiment
    # What came after the checkpoint is computed again; run.json may know of more than a checkpoint that is whole.
    kept = [row for row in earlier if row["step"] < run.found.step]
    written = {name for row in kept if row["step"] == run.found.step - 1 for name in row}
    # Lightning saves an epoch before it logs the last of it.
    if lost := {name: value for name, value in run.found.metrics.items() if name not in written}:
        epoch = max((row.get("epoch", 0) for row in kept if row["step"] == run.found.step - 1), default=0)
        kept.append({"epoch": epoch, "step": run.found.step - 1} | lost)
    for row in kept:
        logger.experiment.log_metrics(row, int(row.pop("step")))
    return logger


def _row(line: Mapping[str | None, str | None]) -> dict[str, float]:
    """The numbers of a line of `metrics.csv`; none of one that another ran into."""
    try:
        # An epoch stays 3 and does not become 3.0.
        row = {name: int(value) if value.isdigit() else float(value) for name, value in line.items() if value}
        return row if "step" in row else {}
    except (AttributeError, TypeError, ValueError):
        return {}


def _kept_id(folder: Path) -> str:
    if "WANDB_SWEEP_ID" in os.environ and (given := os.environ.get("WANDB_RUN_ID")):  # by an agent of W&B's sweeps
        return given
    path = folder / "wandb" / "id"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _why_offline() -> str | None:
    import requests
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    if not (settings.api_key or os.environ.get("WANDB_API_KEY") or get_netrc_auth(settings.base_url)):
        return "no API key"
    try:
        # An answer of any kind will do; what must not happen is to wait for a server that never gives one.
        requests.head(settings.base_url, timeout=ANSWER_TIMEOUT)
    except requests.RequestException as error:
        return f"{settings.base_url} does not answer ({type(error).__name__})"
    return None
