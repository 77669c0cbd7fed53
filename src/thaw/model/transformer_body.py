"""A transformer as a headless body: inputs in, one vector for each sample or for each step out."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thaw.model.image_processor import processor_config
from thaw.model.network import Steps

Pool = Literal["mean", "first", "last"]


def pooled(values: Tensor, lengths: Tensor, pool: Pool) -> Tensor:
    """One vector (batch, width) for each sample, from its real steps alone.

    Args:
        values: (batch, steps, width).
        lengths: real steps of each sample (batch,), at least 1.
        pool: the mean of the real steps, the first, or the last real one.
    """
    if pool == "first":
        return values[:, 0]
    if pool == "last":
        return values[torch.arange(len(values), device=values.device), lengths - 1]
    # Filled, not multiplied by zero: whatever stands in the padding, a NaN too, stays out of the sum.
    return values.masked_fill(~real_steps(lengths, values.shape[1])[..., None], 0).sum(1) / lengths[:, None]


def real_steps(lengths: Tensor, steps: int) -> Tensor:
    """Mask (batch, steps) of the first `lengths` steps."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


class TransformerBody(nn.Module):
    """A transformer whose last hidden states become features in float32.

    Args:
        model: a model of the transformers library, without head and pooler.
        key: the name of its main input.
        pool: how the steps of a sample become one vector.
        per_step: whether features are Steps (batch, steps, width) instead of (batch, width).
        mask_waveform: whether the model is told which samples of a waveform are padding.
    """

    def __init__(
        self, model: nn.Module, key: str, pool: Pool = "mean", per_step: bool = False, mask_waveform: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.key, self.pool, self.per_step, self.mask_waveform = key, pool, per_step, mask_waveform
        self._takes = frozenset(inspect.signature(model.forward).parameters)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor | Steps:
        arguments, lengths = self._read(inputs)
        values = self.model(**arguments).last_hidden_state.to(next(self.model.parameters()).dtype)
        if values.ndim == 4:  # a map (batch, width, rows, columns), as convolutional networks return it
            values = values.flatten(2).transpose(1, 2)
        steps = values.shape[1]
        lengths = values.new_full((len(values),), steps) if lengths is None else lengths
        lengths = lengths.long().clamp(1, steps)
        return Steps(values, lengths) if self.per_step else pooled(values, lengths, self.pool)

    def save_files(self, folder: Path, preprocessing: Mapping[str, Any]) -> None:
        """Write what the library reads the configuration, and what prepares the inputs, from."""
        self.model.config.save_pretrained(folder)
        if preprocessing["kind"] == "text":
            preprocessing["tokenizer"].save(folder)
        elif preprocessing["kind"] == "waveform":
            preprocessing["extract"].extractor.save_pretrained(folder)
        else:
            (folder / "preprocessor_config.json").write_text(
                json.dumps(processor_config(preprocessing), indent=2) + "\n"
            )

    def _read(self, inputs: Tensor | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The model's arguments, and the real steps of its output; None where all of them are real."""
        if isinstance(inputs, Tensor):
            return {self.key: inputs}, None
        if "lengths" not in inputs:
            return {name: inputs[name] for name in inputs if name in self._takes}, inputs["attention_mask"].sum(1)
        values, lengths = inputs["input_values"], inputs["lengths"]
        arguments = {self.key: values}
        if self.mask_waveform:
            arguments["attention_mask"] = real_steps(lengths, values.shape[1]).long()
        output_lengths = getattr(self.model, "_get_feat_extract_output_lengths", None)
        return arguments, output_lengths(lengths) if output_lengths else None


def headless(model: nn.Module, encoder_only: bool = False) -> nn.Module:
    """The part of a library's model that makes features, with nothing in it that never trains.

    Args:
        model: a model of the transformers library, with or without a head.
        encoder_only: whether it is an encoder-decoder, of which the encoder is wanted.
    """
    body = model.get_encoder() if encoder_only else model.base_model
    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = nn.Identity()
    if hasattr(body, "masked_spec_embed") and not getattr(body.config, "apply_spec_augment", True):
        del body.masked_spec_embed
    # What the library holds fixed on purpose (Whisper's sinusoids) must not thaw with its group.
    for module in body.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, key)
                module.register_buffer(key, parameter.data)
    return body
