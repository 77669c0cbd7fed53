"""What an image transformer reads: the size, level and interpolation of its checkpoint's image processor."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import transformers

from thaw.errors import UserError
from thaw.model.hub import from_cache_or_hub

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


def image_preprocessing(name: str | None, config: Any) -> dict[str, Any]:
    """What the data must know; a grey middle and range where there is no image processor.

    Args:
        name: of the checkpoint; None for random weights.

    Raises:
        UserError: the images are not square.
    """
    processor = None
    if name:
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


def processor_config(made: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse: what the library reads such a processor from."""
    resample = {name: number for number, name in INTERPOLATIONS.items()}
    size = {"height": made["size"], "width": made["size"]}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": resample[made["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": made["mean"],
        "image_std": made["std"],
    }
