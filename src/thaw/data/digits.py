"""The embedded data set: handwritten digits that ship inside scikit-learn, so that anything runs anywhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thaw.data.datamodule import Share
from thaw.data.images import ImageData
from thaw.data.samples import Samples


class Digits(ImageData):
    """1,797 handwritten digits of 8×8 grey levels from 43 writers (UCI 80, E. Alpaydin and C. Kaynak, 1998)."""

    def __init__(self, test_size: Share = 0.2, **images: Any) -> None:
        super().__init__(test_size=test_size, **images)

    def read(self) -> dict[str, Samples]:
        # As `sklearn.datasets.load_digits` reads them, without a second of imports.
        path = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
        rows = np.loadtxt(path, delimiter=",")
        pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        return {"train": Samples(pixels, rows[:, -1].astype(int), Image.fromarray)}

    def keys(self, samples: Samples) -> list[bytes]:
        return [pixels.tobytes() for pixels in samples.inputs]
