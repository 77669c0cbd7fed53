"""Digests of parameters and statistics, to see that what is frozen does not move and that all ranks hold the same."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thaw.distributed import gathered
from thaw.errors import FreezeContractError
from thaw.model.network import Network


def digests(module: nn.Module) -> dict[str, bytes]:
    """Name → digest of each parameter, and of each statistic that it keeps."""
    held = [*module.named_parameters(), *((name, held) for name, held, _ in _statistics(module))]
    return {name: _digest(tensor) for name, tensor in held}


def frozen(network: Network) -> list[str]:
    """Names of the parameters that require no gradient and of the statistics of modules in eval mode."""
    parameters = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    return parameters + [name for name, _, module in _statistics(network) if not module.training]


def _statistics(network: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    for prefix, module in network.named_modules():
        for name, held in module.named_buffers(recurse=False):
            yield f"{prefix}.{name}", held, module


def _digest(tensor: Tensor) -> bytes:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    plain = whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(plain.numpy(), digest_size=8).digest()


def assert_unmoved(now: Mapping[str, bytes], before: Mapping[str, bytes]) -> None:
    """Check that what was frozen is still the same, bit for bit.

    Args:
        now: digests of all.
        before: of what was frozen.

    Raises:
        FreezeContractError: it is not.
    """
    if moved := [name for name, digest in before.items() if now.get(name) != digest]:
        raise FreezeContractError(f"'{moved[0]}' moved although it is frozen ({len(moved)} such).")


def assert_ranks_equal(mine: Mapping[str, bytes]) -> str:
    """Check that all processes hold the same parameters and statistics, bit for bit; return the digest of them all.

    Args:
        mine: digests of all that this process holds.

    Raises:
        FreezeContractError: they do not, on every rank.
    """
    every = gathered([mine])
    for rank, theirs in enumerate(every):
        if different := [name for name in every[0] if theirs.get(name) != every[0][name]]:
            raise FreezeContractError(
                f"Rank {rank} holds another '{different[0]}' than rank 0 ({len(different)} such)."
            )
    return hashlib.blake2b(b"".join(mine.values()), digest_size=8).hexdigest()
