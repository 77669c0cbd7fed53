"""Layer groups as a partition: every parameter in one of them, and the modules that are wholly within one."""

from collections.abc import Collection, Iterable, Mapping

from torch import nn


def group_around(network: nn.Module, name: str, groups: Mapping[int, tuple[str, str]]) -> str:
    """The layer group of the nearest parameter around one that is new."""
    while name:
        name = name.rpartition(".")[0]
        for parameter in network.get_submodule(name).parameters():
            if id(parameter) in groups:
                return groups[id(parameter)][0]
    raise ValueError("A network without parameters has no layer groups.")


def assert_partition(groups: Mapping[str, Iterable[str]], parameters: Iterable[str]) -> None:
    """Every parameter must stand in exactly one layer group.

    Raises:
        ValueError: one does not, which is named.
    """
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name in seen:
                raise ValueError(f"Parameter '{name}' stands in two layer groups, '{seen[name]}' and '{group}'.")
            seen[name] = group
    expected = set(parameters)
    if missing := sorted(expected - seen.keys()):
        raise ValueError(f"Parameter '{missing[0]}' stands in no layer group ({len(missing)} such).")
    if extra := sorted(seen.keys() - expected):
        raise ValueError(f"Group '{seen[extra[0]]}' names '{extra[0]}', which the network does not have.")


def modules_within(module: nn.Module, ids: Collection[int]) -> list[nn.Module]:
    """The outermost modules whose parameters, told by their ids, are all among these."""
    found: list[nn.Module] = []
    for child in module.children():
        own = {id(parameter) for parameter in child.parameters()}
        found += [child] if own and own <= set(ids) else modules_within(child, ids)
    return found
