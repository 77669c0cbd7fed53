"""Pictures for a page that is light or dark: words that stay words, in the page's own ink."""

import io
import re
from typing import Any

import matplotlib
from markupsafe import escape
from PIL import Image

from thaw.report.ink import INK, STYLE
from thaw.report.section import Picture

DPI = 144  # of what is drawn as pixels: 2 for each pixel of a page
_IDS = re.compile(r'\bid="([^"]+)"')
_REFERENCES = re.compile(r'(url\(#|href="#)([^)"]+)')


def svg(picture: Picture, name: str) -> str:
    """A picture as an `<svg>` element to put into a page.

    Args:
        name: of this picture alone, on the page.
    """
    figure = picture.figure
    if not picture.vector:
        for axes in figure.axes:
            for artist in (*axes.images, *axes.lines, *axes.collections, *axes.patches):
                artist.set_rasterized(True)
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": name, "image.composite_image": False}):
        figure.savefig(file, format="svg", transparent=True, dpi=DPI, metadata=nothing)
    return _inline(file.getvalue(), name, picture.alt)


def _inline(drawn: str, name: str, alt: str) -> str:
    element = drawn[drawn.index("<svg") :]
    element = re.sub(r"<(metadata|style)\b.*?</\1>", "", element, flags=re.DOTALL)  # a style would be the whole page's
    used = {found[2] for found in _REFERENCES.finditer(element)}
    element = _IDS.sub(lambda found: f'id="{name}-{found[1]}"' if found[1] in used else "", element)
    element = _REFERENCES.sub(rf"\g<1>{name}-\g<2>", element)
    element = element.replace(INK, "var(--ink)").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    element = element.replace(' xmlns="http://www.w3.org/2000/svg"', "").replace("xlink:href", "href")
    # The page's own letters; matplotlib has measured wider ones.
    element = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", element)
    width, height = (float(re.search(rf'{side}="([\d.]+)pt"', element)[1]) * 4 / 3 for side in ("width", "height"))
    opening = f'<svg role="img" aria-label="{escape(alt)}" width="{width:.0f}" height="{height:.0f}"'
    view = re.search(r'viewBox="[^"]+"', element)[0]
    return re.sub(r"<svg[^>]*>", lambda _: f"{opening} {view}>", element, count=1).strip()


def png(picture: Picture) -> Any:
    """A picture on white, as a logger takes it."""
    file = io.BytesIO()
    picture.figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    file.seek(0)
    return Image.open(file)
