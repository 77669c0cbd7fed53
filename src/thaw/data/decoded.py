"""Images that are decoded once: their bytes lie in a memory map, which all processes and later runs share."""

import hashlib
import inspect
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from thaw.data.files import contents, stamp
from thaw.data.progress import bar
from thaw.data.workers import cores


class Decoded:
    """Opens images by their number, each as it was before anything random.

    Args:
        folder: holds `pixels.npy` (bytes,), one image after the other, and `shapes.npy` (images, 3): height, width,
            channels.
        paths: of all of them.
    """

    def __init__(self, folder: Path, paths: Sequence[str] = ()) -> None:
        self.folder, self.rows = folder, {path: number for number, path in enumerate(paths)}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a process that is spawned maps the file itself

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shapes = np.lib.format.open_memmap(self.folder / "shapes.npy", mode="r")
        pixels = np.lib.format.open_memmap(self.folder / "pixels.npy", mode="r")
        return pixels, shapes, np.cumsum(shapes.prod(axis=1)) - shapes.prod(axis=1)

    def __call__(self, number: int) -> Image.Image:
        pixels = self._pixels(number)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def tensor(self, number: int) -> Tensor:
        """The bytes (channels, height, width), a third of the work where no transform needs an image."""
        return torch.from_numpy(self._pixels(number).copy()).permute(2, 0, 1)

    def _pixels(self, number: int) -> np.ndarray:
        pixels, shapes, starts = self._arrays
        shape = shapes[number]
        return np.asarray(pixels[starts[number] : starts[number] + shape.prod()]).reshape(shape)


def key_of(paths: Sequence[str], hashes: Mapping[str, bytes], fixed: Any, open_image: Callable) -> dict[str, Any]:
    """All that the decoded images depend on.

    Args:
        hashes: path → hash of the file's content; where there is none, its name, size and time of change stand for it.
        fixed: what is done to each, whose `repr` tells everything.
    """
    digest = hashlib.sha256()
    for path in paths:
        mark = hashes.get(path) or stamp(path)
        digest.update(len(mark).to_bytes(4) + mark)
    return {
        "what": "decoded images",
        "files": digest.hexdigest(),
        "fixed": repr(fixed),
        "code": hashlib.sha256(inspect.getsource(open_image).encode()).hexdigest(),
        "versions": {package: version(package) for package in ("pillow", "torchvision")},
    }


def pixel_counts(paths: Sequence[str], formats: Sequence[str]) -> list[int]:
    """Height × width of each image, by its header."""

    def count(path: str) -> int:
        try:
            with Image.open(io.BytesIO(contents(path)) if ".zip::" in path else path, formats=formats) as image:
                return image.width * image.height
        except Exception:  # of all its parsers; what decodes it tells
            return 0

    return in_threads(count, paths, "Measuring images")


def decode(
    folder: Path,
    paths: Sequence[str],
    sizes: Sequence[int],
    open_fixed: Callable[[str], Image.Image],
    track: Callable[..., Iterable[Any]],
) -> None:
    """Write what `Decoded` reads.

    Args:
        sizes: bytes of each image.
        track: shows the progress of an iterable: `track(items, total, description)`.

    Raises:
        UserError: an image cannot be read.
        OSError: the disk is full.
    """
    starts = np.cumsum(sizes) - sizes
    shape = (int(np.sum(sizes)),)
    begin = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape).offset

    def put(number: int) -> tuple[int, int, int]:
        image = np.asarray(open_fixed(paths[number]))
        assert image.size == sizes[number], paths[number]
        os.pwrite(file, image.tobytes(), begin + int(starts[number]))  # through a map, a full disk ends the process
        return *image.shape[:2], image.shape[2] if image.ndim == 3 else 1

    file = os.open(folder / "pixels.npy", os.O_WRONLY)
    try:
        shapes = in_threads(put, range(len(paths)), "decoding images", track)
    finally:
        os.close(file)
    np.save(folder / "shapes.npy", np.array(shapes, dtype=np.int64))


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], description: str, track: Callable = bar) -> list:
    """What comes of each item; decoding releases the interpreter lock."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(track(pool.map(work, items), len(items), description))
