"""Loggers: metrics.csv always; Weights & Biases online where it can be, else offline, never with a prompt."""

import csv
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import requests
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from requests.utils import get_netrc_auth

from thaw.console import say
from thaw.run import Run

# In seconds: the first two together bound what an unreachable server can cost at the start.
ANSWER_TIMEOUT, INIT_TIMEOUT, FINISH_TIMEOUT = 5, 14, 20


def wandb_logger(
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
    mode = os.environ.get("WANDB_MODE", mode)
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # W&B's own older words
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
            bounded = wandb.Settings(
                init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, silent=True, console="off"
            )
            run = wandb.init(mode="online", settings=bounded, **settings)
            say(f"W&B: {run.url}")
        except (wandb.errors.Error, OSError, TimeoutError) as error:
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
    if run is None:
        run = wandb.init(mode="offline", settings=wandb.Settings(silent=True, console="off"), **settings)
        place = Path(run.dir).parent
        say(f"W&B: offline ({reason}). Later: [bold]wandb sync {os.path.relpath(place)}[/]")
    return WandbLogger(experiment=run, log_model=False)


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
        if wandb.run is not None:
            wandb.run.summary.update(run.record.get("metrics", {}))
            wandb.run.finish(exit_code=exit_code)


def csv_logger(run: Run) -> CSVLogger:
    """`metrics.csv` in the run's directory, where a resumed run goes on below the rows of the one before it."""
    path = run.folder / "metrics.csv"
    earlier = []
    if path.is_file():
        with open(path, newline="") as file:
            earlier = list(csv.DictReader(file))
    logger = CSVLogger(run.folder, name="", version="")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Experiment logs directory.*")  # its file is in `earlier`
        _ = logger.experiment
    for row in earlier:
        # What came after the checkpoint is computed again.
        if (step := int(row.pop("step"))) <= run.record.get("steps", 0):
            logger.experiment.log_metrics({name: float(value) for name, value in row.items() if value}, step)
    return logger


def _kept_id(folder: Path) -> str:
    path = folder / "wandb" / "id"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _why_offline() -> str | None:
    settings = wandb.setup().settings
    if not (settings.api_key or os.environ.get("WANDB_API_KEY") or get_netrc_auth(settings.base_url)):
        return "no API key"
    try:
        # An answer of any kind will do; what must not happen is to wait for a server that never gives one.
        requests.head(settings.base_url, timeout=ANSWER_TIMEOUT)
    except requests.RequestException as error:
        return f"{settings.base_url} does not answer ({type(error).__name__})"
    return None
