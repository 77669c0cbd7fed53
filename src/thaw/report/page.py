"""One self-contained HTML page of sections: no script, nothing to fetch, for a telephone and for the dark too."""

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from thaw.report.picture import svg
from thaw.report.section import Picture, Section, Table

TEMPLATE = "report.html.j2"
_NUMBER = re.compile(r"[-+−]?\d[\d,.]*(e[-+]?\d+)?( ?(%|s|min|h|[kMG]i?B?))?( ?[±–(].*)?")


def render(title: str, sections: Sequence[Section], lead: str = "", facts: Sequence[tuple[str, str]] = ()) -> str:
    """The page; whatever is in the sections stands on it as text.

    Args:
        title: what the page is of, its largest heading.
        lead: one sentence below it.
        facts: (name, value) of the few figures to see at once.
    """
    names: dict[str, int] = {}

    def drawn(picture: Picture) -> Markup:
        names[""] = names.get("", 0) + 1
        return Markup(svg(picture, f"p{names['']}"))

    page = Environment(
        loader=PackageLoader("thaw.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page.filters |= {"drawn": drawn, "aligned": aligned}
    anchored = [(f"s{number}", section) for number, section in enumerate(sections, 1)]
    return page.get_template(TEMPLATE).render(title=title, sections=anchored, lead=lead, facts=facts)


def aligned(table: Table) -> list[str]:
    """A class for each column: `number` where nothing else is in it."""
    columns = zip(*table.rows, strict=True) if table.rows else [[]] * len(table.head)
    return ["number" if _numbers(column) else "text" for column in columns]


def _numbers(cells: Sequence[str]) -> bool:
    told = [cell.strip() for cell in cells if cell.strip() not in ("", "–")]
    return bool(told) and all(map(_NUMBER.fullmatch, told))
