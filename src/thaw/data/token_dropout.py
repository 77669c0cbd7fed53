"""The augmentation of text: tokens hidden at random, so that a few samples cannot be learned by heart."""

from collections.abc import Collection, Mapping
from typing import Any

import torch


class TokenDropout:
    """Hides a share of a sample's tokens behind the mask token (as in arXiv:1810.04805), or leaves them out.

    Args:
        share: of the tokens.
        mask_id: what stands in their place; None where the model has no mask token.
        special_ids: tokens that stay.
    """

    def __init__(self, share: float, mask_id: int | None, special_ids: Collection[int]) -> None:
        self.share, self.mask_id = share, mask_id
        self.special_ids = torch.tensor(sorted(special_ids), dtype=torch.int64)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        ids = torch.as_tensor(sample["input_ids"])
        hidden = (torch.rand(len(ids)) < self.share) & ~torch.isin(ids, self.special_ids)
        if self.mask_id is not None:
            return {**sample, "input_ids": ids.masked_fill(hidden, self.mask_id)}
        if hidden.all():
            hidden[0] = False
        kept = (~hidden).nonzero().flatten().tolist()
        return {
            name: [values[index] for index in kept] if isinstance(values, list) else values
            for name, values in sample.items()
        }
