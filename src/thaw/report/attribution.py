"""What in its input a network's answer rests on, by Captum; the network is left as it was."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import FeatureAblation, IntegratedGradients, LayerGradCam, LayerIntegratedGradients
from torch import Tensor, nn

from thaw.model.network import Network
from thaw.report.layers import embedding, last_map, operations
from thaw.report.soundscape import BANDS, SLOTS, audible

Inputs = Tensor | Mapping[str, Tensor]
STEPS, FEWEST_STEPS = 64, 16  # of the path of integrated gradients
AT_ONCE = 64  # samples in one pass
LIMIT = 1e12  # floating-point operations for each thread that a report may spend at most: half a minute
FAIR = 0.05  # of them, for what is worth some seconds: more than the fewest steps or cells


@dataclass(frozen=True)
class Attribution:
    """How much each part of each sample speaks for the answer.

    Args:
        method: `grad_cam`, `integrated_gradients` or `silence`.
        values: of each sample: (height, width) of a map, (tokens,) of a text, (bands, slots) of a sound.
        explained: the answer's score minus that of an empty input (samples,); None of Grad-CAM.
        missed: of integrated gradients, by how much the values' sum differs from that (samples,).
    """

    method: str
    values: list[np.ndarray]
    explained: np.ndarray | None = None
    missed: np.ndarray | None = None


class TooExpensiveError(Exception):
    """The method would take longer than a report may."""


def attribute(
    network: Network, inputs: Inputs, score: Callable[[Any, Tensor], Tensor], chosen: Tensor, limit: float = LIMIT
) -> Attribution:
    """Attribute the answers of a batch, by the method that suits what the network reads.

    Args:
        inputs: a batch as the network reads it; of sounds one sample alone.
        score: (outputs, chosen) → what is explained (batch,).
        chosen: what `score` needs of each sample (batch, …).
        limit: floating-point operations for each thread.

    Raises:
        TooExpensiveError: it would take more.
    """
    if isinstance(inputs, Tensor):
        layer = last_map(network, inputs)
        return (
            _grad_cam(network, layer, inputs, score, chosen)
            if layer
            else _of_pixels(network, inputs, score, chosen, limit)
        )
    if "input_ids" in inputs:
        return _of_tokens(network, inputs, score, chosen, limit)
    return _of_sound(network, inputs, score, chosen, limit)


@contextmanager
def undisturbed(network: Network) -> Iterator[Network]:
    """The network in eval mode, in float32 and with gradients; afterwards nothing of it or of torch has changed."""
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    devices = [device] if device.type == "cuda" else []
    # The fast recurrent layers of a GPU have no gradient in eval mode.
    quiet = torch.backends.cudnn.flags(enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices), quiet:
        try:
            network.train(False)
            yield network if _single(network) else copy.deepcopy(network).float()
        finally:
            for module, mode in modes.items():
                module.training = mode


def _single(network: nn.Module) -> bool:
    return all(p.dtype == torch.float32 for p in network.parameters() if p.is_floating_point())


def _grad_cam(network: Network, layer: nn.Module, images: Tensor, score: Callable, chosen: Tensor) -> Attribution:
    # With a gradient of their own, so that there is one also through what is frozen.
    maps = LayerGradCam(_scored(network, score), layer).attribute(
        images.clone().requires_grad_(), additional_forward_args=(chosen,), relu_attributions=True
    )
    return Attribution("grad_cam", list(maps.detach()[:, 0].cpu().numpy()))


def _of_pixels(network: Network, images: Tensor, score: Callable, chosen: Tensor, limit: float) -> Attribution:
    steps = _steps(network, images, limit)
    mean, std = (images.new_tensor(network.preprocessing[key])[:, None, None] for key in ("mean", "std"))
    black = -mean / std  # no ink, and in a spectrogram no sound
    found, missed = IntegratedGradients(_scored(network, score)).attribute(
        images.contiguous(), black.expand_as(images), additional_forward_args=(chosen,), n_steps=steps,
        internal_batch_size=max(AT_ONCE, len(images)), return_convergence_delta=True,
    )  # fmt: skip
    values = found.detach().sum(dim=1)
    return _complete("integrated_gradients", list(values.cpu().numpy()), missed)


def _of_tokens(network: Network, inputs: Mapping[str, Tensor], score: Callable, chosen: Tensor, limit: float) -> Any:
    others = {name: values for name, values in inputs.items() if name != "input_ids"}
    ids = inputs["input_ids"]
    layer = embedding(network, inputs)

    def scored(ids: Tensor, chosen: Tensor, *rest: Tensor) -> Tensor:
        return score(network.forward({"input_ids": ids, **dict(zip(others, rest, strict=True))}), chosen)

    tokenizer = network.preprocessing["tokenizer"]
    special = torch.isin(ids, ids.new_tensor(tokenizer.special_ids))
    empty = torch.where(special, ids, tokenizer.pad_id)
    found, missed = LayerIntegratedGradients(scored, layer).attribute(
        ids, empty, additional_forward_args=(chosen, *others.values()), n_steps=_steps(network, inputs, limit),
        internal_batch_size=max(AT_ONCE, len(ids)), return_convergence_delta=True,
    )  # fmt: skip
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    values = found.detach().sum(dim=-1).cpu().numpy()
    return _complete(
        "integrated_gradients", [row[:length] for row, length in zip(values, lengths, strict=True)], missed
    )


def _of_sound(network: Network, inputs: Mapping[str, Tensor], score: Callable, chosen: Tensor, limit: float) -> Any:
    """By silence, since a network that levels its input's loudness has no path from silence to the sound."""
    values, lengths = inputs["input_values"], inputs["lengths"]
    waves = values.ndim == 2
    cost = operations(network, inputs)
    bands = BANDS if waves and cost * BANDS * SLOTS <= FAIR * limit else 1
    if cost * bands * SLOTS > limit:
        raise TooExpensiveError
    rate = network.preprocessing["sampling_rate"]

    def scored(gains: Tensor, values: Tensor, lengths: Tensor, chosen: Tensor) -> Tensor:
        heard = audible(values, gains, rate)
        return score(network.forward({"input_values": heard, "lengths": lengths}), chosen)

    gains = values.new_ones(1, bands, SLOTS)
    with torch.no_grad():
        found = FeatureAblation(scored).attribute(
            gains, 0.0, additional_forward_args=(values, lengths, chosen), perturbations_per_eval=AT_ONCE // 2
        )
        whole, silent = (scored(level, values, lengths, chosen) for level in (gains, torch.zeros_like(gains)))
    return Attribution("silence", list(found.cpu().numpy()), (whole - silent).cpu().numpy())


def _complete(method: str, values: list[np.ndarray], missed: Tensor) -> Attribution:
    missed = missed.detach().cpu().numpy()
    # The delta is the sum of the values minus what they should explain.
    return Attribution(method, values, np.array([each.sum() for each in values]) - missed, missed)


def _scored(network: Network, score: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    # Its forward and not the network itself, which may be compiled code that nothing can be hooked into.
    return lambda inputs, chosen: score(network.forward(inputs), chosen)


def _steps(network: Network, inputs: Inputs, limit: float) -> int:
    cost = 3 * operations(network, inputs)  # a pass back costs two forward
    if cost * FEWEST_STEPS > limit:
        raise TooExpensiveError
    return min(max(int(FAIR * limit / cost), FEWEST_STEPS), STEPS)
