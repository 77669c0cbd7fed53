"""Language, speech and image networks: a model of the transformers library as a Network, from a folder or the Hub."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from pydantic import AfterValidator, Field
from safetensors import SafetensorError
from torch import nn

from thaw.errors import UserError, did_you_mean, first_line
from thaw.model.example import assert_blind_to_padding, assert_predicts, not_causal, run, text_example
from thaw.model.hub import from_cache_or_hub
from thaw.model.layer_groups import layer_groups
from thaw.model.network import Head, Network, Steps
from thaw.model.speech_features import speech_features
from thaw.model.tokenizer import assert_fits, byte_tokenizer, max_length, pretrained_tokenizer
from thaw.model.transformer_body import Pool, TransformerBody, headless

# Published fine-tuning of BERT, ViT and wav2vec2 uses 2e-5 to 1e-4 at one rate for all; as the rate of the last block,
# below a new head, its upper end is safe, and layer decay brings the lower blocks to its lower end.
LR = 1e-4

# What a network does at random in its midst would reach frozen blocks as well, and masking crashes on short sound;
# a cache of keys serves generation alone.
CALM = {
    # field: (a field that tells whether the model does such things, value)
    "apply_spec_augment": ("mask_time_prob", False),
    "layerdrop": ("layerdrop", 0.0),
    "use_cache": ("use_cache", False),
}

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers

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
        options: fields of the model's configuration that shall differ, e.g. `{attention_dropout: 0.1}`.

    Raises:
        UserError: weights, tokenizer or configuration cannot be had or do not fit, or the network has no layer groups.
    """
    name, options = _known_name(name), dict(options or {})
    causal = head == "pretrained"
    from_type = weights == "none" and name in transformers.CONFIG_MAPPING and not Path(name).is_dir()
    config = _type_config(name, options) if from_type else _file_config(name, weights, options)
    kind, key = config.model_type, _assert_supported(config, causal)
    for field, (sign, value) in CALM.items():
        if hasattr(config, sign) and field not in options:
            setattr(config, field, value)

    tokenizer = extract = None
    if key == "input_ids":
        token_types = getattr(config, "type_vocab_size", 0) > 1
        tokenizer = byte_tokenizer(token_types) if from_type else pretrained_tokenizer(name)
    elif key != "pixel_values":
        extract = speech_features(None if from_type else name, config, key)
    model, missing = _model(name, config, weights, causal)
    inner = headless(model, encoder_only=config.is_encoder_decoder)
    _assert_filled(model, inner, missing, name)
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
        preprocessing = _image_preprocessing(name, config, from_type)
        example = torch.zeros(1, preprocessing["channels"], preprocessing["size"], preprocessing["size"])

    body.train(False)
    outputs: list[Any] = []
    groups = layer_groups(body, inner, lambda: outputs.append(run(body, example, kind)), kind, blocks)
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


def _type_config(name: str, options: dict[str, Any]) -> Any:
    default = transformers.AutoConfig.for_model(name)
    own = {}
    if getattr(_model_class(default), "main_input_name", "") == "input_ids":
        own = {"vocab_size": byte_tokenizer().vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return _with_options(default, options, lambda: transformers.AutoConfig.for_model(name, **(own | options)))


def _file_config(name: str, weights: str, options: dict[str, Any]) -> Any:
    folder = Path(name).is_dir()
    if folder and not (Path(name) / "config.json").is_file():
        raise UserError(f"model.name must be a folder with config.json and the weights; '{name}' has no config.json.")
    try:
        load = partial(transformers.AutoConfig.from_pretrained, name, trust_remote_code=False)
        config = from_cache_or_hub(load, name)
    except UserError:
        if weights == "none" and "/" not in name:
            meant = did_you_mean(name, transformers.CONFIG_MAPPING)
            raise UserError(f"model.name must be a model type, a folder or a Hub name; got '{name}'. {meant}") from None
        raise
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"model.name must have a config.json with a model type that transformers {transformers.__version__} knows; "
            f"that of '{name}' has not ({first_line(error)}).\nCode that comes with a checkpoint is never run."
        ) from None
    return _with_options(config, options, lambda: type(config).from_dict(config.to_dict() | options))


def _with_options(config: Any, options: dict[str, Any], make: Callable[[], Any]) -> Any:
    known = {*config.to_dict(), *getattr(config, "attribute_map", {})}
    known |= {field for field, (sign, _) in CALM.items() if sign in known}
    if unknown := [field for field in options if field not in known]:
        meant = did_you_mean(unknown[0], sorted(known))
        raise UserError(
            f"model.options must be fields of the configuration of '{config.model_type}'; got '{unknown[0]}'. {meant}"
        )
    try:
        return make()
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.options must suit '{config.model_type}': {reason}. Got {options}.") from None


def _model_class(config: Any) -> Any:
    found = transformers.MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple | list) else found


def _assert_supported(config: Any, causal: bool) -> str:
    """The name of the model's main input."""
    kind, model = config.model_type, _model_class(config)
    parts = [part for part in config.sub_configs if getattr(config, part, None) is not None]
    if parts or model is None:
        given = " and ".join(parts) or "no plain body"
        raise UserError(
            f"model.name must be one network with one input; '{kind}' has {given}. Choose another, e.g. model=bert."
        )
    key = model.main_input_name
    if key not in ("input_ids", "pixel_values", "input_values", "input_features"):
        raise UserError(f"model.name must read text, sound or images; '{kind}' reads {key}. Choose e.g. model=bert.")
    predicts = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if causal and (key != "input_ids" or not predicts or config.is_encoder_decoder):
        raise UserError(not_causal(kind, "has no causal language model"))
    return key


def _model(name: str, config: Any, weights: str, causal: bool) -> tuple[nn.Module, set[str]]:
    """The library's model, and the names of its tensors that the checkpoint does not have."""
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    # fp16 and bf16 checkpoints become float32 master weights; mixed precision is the trainer's business.
    arguments: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}
    if not causal and "add_pooling_layer" in inspect.signature(_model_class(config).__init__).parameters:
        arguments["add_pooling_layer"] = False
    try:
        if weights == "none":
            return kind.from_config(config, **arguments), set()
        arguments |= {"config": config, "use_safetensors": True, "output_loading_info": True}
        load = partial(kind.from_pretrained, name, ignore_mismatched_sizes=True, **arguments)
        model, found = from_cache_or_hub(load, name)
    except SafetensorError as error:
        raise UserError(
            f"model.name must hold readable safetensors; those of '{name}' are damaged ({first_line(error)}). "
            "Copy or download them again."
        ) from None
    except OSError as error:
        others = sorted(path.name for path in Path(name).glob("*.bin"))
        given = f"has only {others[0]}, a format that can run code" if others else f"has none ({first_line(error)})"
        advice = "Save it again with save_pretrained, or choose another checkpoint."
        raise UserError(f"model.name must be a folder with model.safetensors; '{name}' {given}. {advice}") from None
    except (ValueError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"model.options must suit '{config.model_type}': {reason}. Leave out what does not.") from None
    if wrong := sorted(key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]):
        raise UserError(_misfit(name, wrong, "has another shape"))
    return model, set(found["missing_keys"])


def _misfit(name: str, tensors: list[str], how: str) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return (
        f"model.weights=pretrained must fill the whole network; in '{name}' {tensors[0]}{more} {how}.\n"
        "Leave out model.options that change its size, or choose another checkpoint."
    )


def _assert_filled(model: nn.Module, body: nn.Module, missing: set[str], name: str) -> None:
    absent = {id(tensor): key for key, tensor in model.state_dict(keep_vars=True).items() if key in missing}
    used = [*body.state_dict(keep_vars=True).values(), *(model.get_output_embeddings() or nn.Identity()).parameters()]
    lost = {absent[id(tensor)] for tensor in used if id(tensor) in absent}
    if lost := sorted(key for key in lost if not key.endswith("masked_spec_embed")):
        raise UserError(_misfit(name, lost, "is missing"))


def _image_preprocessing(name: str, config: Any, from_type: bool) -> dict[str, Any]:
    """What the checkpoint's image processor says; grey middle and range where it has none."""
    processor = None
    if not from_type:
        load = partial(transformers.AutoImageProcessor.from_pretrained, name, trust_remote_code=False)
        with suppress(OSError, ValueError, UserError):
            processor = from_cache_or_hub(load, name)
    size = getattr(config, "image_size", None) or dict(getattr(processor, "size", None) or {}).get("height") or 224
    if not isinstance(size, int) and len(set(size)) > 1:
        raise UserError(f"model.name must read square images; '{config.model_type}' reads {list(size)}.")
    channels = getattr(config, "num_channels", 3)
    normalize = getattr(processor, "do_normalize", True)
    resample = getattr(processor, "resample", None)
    return {
        "kind": "image",
        "channels": channels,
        "size": size if isinstance(size, int) else size[0],
        "mean": list(getattr(processor, "image_mean", None) or [0.5] * channels) if normalize else [0.0] * channels,
        "std": list(getattr(processor, "image_std", None) or [0.5] * channels) if normalize else [1.0] * channels,
        "interpolation": INTERPOLATIONS.get(3 if resample is None else int(resample), "bicubic"),
        "crop_pct": 1.0,
    }
