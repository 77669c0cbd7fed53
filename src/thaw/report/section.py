"""What a report is made of: sections of words, tables and pictures, before anything is HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Args:
        alt: what it shows, in one sentence, for those who cannot see it.
        vector: as SVG; else as PNG, which is smaller where the figure holds images or thousands of points.
    """

    figure: "Figure"
    alt: str
    caption: str = ""
    vector: bool = True


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One heading of the report.

    Args:
        text: paragraphs, as plain text.
        code: commands to paste, one a line, each with what it does: (what, command).
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: Sequence[tuple[str, str]] = ()
