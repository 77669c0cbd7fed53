"""Images: transforms from the network's own preprocessing, and folders or zip files of images."""

import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import AfterValidator, Field
from rich.progress import track
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from thaw.data.datamodule import DataModule, Samples
from thaw.errors import UserError

# The formats whose parsers are worth trusting with a stranger's file; Pillow knows some forty.
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
# Up to here every image is decoded once before training; beyond, a broken one is named when it is met.
CHECKED_IMAGES = 20_000

Probability = Annotated[float, Field(ge=0, le=1)]


class ImageData(DataModule):
    """Images under the network's own size, mean, std and interpolation.

    Args:
        image_size: pixels a side; None takes the network's own.
        augment: `none`; `default`, a random crop and, where `flip`, a mirror image; `strong` adds RandAugment
            (arXiv:1909.13719) and random erasing (arXiv:1708.04896).
        flip: whether a mirror image is still the same class.
        min_crop: smallest share of the area that a random crop keeps.
        mixup, cutmix: concentration of their Beta distribution (arXiv:1710.09412, arXiv:1905.04899); 0 is off.
        data: see DataModule.
    """

    def __init__(
        self,
        image_size: Annotated[int, Field(ge=8)] | None = None,
        augment: Literal["none", "default", "strong"] = "default",
        flip: bool = True,
        min_crop: Annotated[float, Field(gt=0, le=1)] = 0.35,
        mixup: Annotated[float, Field(ge=0)] = 0.0,
        cutmix: Annotated[float, Field(ge=0)] = 0.0,
        **data: Any,
    ) -> None:
        super().__init__(**data)
        self.image_size, self.augment, self.flip, self.min_crop = image_size, augment, flip, min_crop
        mixes = [v2.MixUp(alpha=mixup, num_classes=len(self.classes))] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=len(self.classes))] if cutmix else []
        self._mix = v2.RandomChoice(mixes) if mixes else None

    @property
    def network_arguments(self) -> dict[str, Any]:
        return super().network_arguments | {"image_size": self.image_size}

    def preprocess(
        self, *, channels: int, size: int, mean: list[float], std: list[float], interpolation: str, crop_pct: float
    ) -> None:
        mode = InterpolationMode.BICUBIC if interpolation == "random" else InterpolationMode(interpolation)
        if channels not in (1, 3):
            raise UserError(f"model.in_channels must be 1 or 3 for image files; got {channels}.")
        colour = [v2.Grayscale(1)] if channels == 1 else [v2.RGB()]
        tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        resize = [v2.Resize(round(size / crop_pct), interpolation=mode), v2.CenterCrop(size)]
        crop = [v2.RandomResizedCrop(size, scale=(self.min_crop, 1.0), interpolation=mode)]
        flip = [v2.RandomHorizontalFlip()] if self.flip else []
        train = {
            "none": [*colour, *resize, *tensor],
            "default": [*colour, *crop, *flip, *tensor],
            "strong": [*colour, *crop, *flip, v2.RandAugment(interpolation=mode), *tensor, v2.RandomErasing(0.25)],
        }
        self.transforms = {"train": v2.Compose(train[self.augment]), "eval": v2.Compose([*colour, *resize, *tensor])}

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        if self._mix is not None and self.trainer is not None and self.trainer.training:
            # As in Transformed: what is mixed depends on (seed, epoch, batch) alone.
            state = torch.get_rng_state()
            key = (self.seed, self.trainer.current_epoch, self.trainer.fit_loop.batch_idx)
            torch.default_generator.manual_seed(hash(key) & 0x7FFF_FFFF_FFFF_FFFF)
            try:
                return self._mix(*batch)
            finally:
                torch.set_rng_state(state)
        return batch


def _existing_folder(root: str) -> str:
    if not Path(root).is_dir():
        raise ValueError("must be an existing folder of images", f"There is no folder '{Path(root).absolute()}'.")
    return root


class ImageFolder(ImageData):
    """A folder of `train/ val/ test/` folders (or zip files), each with one folder a class; or of class folders.

    Args:
        root: the folder. Without val a share of train is carved by seed; without test, validation is reported.

    Raises:
        UserError: no image, fewer than two classes, a class that train lacks, or images that cannot be read.
    """

    def __init__(self, root: Annotated[str, AfterValidator(_existing_folder)], **images: Any) -> None:
        self.root = Path(root)
        super().__init__(**images)

    def read(self) -> tuple[list[str], dict[str, Samples]]:
        if not self.root.is_dir():
            raise UserError(f"data.root must be an existing folder of images; '{self.root}' is not.")
        found = {split: _listed(self.root, names) for split, names in SPLITS.items()}
        found = {split: files for split, files in found.items() if files is not None}
        if "train" not in found:
            found = {"train": _images(self.root)}
        if not found["train"]:
            raise UserError(
                f"data.root must hold train/<class>/<image> or <class>/<image> ({', '.join(FORMATS)}); "
                f"found no image in '{self.root}'."
            )
        classes = sorted({name for name, _ in found["train"]})
        for split, files in found.items():
            if unknown := sorted({name for name, _ in files} - set(classes)):
                raise UserError(f"data.root: {split} has classes that train lacks: {unknown[:5]}. Train has {classes}.")
        _assert_readable([path for files in found.values() for _, path in files])
        index = {name: number for number, name in enumerate(classes)}
        return classes, {
            split: Samples([path for _, path in files], np.array([index[name] for name, _ in files]), open_image)
            for split, files in found.items()
            if files
        }


def _listed(root: Path, names: tuple[str, ...]) -> list[tuple[str, str]] | None:
    for name in names:
        if (root / name).is_dir():
            return _images(root / name)
        if (root / f"{name}.zip").is_file():
            archive = root / f"{name}.zip"
            try:
                entries = sorted(_archive(str(archive), os.getpid()).namelist())
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"data.root: '{archive}' must be a zip file ({error}). Mend or remove it.") from None
            files = [Path(entry) for entry in entries if _is_image(Path(entry))]
            top = 1 if all(file.parts[0] == name and len(file.parts) > 2 for file in files) else 0
            return [(f.parts[top], f"{archive}::{f.as_posix()}") for f in files if len(f.parts) >= top + 2]
    return None


def _images(folder: Path) -> list[tuple[str, str]]:
    """(class name, path) of every image below the class folders, in sorted order."""
    return [
        (entry.name, str(path))
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
        for path in sorted(entry.rglob("*"))
        if _is_image(path.relative_to(folder)) and path.is_file()
    ]


def _is_image(path: Path) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in FORMATS and not hidden


@cache
def _archive(path: str, process: int) -> zipfile.ZipFile:
    # One handle a process: forked loader workers must not share a file position.
    return zipfile.ZipFile(path)


def open_image(path: str, draft: bool = False) -> Image.Image:
    """Decode an image from a file or from `archive.zip::entry`.

    Args:
        draft: decode JPEGs at an eighth of their size, which finds a broken file at a fraction of the cost.

    Raises:
        UserError: the file cannot be read as an image; it is named.
    """
    archive, _, entry = path.partition(".zip::")
    try:
        source = io.BytesIO(_archive(f"{archive}.zip", os.getpid()).read(entry)) if entry else path
        with Image.open(source, formats=sorted(set(FORMATS.values()))) as image:
            if draft:
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
                return Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
            if upright.mode == "P":  # by way of RGBA, for the transparency of palettes
                upright = upright.convert("RGBA")
            return upright if upright.mode == "L" else upright.convert("RGB")
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError and more
        raise UserError(f"data: every image must be readable; '{path}' is not ({error}). Mend or remove it.") from None


def _assert_readable(paths: list[str], shown: int = 3) -> None:
    def problem(path: str) -> str | None:
        try:
            open_image(path, draft=True)
        except UserError:
            return path
        return None

    if len(paths) > CHECKED_IMAGES:
        return
    # Decoding releases the interpreter lock, but a zip file's handle is not safe to share between threads.
    threads = 1 if any(".zip::" in path for path in paths) else os.cpu_count()
    with ThreadPoolExecutor(threads) as pool:
        progress = partial(track, description="Checking images", total=len(paths), transient=True)
        broken = [path for path in progress(pool.map(problem, paths)) if path]
    if broken:
        more = f" and {len(broken) - shown} more" if len(broken) > shown else ""
        listed = ", ".join(f"'{path}'" for path in broken[:shown])
        raise UserError(
            f"data: every image must be readable; {len(broken)} cannot be: {listed}{more}.\nMend or remove them."
        )
