"""A network as a module with one argument for each tensor, as graph formats want it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thaw.errors import UserError
from thaw.model.network import Network
from thaw.model.transformer_body import TransformerBody

Shapes = dict[str, dict[int, Any]]  # input → axis → how it may vary


class Images(nn.Module):
    """Normalised images (batch, channels, height, width)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return _plain(self.network(images))


class Texts(Images):
    """Tokens (batch, length), and 1 where they are no padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return _plain(self.network({"input_ids": input_ids, "attention_mask": attention_mask}))


class Pairs(Images):
    """Tokens of pairs of texts (batch, length), and to which of them each belongs."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return _plain(self.network(inputs))


class Waves(Images):
    """Waves (batch, samples), or what the network reads for them, and the real length of each (batch,)."""

    def forward(self, input_values: Tensor, lengths: Tensor) -> Any:
        return _plain(self.network({"input_values": input_values, "lengths": lengths}))


def _plain(outputs: Any) -> Any:
    return outputs if isinstance(outputs, Tensor) else tuple(outputs)


def graph(network: Network, inputs: Any) -> tuple[nn.Module, dict[str, Tensor], Shapes]:
    """(the module, its arguments of two samples, which of their axes vary)."""
    dynamic = torch.export.Dim.DYNAMIC
    named = as_named(inputs)
    kinds = {"images": Images, "input_values": Waves, "input_ids": Pairs if "token_type_ids" in named else Texts}
    kind = next(kinds[name] for name in named if name in kinds)
    extract = network.preprocessing.get("extract")
    fixed = kind is Images or (extract is not None and extract.fixed_size)
    example = {name: torch.cat([values, values])[:2].clone() for name, values in named.items()}
    shapes = {
        name: dict.fromkeys(range(1 if fixed or values.ndim == 1 else 2), dynamic) for name, values in example.items()
    }
    return kind(network).train(False), example, shapes


def as_named(inputs: Any) -> dict[str, Tensor]:
    """A batch as the graph's arguments."""
    return {"images": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def example_inputs(preprocessing: Mapping[str, Any], count: int) -> Any:
    """Random inputs of the kind that a network reads, for where no real ones are at hand."""
    generator = torch.Generator().manual_seed(0)
    if preprocessing["kind"] == "image":
        shape = (count, preprocessing["channels"], preprocessing["size"], preprocessing["size"])
        return torch.randn(shape, generator=generator)
    if preprocessing["kind"] == "text":
        tokenizer, length = preprocessing["tokenizer"], 12
        ids = torch.randint(tokenizer.vocab_size - 1, (count, length), generator=generator)
        ids += ids >= tokenizer.pad_id
        mask = torch.ones_like(ids)
        for row in range(1, count):
            mask[row, length - row % 6 :] = 0
        return {"input_ids": ids.masked_fill(mask == 0, tokenizer.pad_id), "attention_mask": mask}
    extract, rate = preprocessing["extract"], preprocessing["sampling_rate"]
    waves = [torch.randn(rate // 2 + 100 * row, generator=generator) * 0.1 for row in range(count)]
    made = [extract(wave.numpy()) if extract else (wave, len(wave)) for wave in waves]
    values = nn.utils.rnn.pad_sequence([value for value, _ in made], batch_first=True)
    return {"input_values": values, "lengths": torch.tensor([length for _, length in made])}


def refused(network: Network, form: str, error: BaseException) -> UserError:
    """A network that torch cannot trace for a format, in words."""
    kind = network.body.model.config.model_type if isinstance(network.body, TransformerBody) else type(network.body)
    name = kind if isinstance(kind, str) else kind.__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")
    return UserError(
        f"--format {form} must be of a network that torch can trace, and '{name}' is none ({reason}). "
        "Write --format safetensors."
    )
