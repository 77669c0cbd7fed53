"""Digests of parameters and statistics, to see that what is frozen does not move and that all ranks hold the same."""

import hashlib

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from thaw.distributed import gathered
from thaw.errors import FreezeContractError
from thaw.model.network import Network


def digests(network: Network, frozen: bool = False) -> dict[str, bytes]:
    """Name → digest of each parameter, and of each statistic that the network keeps.

    Args:
        frozen: only of the parameters that require no gradient and of the statistics of modules in eval mode.
    """
    found = {name: p for name, p in network.named_parameters() if not (frozen and p.requires_grad)}
    for prefix, module in network.named_modules():
        if not (frozen and module.training):
            found |= {f"{prefix}.{name}": held for name, held in module.named_buffers(recurse=False)}
    return {name: _digest(held) for name, held in found.items()}


def _digest(tensor: Tensor) -> bytes:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    plain = whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(plain.numpy(), digest_size=8).digest()


def assert_unmoved(network: Network, before: dict[str, bytes]) -> None:
    """Check that what was frozen is still the same, bit for bit.

    Raises:
        FreezeContractError: it is not.
    """
    now = digests(network) if before else {}
    if moved := [name for name, digest in before.items() if now.get(name) != digest]:
        raise FreezeContractError(f"'{moved[0]}' moved although it is frozen ({len(moved)} such).")


def assert_ranks_equal(network: Network) -> str:
    """Check that all processes hold the same parameters and statistics, bit for bit; return the digest of them all.

    Raises:
        FreezeContractError: they do not, on every rank.
    """
    mine = digests(network)
    every = gathered([mine])
    for rank, theirs in enumerate(every):
        if different := [name for name in every[0] if theirs.get(name) != every[0][name]]:
            raise FreezeContractError(
                f"Rank {rank} holds another '{different[0]}' than rank 0 ({len(different)} such)."
            )
    return hashlib.blake2b(b"".join(mine.values()), digest_size=8).hexdigest()
