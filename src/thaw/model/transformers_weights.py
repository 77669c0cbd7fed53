"""The weights of a model of the transformers library: safetensors alone, and never a hole filled at random."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from thaw.errors import UserError, first_line
from thaw.model.hub import from_cache_or_hub
from thaw.model.transformers_config import library_model


def load_model(name: str, config: Any, weights: str, causal: bool) -> tuple[nn.Module, set[str]]:
    """The library's model, and the names of its tensors that the checkpoint does not have.

    Args:
        weights: `pretrained`, or `none` for random ones.
        causal: whether it keeps its own head of causal language modelling.

    Raises:
        UserError: no safetensors, damaged ones, or some of another shape.
    """
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    # fp16 and bf16 checkpoints become float32 master weights; mixed precision is the trainer's business.
    arguments: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}
    if not causal and "add_pooling_layer" in inspect.signature(library_model(config).__init__).parameters:
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


def assert_filled(model: nn.Module, body: nn.Module, missing: set[str], name: str) -> None:
    """Check that all that is used came from the checkpoint.

    Args:
        body: the part of the model that is used, beside its head.
        missing: names of the model's tensors that the checkpoint does not have.

    Raises:
        UserError: a tensor of the body or of the model's own head is among them.
    """
    absent = {id(tensor): key for key, tensor in model.state_dict(keep_vars=True).items() if key in missing}
    used = [*body.state_dict(keep_vars=True).values(), *(model.get_output_embeddings() or nn.Identity()).parameters()]
    lost = {absent[id(tensor)] for tensor in used if id(tensor) in absent}
    if lost := sorted(key for key in lost if not key.endswith("masked_spec_embed")):
        raise UserError(_misfit(name, lost, "is missing"))


def _misfit(name: str, tensors: list[str], how: str) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return (
        f"model.weights=pretrained must fill the whole network; in '{name}' {tensors[0]}{more} {how}.\n"
        "Leave out model.options that change its size, or choose another checkpoint."
    )
