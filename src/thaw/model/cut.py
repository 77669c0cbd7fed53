"""A network's forward pass in two: what stays frozen, up to a group boundary, and the rest from there on."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thaw.model.modes import active_dropout
from thaw.model.network import Network, Steps

Inputs = Tensor | Mapping[str, Tensor]


class NoCutError(Exception):
    """Why a forward pass cannot be cut there, in words."""


class _Reached(BaseException):
    """Ends a forward pass at the cut, through whatever a library catches."""


class Cut:
    """The end of a network's first layer groups as a place to stop, and to go on from without running them again.

    In the second part every module of these groups is silent: the last one returns the activations, all others NaN of
    the shape they had. So a network that is no chain there, in which something passes by the cut, cannot give a wrong
    answer but only NaN, and is refused.

    Args:
        groups: the layer groups before the cut, the first ones of the network.
        inputs: a batch as the network reads it, on which the cut is proven: both parts together must give the features
            of the whole, bit for bit on a CPU.

    Raises:
        NoCutError: they do not, or the modules of these groups do not all run before those of the others, once each.
    """

    def __init__(self, network: Network, groups: Collection[str], inputs: Inputs) -> None:
        self._body, self._laid_out = network.body, network.laid_out
        if not isinstance(inputs, Tensor) and "attention_mask" not in inputs:
            raise NoCutError("sound has steps that are no samples")
        small, large = sized(inputs, 2, 3), sized(inputs, 3, 5)
        if small is None or large is None:
            raise NoCutError("a batch is too small to try it")
        before = {id(p) for name in groups for p in network.groups[name].values()}
        training = network.training
        draws = {module for module in self._body.modules() if active_dropout(module)}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.train(False)  # no statistic moves
            try:
                calls = [self._calls(before, batch) for batch in (small, large)]
                self.modules, free = self._silent(*(list(map(_first, each)) for each in calls), before)
                if active := [m for module in [*self.modules, *free] for m in module.modules() if m in draws]:
                    raise NoCutError(f"{type(active[0]).__name__} draws at random before it")
                laws = _laws(*calls, *(_sizes(batch) for batch in (small, large)))
                # What has no weights, as activations do, is silent too, unless the rest reads it (rotary positions).
                for silent in ([*self.modules[:-1], *free], self.modules[:-1]):
                    self._silenced = {module: laws[module] for module in silent if module in laws}
                    if all(self._holds(batch) for batch in (small, large)):
                        return
            finally:
                network.train(training)
        raise NoCutError("something passes by it")

    def before(self, inputs: Inputs) -> Tensor:
        """The activations (batch, …) at the cut, without gradient."""
        found: list[Tensor] = []

        def stop(module: nn.Module, arguments: Any, output: Tensor) -> None:
            found.append(output)
            raise _Reached

        handle = self.modules[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                self._body(self._laid_out(inputs))
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    def after(self, activations: Tensor, inputs: Inputs | None) -> Tensor | Steps:
        """The body's features from the activations on.

        Args:
            inputs: of which masks and the like are still read; None where they are one tensor, of which nothing is.
        """
        activations = self._laid_out(activations)
        nothing = activations.new_full((), torch.nan)
        sizes = {"batch": len(activations)}
        if isinstance(inputs, Mapping):
            sizes = _sizes(inputs)
        else:
            inputs = nothing.expand(len(activations), *self._input_shape)
        given: dict[nn.Module, Callable[..., Any]] = {self.modules[-1]: lambda *_, **__: activations}
        for module, law in self._silenced.items():
            silent = nothing.expand([sizes.get(size, size) for size in law])
            given[module] = lambda *_, silent=silent, **__: silent
        with _instead(given):
            return self._body(inputs)

    def _holds(self, inputs: Inputs) -> bool:
        self._input_shape = inputs.shape[1:] if isinstance(inputs, Tensor) else None
        try:
            whole, parts = self._body(self._laid_out(inputs)), self.after(self.before(inputs), inputs)
        except Exception:  # a module that cannot do with what it is given in place of what it expects
            return False
        pairs = list(zip(whole, parts, strict=True)) if isinstance(whole, Steps) else [(whole, parts)]
        return all(equal(one, other) for one, other in pairs)

    def _calls(self, before: Collection[int], inputs: Inputs) -> list[tuple[nn.Module, Any]]:
        """The outermost modules that belong to one side whole, or have no weights: (module, output), as they run."""
        calls: list[tuple[nn.Module, Any]] = []
        handles = [
            module.register_forward_hook(lambda called, _, output: calls.append((called, output)))
            for module in _one_sided(self._body, before)
        ]
        try:
            self._body(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def _silent(
        self, small: Sequence[nn.Module], large: Sequence[nn.Module], before: Collection[int]
    ) -> tuple[list[nn.Module], list[nn.Module]]:
        """The modules before the cut in the order they run; and those without weights that run before the last one."""
        if small != large:
            raise NoCutError("what runs depends on the batch")
        counts = Counter(small)
        sides = [_side(module, before) for module in small]
        if "before" not in sides:
            raise NoCutError("no whole module lies before it")
        last = len(sides) - 1 - sides[::-1].index("before")
        if "after" in sides[:last]:
            raise NoCutError("a later layer group runs before it")
        first = [module for module, side in zip(small, sides, strict=True) if side == "before"]
        if any(counts[module] > 1 for module in first):
            raise NoCutError("a module before it runs more than once")
        return first, [module for module in small[:last] if _side(module, before) == "free" and counts[module] == 1]


def _first(pair: tuple[nn.Module, Any]) -> nn.Module:
    return pair[0]


def _side(module: nn.Module, before: Collection[int]) -> str:
    own = [id(parameter) in before for parameter in module.parameters()]
    return "free" if not own else "before" if all(own) else "mixed" if any(own) else "after"


def _one_sided(module: nn.Module, before: Collection[int]) -> Iterator[nn.Module]:
    for child in module.children():
        if _side(child, before) == "mixed":
            yield from _one_sided(child, before)
        elif type(child).forward is not nn.Module.forward:
            yield child
        else:  # a list of modules, which is never called itself
            yield from _one_sided(child, before)


def sized(inputs: Inputs, count: int, length: int) -> Inputs | None:
    """The first `count` samples of a batch, of a text the first `length` tokens; None where there are not so many."""
    if isinstance(inputs, Tensor):
        return inputs[:count] if len(inputs) >= count else None
    cut = {name: values[:count, :length] if values.ndim > 1 else values[:count] for name, values in inputs.items()}
    enough = all(len(values) == count and (values.ndim == 1 or values.shape[1] == length) for values in cut.values())
    return cut if enough else None


def _sizes(inputs: Inputs) -> dict[str, int]:
    if isinstance(inputs, Tensor):
        return {"batch": len(inputs)}
    return {"batch": len(inputs["attention_mask"]), "length": inputs["attention_mask"].shape[1]}


def _laws(
    small: Sequence[tuple[nn.Module, Any]],
    large: Sequence[tuple[nn.Module, Any]],
    small_sizes: Mapping[str, int],
    large_sizes: Mapping[str, int],
) -> dict[nn.Module, list[int | str]]:
    """Module → its output's shape, where sizes that follow the batch have their name; of those that return a tensor."""
    laws: dict[nn.Module, list[int | str]] = {}
    for (module, one), (_, other) in zip(small, large, strict=True):
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point()):
            continue
        law: list[int | str] = []
        for here, there in zip(one.shape, other.shape, strict=False):
            names = [name for name in small_sizes if (here, there) == (small_sizes[name], large_sizes[name])]
            law += [here] if here == there else names[:1]
        if len(law) == one.ndim == other.ndim:
            laws[module] = law
    return laws


@contextlib.contextmanager
def _instead(given: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let these modules return something else for a while."""
    own = {module: vars(module)["forward"] for module in given if "forward" in vars(module)}
    try:
        for module, forward in given.items():
            module.forward = forward
        yield
    finally:
        for module in given:
            del module.forward
        for module, forward in own.items():
            module.forward = forward


def equal(one: Tensor, other: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two tensors hold the same: bit for bit on a CPU, elsewhere to a share of their largest value."""
    if one.shape != other.shape or one.device.type == "cpu":
        return torch.equal(one, other)
    scale = one.float().abs().max().clamp(min=1e-6)
    return bool((one.float() - other.float()).abs().max() <= tolerance * scale)
