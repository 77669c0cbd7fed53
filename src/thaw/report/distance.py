"""How far each layer group has moved from the weights it began with."""

from collections.abc import Mapping

import torch

from thaw.model.network import Network
from thaw.plan.drawing import group_colors
from thaw.report.evidence import Evidence
from thaw.report.ink import INK, WIDTH, panels
from thaw.report.section import Picture, Section


@torch.no_grad()
def distances(start: Network, end: Network) -> dict[str, float]:
    """Layer group → ‖w − w⁰‖ / ‖w⁰‖ over all of its parameters; 0 where nothing has moved."""
    found = {}
    for (group, before), after in zip(start.groups.items(), end.groups.values(), strict=True):
        moved = torch.stack([(after[name].float() - before[name].float()).norm() for name in before]).norm()
        size = torch.stack([parameter.float().norm() for parameter in before.values()]).norm()
        found[group] = float(moved / size) if moved else 0.0
    return found


def distance(evidence: Evidence) -> Section | None:
    """Relative distances, with the update of adapters added to the weights beside them."""
    start, end = evidence.merged
    found = distances(start, end)
    new = {"head": found.pop("head")} if start.new_head and "head" in found else {}
    if not found:
        return None
    origin = "pretrained" if start.pretrained else "first, random"
    text = [
        f"‖w − w⁰‖ / ‖w⁰‖ over all parameters of a layer group: w⁰ are its {origin} weights, w those of the best epoch."
    ]
    if end is not evidence.module.network:
        text[0] += " The updates of the adapters are added to the weights beside them."
    text += [f"The head began at random, and has moved by {share(value)} of its first norm." for value in new.values()]
    return Section(f"Distance from the {origin} weights", text, pictures=[_draw(found, origin)])


def share(value: float) -> str:
    """Of a whole, with two figures that count."""
    return "0 %" if not value else f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.0f} %"


def _draw(found: Mapping[str, float], origin: str) -> Picture:
    figure, axes = panels(WIDTH, min(0.8 + 0.3 * len(found), 8.0))
    colors = group_colors(len(found) + 1)[: len(found)]
    axes.barh(list(found), list(found.values()), color=colors, height=0.7)
    for number, value in enumerate(found.values()):
        axes.annotate(
            share(value), (value, number), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
    axes.set_xlim(0, max(max(found.values()) * 1.16, 1e-9))
    axes.xaxis.set_major_formatter(lambda value, _: share(value))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.22, color=INK)
    far = max(found, key=found.get)
    still = [group for group, value in found.items() if not value]
    alt = f"Relative distance of {len(found)} layer groups from their {origin} weights: the farthest is {far} with "
    alt += f"{share(found[far])}" + (f"; {', '.join(still)} did not move" if still else "") + "."
    return Picture(figure, alt, "What stayed frozen has not moved at all." if still else "")
