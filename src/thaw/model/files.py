"""What a network needs beside its weights to be built again without the folder or the Hub that they came from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thaw.model.image_processor import INTERPOLATIONS
from thaw.model.network import Network
from thaw.model.transformer_body import TransformerBody

RESAMPLE = {name: number for number, name in INTERPOLATIONS.items()}


def save_files(network: Network, folder: Path) -> None:
    """Write the configuration of a transformer, and its tokenizer's, feature extractor's or image processor's.

    Others are built from their settings alone, and nothing is written for them.
    """
    if isinstance(network.body, TransformerBody):
        network.body.model.config.save_pretrained(folder)
        made = network.preprocessing
        if made["kind"] == "text":
            made["tokenizer"].save(folder)
        elif made["kind"] == "waveform":
            made["extract"].extractor.save_pretrained(folder)
        else:
            (folder / "preprocessor_config.json").write_text(json.dumps(_processor(made), indent=2) + "\n")


def _processor(made: Mapping[str, Any]) -> dict[str, Any]:
    size = {"height": made["size"], "width": made["size"]}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[made["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": made["mean"],
        "image_std": made["std"],
    }


def settings(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What a network asks of its inputs, as plain containers."""
    plain = dict(preprocessing)
    if "tokenizer" in plain:
        plain["tokenizer"] = plain["tokenizer"].fingerprint
    if plain.get("extract"):
        plain["extract"] = plain["extract"].settings
    return plain


def fingerprint(preprocessing: Mapping[str, Any]) -> str:
    """A hash of what a network asks of its inputs, the same in every process."""
    return hashlib.sha256(json.dumps(settings(preprocessing), sort_keys=True).encode()).hexdigest()[:16]
