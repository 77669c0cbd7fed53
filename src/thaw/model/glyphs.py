"""The bundled network: a small timm ResNet for 32 × 32 grey images, pretrained on printed glyphs."""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

WEIGHTS = Path(__file__).parent / "weights" / "resnet_glyphs.safetensors"

# timm's `register_model` reads this name.
default_cfgs = generate_default_cfgs(
    {
        "resnet_glyphs.printed": {
            "file": str(WEIGHTS),
            "num_classes": 62,
            "input_size": (1, 32, 32),
            "pool_size": (2, 2),
            "mean": (0.3,),
            "std": (0.35,),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "conv1.0",
            "classifier": "fc",
            "license": "mit",
        }
    }
)


@register_model
def resnet_glyphs(pretrained: bool = False, **arguments: Any) -> ResNet:
    """A ResNet of one basic block a stage with a stem of three 3 × 3 convolutions and no stem pooling."""
    own = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "in_chans": 1}
    stem = {"stem_type": "deep", "stem_width": 16}
    model = build_model_with_cfg(ResNet, "resnet_glyphs", pretrained, **(own | stem | arguments))
    model.maxpool = nn.Identity()
    return model
