"""Language, speech and image networks: a model of the transformers library as a Network, from a folder or the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from pydantic import AfterValidator, Field

from thaw.errors import UserError
from thaw.model.example import assert_blind_to_padding, assert_predicts, run, text_example
from thaw.model.gradient_checkpointing import checkpoint_activations
from thaw.model.image_processor import image_preprocessing
from thaw.model.layer_groups import layer_groups
from thaw.model.network import Head, Network, Steps
from thaw.model.speech_features import speech_features
from thaw.model.tokenizer import assert_fits, byte_tokenizer, max_length, pretrained_tokenizer
from thaw.model.transformer_body import Pool, TransformerBody, headless
from thaw.model.transformers_config import checkpoint_config, main_input, type_config
from thaw.model.transformers_weights import assert_filled, load_model

# Published fine-tuning of BERT, ViT and wav2vec2 uses 2e-5 to 1e-4 at one rate for all; as the rate of the last block,
# below a new head, its upper end is safe, and layer decay brings the lower blocks to its lower end.
LR = 1e-4

# Loading bars and reports are silenced; what is downloaded still shows how far it is.
_hub_bars = not are_progress_bars_disabled()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
if _hub_bars:
    enable_progress_bars()


def _known_name(name: str) -> str:
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return str(folder)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(
            "must be an existing folder, a Hub name or a model type",
            "Write the folder that holds config.json, or e.g. google-bert/bert-base-uncased.",
        )
    return name


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})", r"Write e.g. 'encoder\.layer\.\d+'.") from None
    return pattern


def transformers_network(
    name: Annotated[str, AfterValidator(_known_name)],
    num_outputs: int | None = None,
    weights: Literal["pretrained", "none"] = "pretrained",
    pool: Pool = "mean",
    per_step: bool = False,
    head: Literal["new", "pretrained"] = "new",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    blocks: Annotated[str, AfterValidator(_regular_expression)] | None = None,
    gradient_checkpointing: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Network:
    """A transformer without its own head (of an encoder-decoder the encoder), under a new head of one linear layer.

    Args:
        name: a folder, a Hub name, or with `weights: none` also a model type of the library such as `bert`.
        num_outputs: width of the new head.
        weights: `pretrained` (folder, local cache, then the Hub; safetensors only) or `none`.
        pool: how the steps (batch, steps, width) become one vector (batch, width): over real steps alone.
        per_step: whether to give an output for each token or frame, as Steps.
        head: `new`, or `pretrained` for the checkpoint's own head of causal language modelling, for each token.
        dropout: share of the new head's inputs dropped in training.
        blocks: a regular expression for the names of the blocks, where the largest list of equal modules is not it.
        gradient_checkpointing: compute activations anew in the backward pass: less memory for more time.
        options: fields of the model's configuration that shall differ, e.g. `{attention_dropout: 0.1}`.

    Raises:
        UserError: weights, tokenizer or configuration cannot be had or do not fit, or the network has no layer groups.
    """
    name, options = _known_name(name), dict(options or {})
    causal = head == "pretrained"
    from_type = weights == "none" and name in transformers.CONFIG_MAPPING and not Path(name).is_dir()
    config = type_config(name, options) if from_type else checkpoint_config(name, weights, options)
    kind, key = config.model_type, main_input(config, causal)

    tokenizer = extract = None
    if key == "input_ids":
        token_types = getattr(config, "type_vocab_size", 0) > 1
        tokenizer = byte_tokenizer(token_types) if from_type else pretrained_tokenizer(name)
    elif key != "pixel_values":
        extract = speech_features(None if from_type else name, config, key)
    model, missing = load_model(name, config, weights, causal)
    inner = headless(model, encoder_only=config.is_encoder_decoder)
    assert_filled(model, inner, missing, name)
    if extract and not extract.fixed_size and not hasattr(inner, "_get_feat_extract_output_lengths"):
        raise UserError(f"model.name must tell its real frames; '{kind}' does not. Choose e.g. model=wav2vec2.")
    body = TransformerBody(inner, key, pool, per_step or causal, mask_waveform=bool(extract and extract.masked))

    if tokenizer:
        assert_fits(tokenizer, model)
        model.config.pad_token_id = tokenizer.pad_id
        preprocessing = {"kind": "text", "tokenizer": tokenizer, "max_length": max_length(tokenizer, inner)}
        example: Any = text_example(tokenizer.vocab_size, tokenizer.pad_id)
    elif extract:
        preprocessing = {"kind": "waveform", "sampling_rate": extract.extractor.sampling_rate, "extract": extract}
        values, length = run(extract, np.sin(np.arange(4 * extract.shortest)), kind)
        example = {"input_values": values[None], "lengths": torch.tensor([length])}
    else:
        preprocessing = image_preprocessing(None if from_type else name, config)
        example = torch.zeros(1, preprocessing["channels"], preprocessing["size"], preprocessing["size"])

    body.train(False)
    outputs: list[Any] = []
    groups = layer_groups(body, inner, lambda: outputs.append(run(body, example, kind)), kind, blocks)
    if gradient_checkpointing:
        checkpoint_activations(inner, name)
    if tokenizer:
        assert_blind_to_padding(body, example, kind)
    if causal:
        own = Head(model.get_output_embeddings())
        assert_predicts(model, body, own, example)
        return Network(body, own, groups, preprocessing, lr=LR, new_head=False, pretrained=weights != "none")
    if num_outputs is None:
        raise ValueError("num_outputs must be given for a new head.")
    width = (outputs[0].values if isinstance(outputs[0], Steps) else outputs[0]).shape[-1]
    return Network(
        body, Head.new(width, num_outputs, dropout), groups, preprocessing, lr=LR, pretrained=weights != "none"
    )
