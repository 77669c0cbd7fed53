"""A command: a Hydra application that ends in words, by the exit codes of the README.

This file must import neither torch nor pydantic: `--help` and `--cfg job` come here.
"""

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from thaw import config
from thaw.advice import in_words
from thaw.allocator import keep_freed_memory
from thaw.ending import end, reached, without_secrets
from thaw.errors import RunError, UserError
from thaw.redaction import redact
from thaw.usage import usage


def main(task: Callable[[], Any]) -> None:
    """Run a Hydra application and end the process by the exit codes of the README: 0, 1, 2, 130 or 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end that runs every `finally`
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors over instead of printing them
    keep_freed_memory()
    try:
        _assert_words()
        flags = get_args_parser().parse_known_args()[0]
        if flags.help:
            print(usage([config.CONF, *map(Path, [flags.config_dir] * bool(flags.config_dir))]))
            return
        if flags.multirun:
            from thaw.search import plugins  # Optuna comes with it

            plugins.register()
        without_secrets(task)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        known = isinstance(error, UserError | RunError)
        of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
        if of_hydra or not (known or reached(config.CONF.parent, error)):
            from thaw.diagnosis import diagnose

            error = UserError(*diagnose(get_args_parser().parse_intermixed_args().overrides, config.CONF, error))
        end(error)
    finally:
        # A run that fails may not have come so far; and what stays frozen the interpreter would miss when it ends, of
        # which some libraries complain on the screen.
        gc.enable()
        gc.unfreeze()


def reports_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Let a single run end by its own exit code; in a multirun Hydra must see the error to go on with the next job."""

    @functools.wraps(task)
    def reported(cfg: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            redact(Path(HydraConfig.get().sweep.dir) / "multirun.yaml")  # Hydra's own list of the overrides
            return task(cfg)
        try:
            with in_words(lambda: config.plain(cfg)):
                return task(cfg)
        except Exception as error:
            end(error)

    return reported


def _assert_words() -> None:
    if any(word != word.encode("utf-8", "replace").decode() for word in sys.argv):
        raise UserError("The command must be written in UTF-8; a word of it is not. Write it again.")
    if get_args_parser().parse_known_args()[0].experimental_rerun is not None:
        raise UserError("--experimental-rerun must not be used: it unpickles a file. Repeat the command in run.json.")
