"""A network as the transformers library's own model with a head, where body, pooling and head are the same function."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from thaw.errors import UserError, first_line
from thaw.model.files import save_files
from thaw.model.network import Network
from thaw.model.transformer_body import TransformerBody

# (kind of input, what the task asks for) → the library's class
CLASSES = {
    "text": {"tags": "AutoModelForTokenClassification", "text": "AutoModelForCausalLM"},
    "image": {},
    "waveform": {"transcript": "AutoModelForCTC"},
}
ELSE = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "waveform": "AutoModelForAudioClassification",
}
PROBLEMS = {"class": "single_label_classification", "labels": "multi_label_classification", "number": "regression"}
# Of a tanh between body and head: so close to 0 it is the identity, to the last digits of a float32.
NEARLY_LINEAR = 1e-4


def save_transformers(network: Network, folder: Path, target: str, classes: Sequence[str]) -> Callable[[Any], Tensor]:
    """Write model.safetensors and the files beside it; return what `from_pretrained` makes of them.

    Args:
        target: what the task asks for.

    Raises:
        UserError: the library's class for this architecture computes something else.
    """
    body = network.body
    assert isinstance(body, TransformerBody)
    kind = network.preprocessing["kind"]
    auto = getattr(transformers, CLASSES[kind].get(target, ELSE[kind]))
    config = _config(network, target, classes)
    try:
        model = auto.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config.model_type} has no {auto.__name__} ({first_line(error)}).") from None
    name = type(model).__name__
    inner = model.get_encoder() if config.is_encoder_decoder else model.base_model
    lacking = set(inner.load_state_dict(body.model.state_dict(), strict=False).missing_keys)
    filled = {id(parameter) for path, parameter in inner.named_parameters() if path not in lacking}
    if target != "text":
        filled |= _fill_head(model, network, name)
    left = [path for path, parameter in model.named_parameters() if id(parameter) not in filled]
    if left := [path for path in left if not path.endswith("masked_spec_embed")]:
        raise UserError(f"{name} has layers that this network has not ({left[0]}).")
    model.train(False).save_pretrained(folder)
    files = folder / "files"
    files.mkdir()
    save_files(network, files)
    (files / "config.json").unlink()  # that of the model with its head lies there already
    for file in files.iterdir():
        file.rename(folder / file.name)
    files.rmdir()
    again = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True).train(False)

    def loaded(inputs: Any) -> Tensor:
        arguments, _ = body._read(inputs)
        with torch.no_grad():
            return again(**arguments).logits

    return loaded


def _config(network: Network, target: str, classes: Sequence[str]) -> Any:
    config = copy.deepcopy(network.body.model.config)
    if target == "text":
        return config
    if target == "transcript":  # the blank is the library's padding
        config.vocab_size, config.pad_token_id = len(classes) + 1, 0
        return config
    config.id2label, config.label2id = dict(enumerate(classes)), {name: k for k, name in enumerate(classes)}
    config.num_labels = len(classes)
    if target in PROBLEMS:
        config.problem_type = PROBLEMS[target]
    if hasattr(config, "classifier_proj_size"):
        config.classifier_proj_size = config.hidden_size
    return config


def _fill_head(model: nn.Module, network: Network, name: str) -> set[int]:
    """Give the library's head our weights; return the ids of its parameters that have them."""
    linear = network.head.linear
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    ways = ("classifier", "classifier.out_proj", "score", "lm_head")
    last = next((path for path in ways if path in layers and layers[path].weight.shape == linear.weight.shape), None)
    if last is None:
        raise UserError(f"{name} has no head of one linear layer of {linear.in_features} features.")
    if layers[last].bias is None:
        raise UserError(f"the head of {name} has no bias, and that of this network has.")
    scale, filled = 1.0, {*map(id, layers[last].parameters())}
    pooler = f"{type(model).base_model_prefix}.pooler.dense"
    for path in (pooler, "classifier.dense", "projector"):
        if path in layers and layers[path].weight.shape[0] == layers[path].weight.shape[1] == linear.in_features:
            scale = 1.0 if path == "projector" else NEARLY_LINEAR
            if path != "projector" and network.body.pool != "first":
                raise UserError(
                    f"{name} reads the first token, and this network has model.pool={network.body.pool}. "
                    "Train with model.pool=first."
                )
            with torch.no_grad():
                layers[path].weight.copy_(torch.eye(linear.in_features) * scale)
                layers[path].bias.zero_()
            filled |= {*map(id, layers[path].parameters())}
    with torch.no_grad():
        layers[last].weight.copy_(linear.weight / scale)
        layers[last].bias.copy_(linear.bias)
    return filled
