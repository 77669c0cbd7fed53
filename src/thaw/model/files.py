"""What a network needs beside its weights to be built again without the folder or the Hub that they came from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thaw.model.network import Network


def save_files(network: Network, folder: Path) -> None:
    """Write the configuration of a transformer, and its tokenizer's, feature extractor's or image processor's.

    Others are built from their settings alone, and nothing is written for them.
    """
    if save := getattr(network.body, "save_files", None):
        save(folder, network.preprocessing)


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
