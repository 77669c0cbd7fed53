"""The report of a run: report.html, a model card, and the same pictures for the loggers. It never fails the run."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from thaw.console import say
from thaw.errors import first_line
from thaw.run.run import Run
from thaw.run.unfinished import replacing

if TYPE_CHECKING:
    from thaw.report.evidence import Evidence
    from thaw.report.section import Section


def write(run: Run, gather: Callable[[], "Evidence"], loggers: Iterable[Any] = ()) -> None:
    """Write the report of a run that has finished, and say what of it could not be written.

    Args:
        gather: gives what it is written from.
        loggers: those that take images are given its pictures.
    """
    say("Writing the report …")
    began = time.monotonic()
    try:
        evidence = gather()
        found = sections(evidence)
        _attempt("report.html", _write_page, evidence, found)
        _attempt("README.md", _write_card, evidence)
        for logger in loggers:
            _attempt("pictures for the logger", _log, logger, found)
        say(f"Report: [bold]{escape(str(run.folder / 'report.html'))}[/]  [dim]{time.monotonic() - began:.1f} s[/]")
    except Exception as error:  # whatever it is, the run is over and its figures are written
        say(_failure("Report", error))
    except KeyboardInterrupt:
        say("Report: left out. The run has finished.")


def sections(evidence: "Evidence") -> list["Section"]:
    """All that have something to say; one that fails is left out, and named."""
    from matplotlib import rc_context  # takes a second

    from thaw.report.ink import STYLE
    from thaw.report.sections import BUILDERS

    with rc_context(STYLE):
        found = [_attempt(build.__name__.replace("_", " "), build, evidence) for build in BUILDERS]
    return [section for section in found if section]


def _attempt(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        say(_failure(f"Report, {name}", error))
        return None


def _failure(what: str, error: Exception) -> str:
    return f"[yellow]{what}: left out ({type(error).__name__}: {escape(first_line(error))}). The run has finished.[/]"


def _write_page(evidence: "Evidence", found: list["Section"]) -> None:
    from thaw.report.page import render
    from thaw.report.summary import facts, sentence

    page = render(evidence.folder.name, found, lead=sentence(evidence), facts=facts(evidence))
    with replacing(evidence.folder / "report.html") as file:
        file.write(page)


def _write_card(evidence: "Evidence") -> None:
    from thaw.report.card import card

    with replacing(evidence.folder / "README.md") as file:
        file.write(card(evidence))


def _log(logger: Any, found: list["Section"]) -> None:
    from thaw.report.picture import png

    if getattr(logger, "takes_images", False):
        images: Mapping[str, Any] = {
            f"report/{section.title}/{number}": picture
            for section in found
            for number, picture in enumerate(section.pictures, 1)
        }
        for key, picture in images.items():
            logger.log_image(key, [png(picture)], caption=[picture.alt])
