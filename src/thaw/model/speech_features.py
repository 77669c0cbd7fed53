"""What a speech transformer reads: the wave as its checkpoint's feature extractor prepares it."""

import json
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from thaw.errors import UserError, first_line
from thaw.model.hub import from_cache_or_hub

WINDOW = 400  # samples of the 25 ms window of log-mel features: nothing shorter can be framed


class SpeechFeatures:
    """Turns one wave (samples,) into what the network reads for it, and its real length along the input's steps.

    Args:
        extractor: a feature extractor of the transformers library.
        key: the name of the network's main input.
        shortest: samples that give the network at least one step; a shorter wave is filled up with silence.
    """

    def __init__(self, extractor: Any, key: str, shortest: int) -> None:
        self.extractor, self.key, self.shortest = extractor, key, shortest

    @property
    def fixed_size(self) -> bool:
        """Whether every wave becomes one size, whatever its length."""
        return hasattr(self.extractor, "nb_max_frames") or hasattr(self.extractor, "max_length")

    @property
    def masked(self) -> bool:
        """Whether the network wants to be told what is padding."""
        return bool(getattr(self.extractor, "return_attention_mask", False)) and not self.fixed_size

    @property
    def seconds(self) -> float | None:
        """What is longer is cut; None without such a limit."""
        if hasattr(self.extractor, "nb_max_frames"):
            return self.extractor.nb_max_frames * self.extractor.hop_length / self.extractor.sampling_rate
        return self.extractor.max_length / 100 if hasattr(self.extractor, "max_length") else None  # frames of 10 ms

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what comes of a wave, as plain containers."""
        return json.loads(self.extractor.to_json_string()) | {"key": self.key, "shortest": self.shortest}

    def __call__(self, wave: np.ndarray) -> tuple[Tensor, int]:
        wave = np.pad(np.asarray(wave, dtype=np.float32), (0, max(0, self.shortest - len(wave))))
        rate = self.extractor.sampling_rate
        found = self.extractor(wave, sampling_rate=rate, return_tensors="np", return_attention_mask=True)
        values = torch.from_numpy(np.asarray(found[self.key][0], dtype=np.float32))
        length = int(found["attention_mask"][0].sum()) if "attention_mask" in found else len(values)
        return values, max(length, 1)


def speech_features(name: str | None, config: Any, key: str) -> SpeechFeatures:
    """The checkpoint's feature extractor; without a name the library's own for this model, made to fit it.

    Raises:
        UserError: the checkpoint has none, or the library has none for this model.
    """
    with warnings.catch_warnings():
        # AST's filters are narrower than the bins of its spectrum; so they were in its training.
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        extractor = _pretrained(name) if name else _default(config)
    return SpeechFeatures(extractor, key, _shortest(config))


def _pretrained(name: str) -> Any:
    load = partial(transformers.AutoFeatureExtractor.from_pretrained, name, trust_remote_code=False)
    try:
        return from_cache_or_hub(load, name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name must have preprocessor_config.json, which says how its sound is prepared; '{name}' has no "
            f"usable one ({first_line(error)}).\nPut it beside the weights, or choose another model."
        ) from None


def _default(config: Any) -> Any:
    """The extractor that a network from random weights gets: the library's default in the size that it reads."""
    kind = transformers.FEATURE_EXTRACTOR_MAPPING.get(type(config), None)
    if kind is transformers.WhisperFeatureExtractor:
        extractor = kind(feature_size=config.num_mel_bins)
        extractor.nb_max_frames = 2 * config.max_source_positions  # the second convolution halves them
        extractor.n_samples = extractor.nb_max_frames * extractor.hop_length
        return extractor
    if kind is transformers.ASTFeatureExtractor:
        return kind(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if kind is transformers.Wav2Vec2FeatureExtractor:
        # Group norm mixes all steps anyway, and such models were pretrained without a mask.
        return kind(return_attention_mask=getattr(config, "feat_extract_norm", "layer") == "layer")
    if kind is None:
        raise UserError(f"model.name must be a folder or Hub name: '{config.model_type}' has no features of its own.")
    return kind()


def _shortest(config: Any) -> int:
    """The receptive field of one step, of the convolutions over the raw wave."""
    if not hasattr(config, "conv_stride"):
        return WINDOW
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
