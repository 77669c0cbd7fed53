"""Printed glyphs (0-9, A-Z, a-z) rendered from matplotlib's fonts, and their augmentation.

They are what the bundled network was pretrained on (scripts/pretrain_glyphs.py). The transforms take a float batch
(batch, channels, height, width) and draw parameters for each image of it.
"""

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms import v2

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf", "cm[brst]*10.ttf")
NOT_TEXT = ("cmsy10", "DejaVuSansDisplay", "DejaVuSerifDisplay")


def font_paths() -> list[Path]:
    """The text fonts in the matplotlib wheel, sorted by name."""
    root = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return sorted(p for pattern in FONTS for p in root.glob(pattern) if p.stem not in NOT_TEXT)


def render(font: ImageFont.FreeTypeFont, char: str, size: int) -> Tensor:
    """Draw one character, centred by its ink, as a (size, size) uint8 tensor."""
    image = Image.new("L", (size, size))
    left, top, right, bottom = font.getbbox(char)
    origin = ((size - left - right) / 2, (size - top - bottom) / 2)
    ImageDraw.Draw(image).text(origin, char, fill=255, font=font)
    return v2.functional.pil_to_tensor(image)[0]


def glyph_bank(size: int = 48, fill: float = 0.75) -> tuple[Tensor, Tensor]:
    """Render every class in every font.

    Args:
        size: pixels a side.
        fill: height of a capital H as a share of the canvas.

    Returns:
        images (glyphs, 1, size, size) as uint8, and labels (glyphs,).
    """
    images, labels = [], []
    for path in font_paths():
        _, top, _, bottom = ImageFont.truetype(path, 100).getbbox("H")
        font = ImageFont.truetype(path, 100 * fill * size / (bottom - top))
        for label, char in enumerate(CLASSES):
            images.append(render(font, char, size))
            labels.append(label)
    return torch.stack(images).unsqueeze(1), torch.tensor(labels)


def uniform(batch: Tensor, low: float, high: float) -> Tensor:
    """Draw one number per image, shaped to broadcast over (batch, channels, height, width)."""
    return torch.empty(len(batch), 1, 1, 1).uniform_(low, high)


class RandomWarp(v2.Transform):
    """Random affine map and smooth elastic displacement, resampled once."""

    def __init__(
        self,
        degrees: float = 12,
        shear: float = 0.3,
        scale_x: tuple[float, float] = (0.55, 1.1),
        scale_y: tuple[float, float] = (1.0, 1.4),
        shift: float = 0.06,
        elastic: float = 0.15,
    ) -> None:
        super().__init__()
        self.degrees, self.shear, self.shift, self.elastic = degrees, shear, shift, elastic
        self.scale_x, self.scale_y = scale_x, scale_y

    def transform(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        n, _, height, width = x.shape
        angle = uniform(x, -1, 1).view(n) * self.degrees * torch.pi / 180
        shear = uniform(x, -1, 1).view(n) * self.shear
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
        skew = torch.eye(2).repeat(n, 1, 1)
        skew[:, 0, 1] = shear
        scale = torch.cat([uniform(x, *self.scale_x), uniform(x, *self.scale_y)], 1).view(n, 2)
        zoom = torch.diag_embed(1 / scale)
        shift = torch.empty(n, 2, 1).uniform_(-self.shift, self.shift)
        grid = F.affine_grid(torch.cat([zoom @ skew @ rotation, shift], 2), list(x.shape), align_corners=False)
        noise = torch.randn(n, 2, 5, 5) * self.elastic * uniform(x, 0, 1)
        field = F.interpolate(noise, (height, width), mode="bicubic", align_corners=True)
        return F.grid_sample(x, grid + field.permute(0, 2, 3, 1), align_corners=False)


class RandomStroke(v2.Transform):
    """Make strokes thinner or thicker by blending with an eroded or a dilated copy."""

    def __init__(self, thinner: float = 0.4, thicker: float = 0.8) -> None:
        super().__init__()
        self.thinner, self.thicker = thinner, thicker

    def transform(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        amount = uniform(x, -self.thinner, self.thicker)
        thick = F.max_pool2d(x, 5, 1, 2)
        thin = -F.max_pool2d(-x, 3, 1, 1)
        return torch.where(amount > 0, torch.lerp(x, thick, amount), torch.lerp(x, thin, -amount))


class RandomResolution(v2.Transform):
    """Average each image down to a random coarse size, then enlarge it to `size` pixels."""

    def __init__(self, size: int = 32, coarse: tuple[int, ...] = (6, 7, 8, 8, 8, 9, 10, 12)) -> None:
        super().__init__()
        self.size, self.coarse = size, coarse

    def transform(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        out = x.new_empty(*x.shape[:2], self.size, self.size)
        choice = torch.randint(len(self.coarse), (len(x),))
        for index, coarse in enumerate(self.coarse):
            rows = choice == index
            if rows.any():
                small = F.interpolate(x[rows], (coarse, coarse), mode="area")
                out[rows] = F.interpolate(small, (self.size, self.size), mode="bilinear")
        return out


class RandomTone(v2.Transform):
    """Random gain, offset and pixel noise, clipped to [0, 1]."""

    def __init__(self, gain: tuple[float, float] = (0.9, 2.0), offset: float = 0.05, noise: float = 0.05) -> None:
        super().__init__()
        self.gain, self.offset, self.noise = gain, offset, noise

    def transform(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        noise = torch.randn_like(x) * self.noise * uniform(x, 0, 1)
        return (x * uniform(x, *self.gain) + uniform(x, -self.offset, self.offset) + noise).clamp(0, 1)


def augmentation(size: int = 32) -> v2.Compose:
    """The transform from a uint8 bank batch to a float batch of `size` pixels."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([to_float, RandomWarp(), RandomStroke(), RandomResolution(size), RandomTone()])


def batches(images: Tensor, labels: Tensor, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` augmented batches drawn from the bank, reproducibly from `seed`."""
    torch.manual_seed(seed)
    transform = augmentation()
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,))
        yield transform(images[rows]), labels[rows]
