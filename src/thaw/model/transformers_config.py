"""The configuration of a model of the transformers library, before it is built: what is known, and what may not be."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from thaw.errors import UserError, did_you_mean, first_line
from thaw.model.example import not_causal
from thaw.model.hub import from_cache_or_hub
from thaw.model.tokenizer import byte_tokenizer

# What a network does at random in its midst would reach frozen blocks as well, and masking crashes on short sound;
# a cache of keys serves generation alone.
CALM = {
    # field: (a field that tells whether the model does such things, value)
    "apply_spec_augment": ("mask_time_prob", False),
    "layerdrop": ("layerdrop", 0.0),
    "use_cache": ("use_cache", False),
}


def type_config(name: str, options: dict[str, Any]) -> Any:
    """The library's default for a model type, in the size of the byte tokenizer where it reads text.

    Args:
        options: fields that shall differ.

    Raises:
        UserError: options that are no fields, or do not suit.
    """
    default = transformers.AutoConfig.for_model(name)
    own = {}
    if getattr(library_model(default), "main_input_name", "") == "input_ids":
        own = {"vocab_size": byte_tokenizer().vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return _with_options(default, options, lambda: transformers.AutoConfig.for_model(name, **(own | options)))


def checkpoint_config(name: str, weights: str, options: dict[str, Any]) -> Any:
    """The configuration that lies in a folder or on the Hub.

    Args:
        options: fields that shall differ.

    Raises:
        UserError: it cannot be had, is of a type the library does not know, or the options do not suit.
    """
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
        config = make()
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.options must suit '{config.model_type}': {reason}. Got {options}.") from None
    for field, (sign, value) in CALM.items():
        if hasattr(config, sign) and field not in options:
            setattr(config, field, value)
    return config


def library_model(config: Any) -> Any:
    """The library's class of the model without a head; None where it has none."""
    found = transformers.MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple | list) else found


def main_input(config: Any, causal: bool) -> str:
    """The name of the model's main input.

    Raises:
        UserError: it has several parts, reads something else than text, sound or images, or is no causal language model
            where one is asked for.
    """
    kind, model = config.model_type, library_model(config)
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
