"""Images: transforms from the network's own preprocessing, and files of images."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from thaw.data.datamodule import DataModule
from thaw.data.decoded import Decoded, decode, in_threads, key_of, pixel_counts
from thaw.data.files import CHECKED_FILES, Root, contents, labelled_files
from thaw.data.image_transform import ImageTransform, image_transforms
from thaw.data.loaders import Split
from thaw.data.quality import hash_of
from thaw.data.samples import Samples
from thaw.errors import UserError

# The formats whose parsers are worth trusting with a stranger's file; Pillow knows some forty.
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}

ALLOWED = sorted(set(FORMATS.values()))

# 200 MB as RGB. What would decode to more is a mistake or an attack: 69 bytes of PNG can ask for all memory.
MOST_PIXELS = 2**26
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # Pillow's own limit is a mere warning

Probability = Annotated[float, Field(ge=0, le=1)]


class ImageData(DataModule):
    """Images under the network's own size, mean, std and interpolation.

    Args:
        image_size: pixels a side; None takes the network's own.
        augment: `none`; `default`, a random crop and, where `flip`, a mirror image; `strong` adds RandAugment
            (arXiv:1909.13719) and random erasing (arXiv:1708.04896).
        flip: whether a mirror image is still the same class.
        min_crop: smallest share of the area that a random crop keeps.
        views: how many variants augmentation makes of each sample, for epochs to take in turns; what stays frozen then
            runs once for each. None draws a new one in every epoch.
        mixup, cutmix: concentration of their Beta distribution (arXiv:1710.09412, arXiv:1905.04899); 0 is off.
        data: see DataModule.
    """

    def __init__(
        self,
        image_size: Annotated[int, Field(ge=8)] | None = None,
        augment: Literal["none", "default", "strong"] = "default",
        flip: bool = True,
        min_crop: Annotated[float, Field(gt=0, le=1)] = 0.35,
        views: Annotated[int, Field(ge=1)] | None = None,
        mixup: Annotated[float, Field(ge=0)] = 0.0,
        cutmix: Annotated[float, Field(ge=0)] = 0.0,
        **data: Any,
    ) -> None:
        super().__init__(**data)
        self.image_size, self.augment, self.flip, self.min_crop = image_size, augment, flip, min_crop
        mixes = [v2.MixUp(alpha=mixup, num_classes=len(self.classes))] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=len(self.classes))] if cutmix else []
        self._mix = v2.RandomChoice(mixes) if mixes else None
        self.variants = None if mixes else 1 if augment == "none" else views
        steady = ["data.mixup=0 data.cutmix=0"] * bool(mixes)
        steady += ["data.augment=none or data.views=4"] * (augment != "none" and views is None)
        self.steady_with = " ".join(steady)

    @property
    def network_arguments(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    @property
    def inputs(self) -> dict[str, Any]:
        return {"medium": "image", "column": getattr(self, "path_column", "path"), "image_size": self.image_size}

    def for_image(self, **preprocessing: Any) -> None:
        own = {"augment": self.augment, "flip": self.flip, "min_crop": self.min_crop}
        self.transforms = image_transforms(**preprocessing, **own)

    def served(self, split: Split) -> tuple[Samples, Callable[[Any], Any]]:
        samples, transform = super().served(split)
        return samples, transform.of_a_sample if isinstance(transform, ImageTransform) else transform

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalise the bytes that the loader gives, a quarter of the numbers to move, where the network computes."""
        inputs, targets = batch
        if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8:
            inputs = self.transforms["eval"].batched(inputs)
            if self.trainer is not None:  # it has seen only the bytes, which no precision changes
                inputs = self.trainer.precision_plugin.convert_input(inputs)
        if self._mix is not None and self.trainer is not None and self.trainer.training:
            # As in Transformed: what is mixed depends on (seed, epoch, batch) alone.
            state = torch.get_rng_state()
            key = (self.seed, self.trainer.current_epoch, self.trainer.fit_loop.batch_idx)
            torch.default_generator.manual_seed(hash(key) & 0x7FFF_FFFF_FFFF_FFFF)
            try:
                return self._mix(inputs, targets)
            finally:
                torch.set_rng_state(state)
        return inputs, targets


class ImageFolder(ImageData):
    """Image files in class folders, in zip files of those, or listed in a table of paths and labels.

    Args:
        root: a folder of `train/ val/ test/` folders (or zip files), each with one folder a class; a folder of class
            folders; or a table, or a folder of `train.csv val.csv test.csv`, with paths relative to it. Without val a
            share of train is carved by seed; without test, validation is reported.
        path_column, label_column: of a table; several label columns are several labels or numbers.

    Raises:
        UserError: no image, fewer than two classes, a class that train lacks, or images that cannot be read.
    """

    def __init__(
        self,
        root: Root,
        path_column: str = "path",
        label_column: str | list[str] = "label",
        **images: Any,
    ) -> None:
        self.root, self.path_column, self.label_column = Path(root), path_column, label_column
        self._decoded: dict[str, Decoded | None] = {}
        super().__init__(**images)

    def read(self) -> dict[str, Samples]:
        found = labelled_files(self.root, FORMATS, self.path_column, self.label_column)
        return {split: Samples(paths, labels, open_image) for split, (paths, labels) in found.items()}

    def problems(self, samples: Samples) -> dict[int, str]:
        return unreadable(samples.inputs) if self.skips or len(samples) <= CHECKED_FILES else {}

    def hashes(self, samples: Samples) -> list[bytes] | None:
        return [hash_of(contents(path)) for path in samples.inputs] if len(samples) <= CHECKED_FILES else None

    def served(self, split: Split) -> tuple[Samples, Callable[[Any], Any]]:
        if not (decoded := self._find_decoded(split)):
            return super().served(split)
        samples, transform = self.splits[split], self._transform(split)
        rows = [decoded.rows[path] for path in samples.inputs]
        if transform.draws:
            return replace(samples, inputs=rows, open=decoded), transform.drawn
        return replace(samples, inputs=rows, open=decoded.tensor), torch.as_tensor

    def _find_decoded(self, split: Split) -> Decoded | None:
        if self.cache and split not in self._decoded and isinstance(self._transform(split), ImageTransform):
            paths, key = self._to_decode(split)
            if folder := self.cache.find(key):
                self._decoded[split] = Decoded(folder, paths)
        return self._decoded.get(split)

    def keep(self, split: Split) -> bool:
        """Decode the images of a split once for all epochs, seeds and runs, if they are to be read again and fit."""
        transform, trainer = self._transform(split), self.trainer
        if not self.cache or not isinstance(transform, ImageTransform):
            return False
        if split in self._decoded:
            return self._decoded[split] is not None
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or trainer.max_epochs - self._epoch() == 1:
            return False
        paths, key = self._to_decode(split)
        pixels = [transform.side**2] * len(paths) if transform.side else pixel_counts(paths, ALLOWED)
        sizes = [count * transform.channels for count in pixels]

        def fill(folder: Path) -> None:
            decode(folder, paths, sizes, lambda path: transform.fixed(open_image(path)), self.track)

        self._decoded[split] = None  # asked once
        try:
            folder = self.cache.entry(key, sum(sizes), fill)
        except OSError as error:  # nothing depends on it
            self.remarks.append(f"{split}: images are not kept decoded ({error.strerror})")
            return False
        told = "are kept decoded" if folder else "do not fit into the cache decoded"
        self.remarks.append(f"{split}: {len(paths):,} images {told}, {sum(sizes) / 1e6:,.1f} MB")
        self._decoded[split] = folder and Decoded(folder, paths)
        return folder is not None

    def _to_decode(self, split: Split) -> tuple[list[str], dict[str, Any]]:
        """The images to decode together, and all that comes of them depends on."""
        own = self.splits[split].inputs
        # All of a split that val or a test split is carved from, whatever the seed has put where.
        wholes = ([*held.inputs] for held in self.whole.values() if len(held) <= 2 * len(own))
        paths = next((whole for whole in wholes if set(own) <= set(whole)), list(own))
        hashed = ((self.sources[name].inputs, found) for name, found in self.known_hashes.items() if found)
        hashes = {path: mark for paths_of, found in hashed for path, mark in zip(paths_of, found, strict=True)}
        return paths, key_of(paths, hashes, self._transform(split).fixed, open_image)

    def _transform(self, split: Split) -> Callable[[Any], Any]:
        return self.transforms["train" if split == "train" else "eval"]


def open_image(path: str, draft: bool = False) -> Image.Image:
    """Decode an image from a file or from `archive.zip::entry`.

    Args:
        draft: decode JPEGs at an eighth of their size, which finds a broken file at a fraction of the cost.

    Raises:
        UserError: the file cannot be read as an image, or it is larger than `MOST_PIXELS`; it is named.
    """
    try:
        with Image.open(io.BytesIO(contents(path)), formats=ALLOWED) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are more than {MOST_PIXELS:,}")
            if draft:
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
                return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            upright = image.convert("RGBA") if image.mode == "P" else image  # for the transparency of palettes
            return upright if upright.mode in ("L", "RGB") else upright.convert("RGB")
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError and more
        reason = str(error).partition(" <_io.")[0]  # which would be another one every time
        raise UserError(f"data: every image must be readable; '{path}' is not ({reason}). Mend or remove it.") from None


def unreadable(paths: Sequence[str]) -> dict[int, str]:
    """Index → reason, of the images that cannot be decoded."""

    def readable(path: str) -> bool:
        try:
            open_image(path, draft=True)
        except UserError:
            return False
        return True

    checked = in_threads(readable, paths, "Checking images")
    return {index: "no readable image" for index, good in enumerate(checked) if not good}
