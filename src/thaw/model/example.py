"""A transformer is tried on an example before anything is built on what it seems to be."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thaw.errors import UserError, first_line
from thaw.model.network import Steps

LONG, SHORT = 8, 5  # tokens of the two example texts


def run(body: nn.Module, inputs: Any, kind: str) -> Any:
    """The output without gradient and without a trace in the random state.

    Raises:
        UserError: the network of this kind does not run on such inputs.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return body(inputs)
        except Exception as error:  # whatever a model of the library may raise
            raise UserError(
                f"model.name must run on plain inputs; '{kind}' does not ({first_line(error)}). Choose another model."
            ) from None


def text_example(vocab_size: int, pad_id: int) -> dict[str, Tensor]:
    """Two texts (2, 8) of any tokens but the padding, the second of them padded."""
    ids = torch.randint(vocab_size - 1, (2, LONG), generator=torch.Generator().manual_seed(0))
    ids += ids >= pad_id
    mask = torch.ones_like(ids)
    ids[1, SHORT:], mask[1, SHORT:] = pad_id, 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_blind_to_padding(body: nn.Module, example: Mapping[str, Tensor], kind: str) -> None:
    """Check that a text's features do not depend on what else stands in its batch.

    Raises:
        UserError: a text in a batch gives other features than alone.
    """
    batch = _values(run(body, example, kind))[1:]
    alone = _values(run(body, {key: values[1:, :SHORT] for key, values in example.items()}, kind))
    if batch.ndim == 3:
        batch = batch[:, : alone.shape[1]]
    if not _equal(batch, alone):
        raise UserError(
            f"model.name must not read padding; '{kind}' gives a text in a batch other features than alone. "
            "Choose another model, e.g. model=bert."
        )


def assert_predicts(model: nn.Module, body: nn.Module, head: nn.Module, example: Mapping[str, Tensor]) -> None:
    """Check that the network predicts each token from those before it, with the logits of the library's own model.

    Raises:
        UserError: it looks ahead, or its own head is more than one linear layer.
    """
    kind = model.config.model_type
    other = dict(example) | {"input_ids": example["input_ids"].clone()}
    other["input_ids"][0, -1] = example["input_ids"][0, 0]
    other["input_ids"][0, -2] = example["input_ids"][0, 1]
    before, after = (_values(run(body, inputs, kind))[0, :-2] for inputs in (example, other))
    if not _equal(before, after):
        raise UserError(not_causal(kind, "looks ahead"))
    expected = run(lambda inputs: model(**inputs).logits, example, kind)[0]
    with torch.no_grad():
        given = head(_values(run(body, example, kind))[0])
    if not _equal(given, expected):
        raise UserError(not_causal(kind, "has a head that is more than one linear layer"))


def not_causal(kind: str, reason: str) -> str:
    """Why this kind of network cannot do language modelling, and what to choose."""
    return f"model.name must predict each token from those before it; '{kind}' {reason}. Choose e.g. model=gpt2."


def _values(features: Tensor | Steps) -> Tensor:
    return features.values if isinstance(features, Steps) else features


def _equal(one: Tensor, other: Tensor) -> bool:
    scale = other.abs().max().clamp(min=1e-6)
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-3 * scale)
