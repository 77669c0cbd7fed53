"""Layer groups of any network of blocks, told by what runs when in one forward pass, not by names."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable

from torch import nn

from thaw.errors import UserError


def layer_groups(
    body: nn.Module, model: nn.Module, run: Callable[[], object], kind: str, blocks: str | None = None
) -> dict[str, list[str]]:
    """Names of the body's parameters as `stem, block00 …`, in forward order.

    The blocks are the list of equal modules with the most parameters. Every other parameter goes by when its module
    first runs: before the first block to the stem, after block i began to block i. A module that is never called
    (its weights are read from outside) counts as the nearest one around it that is.

    Args:
        body: the module whose parameters are grouped.
        model: the module inside it that holds the blocks; names in messages and in `blocks` are relative to it.
        run: runs the body forward once.
        kind: the model type, for messages.
        blocks: a regular expression that the names of the blocks match in full, instead of the largest list.

    Raises:
        UserError: there are no blocks, or one of them does not run exactly once, in its place.
    """
    calls = _calls(body, run)
    counts, first = Counter(calls), {key: index for index, key in reversed(list(enumerate(calls)))}

    def in_order(modules: list[nn.Module]) -> bool:
        starts = [first.get(id(module), -1) for module in modules]
        return all(counts[id(module)] == 1 for module in modules) and starts == sorted(starts)

    lists = _lists_of_equals(model)
    usable = [pattern for pattern, modules in lists.items() if in_order(modules)]
    if blocks:
        chosen = [module for name, module in model.named_modules() if re.fullmatch(blocks, name)]
    else:
        chosen = max(lists.values(), key=_size, default=[])
    if not chosen or not in_order(chosen):
        raise UserError(_refusal(kind, blocks, bool(chosen), usable))

    starts = [first[id(module)] for module in chosen]
    began: dict[int, int] = {}  # parameter → when the module that holds it first ran
    for name, module in body.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            when = _first_call(body, name, first)
            began[id(parameter)] = min(when, began.get(id(parameter), when))
    groups: dict[str, list[str]] = {"stem": []} | {f"block{index:02d}": [] for index in range(len(chosen))}
    names = list(groups)
    for name, parameter in body.named_parameters():
        groups[names[bisect_right(starts, began[id(parameter)])]].append(name)
    return groups


def _calls(body: nn.Module, run: Callable[[], object]) -> list[int]:
    calls: list[int] = []
    handles = [
        module.register_forward_pre_hook(lambda called, _: calls.append(id(called))) for module in body.modules()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _first_call(body: nn.Module, name: str, first: dict[int, int]) -> int:
    while name and id(body.get_submodule(name)) not in first:
        name = name.rpartition(".")[0]
    return first[id(body.get_submodule(name))]


def _lists_of_equals(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Pattern that matches the names of a list's modules → the modules."""
    return {
        rf"{re.escape(name)}\.\d+": list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(child) for child in module}) == 1
    }


def _size(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())


def _refusal(kind: str, blocks: str | None, found: bool, usable: list[str]) -> str:
    if blocks:
        given = f"'{blocks}' matches {'others too' if found else 'none'}"
    else:
        given = f"the largest list in '{kind}' is not one" if found else f"'{kind}' has no such list"
    advice = f"Write model.blocks='{usable[0]}'" if usable else "Choose another model, e.g. model=bert"
    others = f" (or one of {', '.join(usable[1:4])})" if usable[1:] else ""
    return f"model.blocks must be modules that each run exactly once, in order; {given}.\n{advice}{others}."
