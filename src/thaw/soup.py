"""The mean of several fine-tuned networks' weights: the greedy soup (arXiv:2203.05482)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thaw.errors import UserError
from thaw.interpolation import interpolate
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.restore import read_run, restore
from thaw.run.run import read_record

# What must be the same for weights to have a mean: settings, by section.
SAME = {"model": ("_target_", "name", "weights"), "task": ("_target_",), "data": ("_target_",)}


@dataclass
class Ingredient:
    """One checkpoint, in the order in which they are tried.

    Args:
        alone: its own value of the validation metric, as its run measured it.
        together: the value of the soup with it.
    """

    run: str
    role: str
    alone: float
    together: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class Soup:
    """What was kept, and the test metrics of the soup and of its best ingredient; none where there is no test split."""

    metric: str
    order: list[Ingredient]
    test: dict[str, dict[str, float]]


def runs_in(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(finished runs, runs left out): each place is a run, or a folder of runs whose unfinished ones are left out.

    Raises:
        UserError: a place without runs.
    """
    found: list[Path] = []
    left_out: list[Path] = []
    for place in places:
        inside = [] if read_record(place) else sorted(path.parent for path in place.glob("*/run.json"))
        finished = [path for path in inside if (read_record(path) or {}).get("status") == "finished"]
        left_out += [path for path in inside if path not in finished]
        found += finished or [place]
    return list(dict.fromkeys(found)), left_out


def greedy_soup(runs: Sequence[Path], out: Path) -> Soup:
    """Add checkpoints in the order of their validation metric, keep each that does not lower the soup's, and write
    `soup.ckpt` and `soup.json` into `out`.

    Args:
        runs: finished runs, each with its `best`; of a single one, its `best` and its `last`.

    Raises:
        UserError: no finished run, or runs whose network, data or task differ.
    """
    read = {run: read_run(run) for run in runs}
    for run in runs[1:]:
        _assert_same(runs[0], read[runs[0]], run, read[run])
    pairs = [(run, "best") for run in runs] if len(runs) > 1 else [(runs[0], "best"), (runs[0], "last")]
    restored = restore(runs[0], weights=False)
    sign = 1 if restored.mode == "max" else -1

    def rank(value: float) -> float:
        return -math.inf if math.isnan(value) else sign * value

    order = [Ingredient(str(run), role, _load(run, role)["metrics"][restored.metric]) for run, role in pairs]
    order.sort(key=lambda ingredient: -rank(ingredient.alone))
    best = soup = None
    value, kept = math.nan, 0
    for ingredient in order:
        state = _load(Path(ingredient.run), ingredient.role)["state_dict"]
        mixed = state if soup is None else interpolate(soup, state, 1 / (kept + 1))
        ingredient.together = restored.measure(mixed, "val")[restored.metric]
        if soup is None or rank(ingredient.together) >= rank(value):
            ingredient.kept, soup, value, kept = True, mixed, ingredient.together, kept + 1
        best = best or state

    measured = {"soup": soup, "best single": best} if "test" in restored.data.splits else {}
    test = {name: restored.measure(state, "test") for name, state in measured.items()}
    result = Soup(restored.metric, order, test)
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": soup, "hyper_parameters": dict(restored.settings), "metrics": {restored.metric: value}},
        out / "soup.ckpt",
    )
    (out / "soup.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _load(run: Path, role: str) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / f"{role}.ckpt")


def _assert_same(first: Path, one: tuple[Mapping, Mapping], second: Path, other: tuple[Mapping, Mapping]) -> None:
    (record, settings), (other_record, other_settings) = one, other
    differ = [
        f"{section}.{name} ({settings[section].get(name)}, {other_settings[section].get(name)})"
        for section, names in SAME.items()
        for name in names
        if settings[section].get(name) != other_settings[section].get(name)
    ]
    if settings.get("monitor") != other_settings.get("monitor"):
        differ.append(f"monitor ({settings.get('monitor')}, {other_settings.get('monitor')})")
    if record["data"]["classes"] != other_record["data"]["classes"]:
        differ.append("the classes")
    elif record["data"]["fingerprint"] != other_record["data"]["fingerprint"]:
        differ.append("which samples stand in which split (another seed splits anew where the data has no splits)")
    if differ:
        raise UserError(
            f"A soup must be of runs of one network on the same data and task; '{second}' differs from '{first}' in "
            f"{', '.join(differ)}."
        )
