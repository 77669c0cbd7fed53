"""A logger around another: what fails there is said once, and never stops a run."""

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.loggers import Logger
from rich.markup import escape

from thaw.console import say
from thaw.errors import first_line

KNOWN_AS = {"CSVLogger": "metrics.csv", "LateWandb": "W&B"}


class GuardedLogger(Logger):
    """Hands everything on to another logger.

    The first failure is said; the calls after it are still made, because a full disk or a dead server may come back.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.logger, self.failures = logger, 0

    def _attempt(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        try:
            call(*arguments, **named)
        except Exception as error:  # a logger may raise anything
            if "DataLoader worker" in str(error):
                raise  # by a signal, wherever the run was
            self.failures += 1
            if self.failures == 1:
                known_as = type(self.logger).__name__
                say(
                    f"[yellow]{KNOWN_AS.get(known_as, known_as)}: not all is logged "
                    f"({type(error).__name__}: {escape(first_line(error))}). The training goes on.[/]"
                )

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def experiment(self) -> Any:
        return self.logger.experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._attempt(self.logger.log_metrics, metrics, step)

    def log_hyperparams(self, params: Any, *arguments: Any, **named: Any) -> None:
        self._attempt(self.logger.log_hyperparams, params, *arguments, **named)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        self._attempt(self.logger.log_graph, model, input_array)

    @property
    def takes_images(self) -> bool:
        return getattr(self.logger, "takes_images", False)

    def log_image(self, key: str, images: list[Any], **options: Any) -> None:
        self._attempt(self.logger.log_image, key, images, **options)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._attempt(self.logger.after_save_checkpoint, checkpoint_callback)

    def save(self) -> None:
        self._attempt(self.logger.save)

    def finalize(self, status: str) -> None:
        self._attempt(self.logger.finalize, status)


def guarded(loggers: Iterable[Logger]) -> list[Logger]:
    """The same loggers, none of which can stop a run."""
    return [GuardedLogger(logger) for logger in loggers]
