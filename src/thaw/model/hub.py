"""What lies in a folder, in the local cache or on the Hub, and the three ways out where it cannot be had."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import get_session
from safetensors import SafetensorError

from thaw.errors import UserError, first_line

HUB_TIMEOUT = 8  # seconds

TRANSFORMERS_WAYS = (
    "write model.name=/path/to/folder of config.json and safetensors;\n"
    "or start from random weights on purpose with model.weights=none and a model type, e.g. model.name=bert"
)
Loaded = TypeVar("Loaded")


def from_cache_or_hub(
    load: Callable[..., Loaded], name: str, file: str = "config.json", ways: str = TRANSFORMERS_WAYS
) -> Loaded:
    """What `load(local_files_only=…)` returns for a folder or a Hub name, from the cache where it is already there.

    Args:
        file: one that the Hub must have under this name.
        ways: the two ways out beside a connection, for the message.

    Raises:
        OSError: the folder lacks a file.
        UserError: it is neither in the cache nor to be had from the Hub.
    """
    try:
        return load(local_files_only=True)
    except OSError:
        if Path(name).is_dir():
            raise
    try:
        # The Hub's client would try many times over; one quick question tells whether it can be reached at all.
        get_session().head(hf_hub_url(name, file), timeout=HUB_TIMEOUT)
        return load(local_files_only=False)
    except (SafetensorError, ValueError):
        raise  # the file is there, and wrong
    except Exception as error:  # the Hub's client raises many unrelated types
        raise UserError(
            f"model.weights=pretrained must be had from the local cache or the Hub; '{name}' was not "
            f"({first_line(error)}).\nThree ways out: connect to the network; {ways}."
        ) from None
