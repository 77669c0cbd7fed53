"""Seconds of several ways to do the same, taken in turns, so that a machine that slows down slows all of them."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path("runs") / "benchmark"  # what a benchmark writes, made anew by each
# Where the data sets and the weights lie, as for scripts/experiments.py.
DATA, WEIGHTS = (Path(os.environ.get(f"THAW_{kind.upper()}", kind)).absolute() for kind in ("data", "weights"))


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Way → what it returned in each round; in every other round the ways take turns from the last to the first."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            found[name].append(ways[name]())
    return found


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def command(*words: str) -> float:
    """Seconds of a Python command that must succeed, run in the root of the project."""
    return seconds(lambda: subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL))


def table(title: str, unit: str, found: Mapping[str, Sequence[float]], reference: str, digits: int = 2) -> str:
    """A Markdown table: each way's median, its smallest and largest value, and its ratio to the reference.

    The ratio is the median over the rounds of the ratios within a round.
    """
    lines = [f"| {title} | {unit} | spread | ratio |", "|---|---|---|---|"]
    for name, values in found.items():
        spread = f"{min(values):.{digits}f} – {max(values):.{digits}f}"
        lines.append(
            f"| {name} | {statistics.median(values):.{digits}f} | {spread} | {ratio(found, name, reference):.2f} |"
        )
    return "\n".join(lines)


def ratio(found: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """The median, over the rounds, of one way's value divided by the reference's."""
    return statistics.median(a / b for a, b in zip(found[name], found[reference], strict=True))


def machine() -> str:
    """What the figures were measured on, in a line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "timm", "transformers"))
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {packages}"
