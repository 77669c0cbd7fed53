"""What becomes of an image: what is the same every time, what is drawn for each sample, what is done in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from thaw.errors import UserError

# All that is left to do to an image in which nothing is drawn.
TENSOR = v2.PILToTensor()


@dataclass(frozen=True)
class ImageTransform:
    """From an image to what the network reads, in three parts; called, it does all of them.

    Args:
        fixed: from image to image, the same in every epoch, so that what comes of it can be kept.
        drawn: from there to a tensor (channels, height, width), with random numbers of the sample's own.
        batched: bytes to normalised numbers, on any device, of one image or of many at once; numbers stay as they are.
        channels, side: of what `fixed` gives; a side of None is the image's own.
    """

    fixed: Callable[[Image.Image], Image.Image]
    drawn: Callable[[Image.Image], Tensor]
    batched: Callable[[Tensor], Tensor]
    channels: int = 3
    side: int | None = None

    @property
    def draws(self) -> bool:
        """Whether `drawn` does more than to make a tensor."""
        return self.drawn is not TENSOR

    def __call__(self, image: Image.Image) -> Tensor:
        return self.batched(self.of_a_sample(image))

    def of_a_sample(self, image: Image.Image) -> Tensor:
        """All that cannot be done for a batch at once."""
        return self.drawn(self.fixed(image))


class Normalised:
    """Bytes (…, channels, height, width) as numbers of this mean and standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._steps = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def __call__(self, images: Tensor) -> Tensor:
        return self._steps(images) if images.dtype == torch.uint8 else images


def image_transforms(
    *,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    augment: Literal["none", "default", "strong"] = "none",
    flip: bool = False,
    min_crop: float = 1.0,
) -> dict[str, ImageTransform]:
    """Those of `train` and of `eval`; see ImageData.

    Raises:
        UserError: image files have no such number of channels.
    """
    mode = InterpolationMode.BICUBIC if interpolation == "random" else InterpolationMode(interpolation)
    if channels not in (1, 3):
        raise UserError(f"model.in_channels must be 1 or 3 for image files; got {channels}.")
    colour: list[Any] = [v2.Grayscale(1) if channels == 1 else v2.RGB()]
    resize = [*colour, v2.Resize(round(size / crop_pct), interpolation=mode), v2.CenterCrop(size)]
    vary = [v2.RandomResizedCrop(size, scale=(min_crop, 1.0), interpolation=mode)]
    vary += [v2.RandomHorizontalFlip()] if flip else []
    normalised = Normalised(mean, std)
    # What is erased is 0 after the normalisation, and another patch in each sample: that cannot wait for the batch.
    erase = [v2.RandAugment(interpolation=mode), TENSOR, normalised, v2.RandomErasing(0.25)]
    fixed, drawn = {
        "none": (resize, TENSOR),
        "default": (colour, v2.Compose([*vary, TENSOR])),
        "strong": (colour, v2.Compose([*vary, *erase])),
    }[augment]
    return {
        "train": ImageTransform(v2.Compose(fixed), drawn, normalised, channels, size if augment == "none" else None),
        "eval": ImageTransform(v2.Compose(resize), TENSOR, normalised, channels, size),
    }
