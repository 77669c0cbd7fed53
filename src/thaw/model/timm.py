"""Image networks: any timm model as a Network, with weights from a file, the local cache or the Hub."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import timm
from huggingface_hub import hf_hub_download
from pydantic import AfterValidator, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.layers import trunc_normal_
from timm.models import group_parameters
from torch import nn

from thaw.errors import UserError, did_you_mean
from thaw.model import glyphs  # noqa: F401  (registers resnet_glyphs with timm)
from thaw.model.gradient_checkpointing import checkpoint_activations
from thaw.model.hub import from_cache_or_hub
from thaw.model.network import Head, Network


def _known_name(name: str) -> str:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or timm.get_pretrained_cfg(architecture) is None:
        raise ValueError("must be a timm model", did_you_mean(architecture, timm.list_models()))
    tagged = timm.list_models(f"{architecture}.*", pretrained=True, include_tags=True)
    if tag and name not in tagged:
        raise ValueError(f"must be a known tag of {architecture}", did_you_mean(name, tagged))
    return name


def _known_weights(weights: str) -> str:
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise ValueError("must be 'pretrained', 'none' or the path of an existing safetensors file")
    return weights


Share = Annotated[float, Field(ge=0, lt=1)]


def timm_network(
    name: Annotated[str, AfterValidator(_known_name)],
    num_outputs: int,
    weights: Annotated[str, AfterValidator(_known_weights)] = "pretrained",
    dropout: Share = 0.0,
    drop_path: Share = 0.0,
    in_channels: Annotated[int, Field(ge=1)] | None = None,
    image_size: Annotated[int, Field(ge=8)] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "random"] | None = None,
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None,
    gradient_checkpointing: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Network:
    """A timm model without its classifier, under a new head of dropout and one linear layer.

    Args:
        name: a timm model name, `architecture` or `architecture.tag`.
        num_outputs: width of the new head.
        weights: `pretrained` (bundled file, local cache, then the Hub), the path of a safetensors file, or `none`.
        dropout: share of the head's inputs dropped in training.
        drop_path: stochastic depth of the body (arXiv:1603.09382).
        in_channels: None takes the model's own; another count is adapted from the pretrained filters as timm does.
        image_size: pixels a side; None takes the model's own.
        mean, std, interpolation, crop_pct: None takes the model's own preprocessing.
        gradient_checkpointing: compute activations anew in the backward pass: less memory for more time.
        options: further keyword arguments of the timm model, e.g. `{pad_type: same}`.

    Raises:
        UserError: the weights cannot be had or do not fit, or timm refuses an argument.
    """
    config = timm.get_pretrained_cfg(_known_name(name))
    arguments: dict[str, Any] = dict(options or {})
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if image_size and config.fixed_input_size:
        arguments["img_size"] = image_size
    arguments["in_chans"] = in_channels or config.input_size[0]
    body = _body(name, config, weights, arguments)
    if gradient_checkpointing:
        checkpoint_activations(body, name)

    own = resolve_model_data_config(body)
    preprocessing = {
        "kind": "image",
        "channels": arguments["in_chans"],
        "size": image_size or own["input_size"][-1],
        "mean": _per_channel("mean", mean, own["mean"], arguments["in_chans"]),
        "std": _per_channel("std", std, own["std"], arguments["in_chans"]),
        "interpolation": interpolation or own["interpolation"],
        "crop_pct": crop_pct or own["crop_pct"],
    }
    linear = nn.Linear(body.head_hidden_size, num_outputs)
    trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    head, groups = Head(linear, dropout), layer_groups(body, name)
    return Network(body, head, groups, preprocessing, _no_weight_decay(body), pretrained=weights != "none")


def _per_channel(key: str, given: list[float] | None, own: Sequence[float], channels: int) -> list[float]:
    if given and len(given) not in (1, channels):
        raise UserError(f"model.{key} must have one value, or one for each of {channels} channels; got {given}.")
    if not given and len(own) != channels:
        own = [sum(own) / len(own)]  # the same grey for every channel
    values = list(given or own)
    return values * channels if len(values) == 1 else values


def layer_groups(body: nn.Module, name: str) -> dict[str, list[str]]:
    """Parameter names by layer group, from timm's own group matcher; the unmatched tail joins the last block.

    Raises:
        UserError: the model has no group matcher.
    """
    try:
        matcher = body.group_matcher(coarse=False)
    except (AttributeError, NotImplementedError):
        raise UserError(
            f"model.name must have layer groups, and timm defines none for '{name}'. "
            "Choose another architecture, e.g. model=convnext."
        ) from None
    # A name that no pattern can match shows which group collects the unmatched parameters.
    probe = "\0"
    named = [*body.named_parameters(), (probe, None)]
    groups = list(group_parameters(SimpleNamespace(named_parameters=lambda: named), matcher).values())
    if probe in groups[-1]:
        tail = [parameter for parameter in groups.pop() if parameter != probe]
        groups[-1] = groups[-1] + tail
    return {"stem": groups[0]} | {f"block{index:02d}": group for index, group in enumerate(groups[1:])}


def _no_weight_decay(body: nn.Module) -> set[str]:
    return set(body.no_weight_decay()) if hasattr(body, "no_weight_decay") else set()


def _body(name: str, config: Any, weights: str, arguments: Mapping[str, Any]) -> nn.Module:
    if weights == "none":
        return _create(name, num_classes=0, **arguments)
    path = Path(weights) if weights != "pretrained" else _pretrained_file(name, config)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"model.weights must be a readable safetensors file; '{path}' is not: {error}") from None
    # Loaded with the file's own classifier, timm checks every key and shape; the classifier goes afterwards.
    classifiers = [config.classifier] if isinstance(config.classifier, str) else list(config.classifier or ())
    kept = [state[f"{classifier}.weight"] for classifier in classifiers if f"{classifier}.weight" in state]
    num_classes = kept[0].shape[0] if kept else 0
    overlay = {"state_dict": state, "num_classes": num_classes, "custom_load": False}
    try:
        body = _create(name, num_classes=num_classes, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except RuntimeError as error:
        raise UserError(_misfit(name, path, str(error))) from None
    body.reset_classifier(0)
    # timm keeps the overlay, and with it a second copy of all weights.
    body.pretrained_cfg.pop("state_dict", None)
    return body


def _create(name: str, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        argument = str(error).rpartition("argument ")[2]
        raise UserError(
            f"model arguments must fit '{name}', which has no {argument}. Leave it out, or choose another model."
        ) from None


def _misfit(name: str, path: Path, error: str, shown: int = 3) -> str:
    lines = [line.strip().rstrip(".") for line in error.splitlines()[1:]] or [error]
    more = f" (and {len(lines) - shown} more)" if len(lines) > shown else ""
    listed = "; ".join(line[:160] for line in lines[:shown])
    return (
        f"model.weights must fit '{name}'; '{path}' does not: {listed}{more}.\n"
        "Give the file's own model.name, and model.options where it was made with others."
    )


def _pretrained_file(name: str, config: Any) -> Path:
    if config.file:
        return Path(config.file)
    repo, filename = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
    if not repo or not filename.endswith(".safetensors"):
        raise UserError(f"model.weights=pretrained must exist as safetensors, and timm publishes none for '{name}'.")
    ways = "write model.weights=/path/to/model.safetensors;\nor start from random weights with model.weights=none"
    return Path(from_cache_or_hub(partial(hf_hub_download, repo, filename), repo, filename, ways))
