"""A bar for what takes long before a run has a screen of its own."""

from collections.abc import Iterable
from typing import Any

from rich import progress


def bar(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """The items, with a bar that tells how many are done, and is gone after the last."""
    return progress.track(items, description, total, transient=True)
