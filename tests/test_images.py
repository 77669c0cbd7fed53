"""Folders and zip files of images, broken ones among them, and the transforms from a network's preprocessing."""

import io
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from PIL import Image
from torch import nn

from thaw.data import images
from thaw.data.digits import Digits
from thaw.data.images import ImageFolder, open_image
from thaw.data.sampler import Transformed
from thaw.errors import UserError
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.scheduler import constant
from thaw.task.classification import Classification

PREPROCESSING = {
    "channels": 3,
    "size": 16,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "crop_pct": 0.8,
}
GREY = PREPROCESSING | {"channels": 1, "mean": [0.5], "std": [0.5]}


def noise(seed: int, size: tuple[int, int] = (24, 20), channels: int = 3) -> Image.Image:
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def tree(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4, first: int = 0) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            noise(first + number * 100 + index).save(folder / name / f"{index}.png")
    return folder


def packed(folder: Path, archive: Path, prefix: str = "") -> None:
    """Pack a folder into a zip file and remove the folder."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    shutil.rmtree(folder)


def load(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), **{"num_workers": 0, "val_size": 0.25} | options)


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    assert len(caught.value.problems) == 1
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


def names(data: ImageFolder, split: str) -> list[str]:
    """`class/file` of each sample of a split."""
    paths = [path.replace("::", "/") for path in data.splits[split].inputs]
    return [f"{Path(path).parent.name}/{Path(path).name}" for path in paths]


def visible(count: int = 4) -> list[str]:
    return [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(count)]


def gradient(width: int, height: int) -> Image.Image:
    """Red tells the column and green the row."""
    red = np.tile(np.linspace(0, 255, width), (height, 1))
    green = np.tile(np.linspace(0, 255, height)[:, None], (1, width))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], axis=-1).round().astype(np.uint8))


# Layouts


def test_train_val_test_folders_are_the_splits(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        tree(tmp_path / split, count=count)
    data = load(tmp_path)
    assert data.sizes == {"train": 8, "val": 4, "test": 6}
    for split, samples in data.splits.items():
        assert all(path.startswith(f"{tmp_path / split}/") for path in samples.inputs)
        assert [data.classes[target] for target in samples.targets] == [n.split("/")[0] for n in names(data, split)]


def test_class_folders_alone_are_carved(tmp_path):
    data = load(tree(tmp_path))
    assert data.sizes == {"train": 6, "val": 2}
    assert sorted(names(data, "train") + names(data, "val")) == visible()


@pytest.mark.parametrize("alias", ["val", "valid", "validation", "dev"])
def test_validation_folder_goes_by_several_names(tmp_path, alias):
    tree(tmp_path / "train")
    tree(tmp_path / alias, count=2)
    data = load(tmp_path)
    assert data.sizes == {"train": 8, "val": 4}
    assert names(data, "val") == visible(2)


@pytest.mark.parametrize("alias", ["test", "val", "dev"])
def test_split_name_may_be_a_class_where_there_is_no_train(tmp_path, alias):
    assert load(tree(tmp_path, classes=("prod", alias))).classes == sorted(["prod", alias])


@pytest.mark.parametrize("prefix", ["", "{split}/"])
def test_zip_files_hold_the_same_images_as_folders(tmp_path, prefix):
    for split in ("train", "test"):
        tree(tmp_path / split, first=len(split))
    folders = load(tmp_path)
    expected = {split: [np.asarray(image) for image, _ in samples] for split, samples in folders.splits.items()}
    order = {split: names(folders, split) for split in folders.splits}
    for split in ("train", "test"):
        packed(tmp_path / split, tmp_path / f"{split}.zip", prefix.format(split=split))
    data = load(tmp_path)
    assert data.classes == ["cat", "dog"]
    for split, samples in data.splits.items():
        assert names(data, split) == order[split]
        assert [target for _, target in samples] == folders.splits[split].targets.tolist()
        for (image, _), pixels in zip(samples, expected[split], strict=True):
            assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("zipped", [False, True])
def test_images_below_a_class_folder_belong_to_that_class(tmp_path, zipped):
    tree(tmp_path / "train" / "cat", classes=("indoors", "outdoors"))
    tree(tmp_path / "train" / "dog", classes=("indoors", "outdoors"))
    if zipped:
        packed(tmp_path / "train", tmp_path / "train.zip")
    data = load(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert sum(data.sizes.values()) == 16


def test_workers_read_a_zip_file_each_on_its_own(tmp_path):
    tree(tmp_path / "train", count=12)
    packed(tmp_path / "train", tmp_path / "train.zip")
    epochs = []
    for workers in (0, 2):
        data = load(tmp_path, num_workers=workers, batch_size=3)
        data.preprocess(**PREPROCESSING)
        epochs.append([batch for batch, _ in data.train_dataloader()])
    assert len(epochs[0]) == 6
    assert all(torch.equal(alone, parallel) for alone, parallel in zip(*epochs, strict=True))


@pytest.mark.parametrize(
    "hidden", [".DS_Store", "cat/._0.png", "cat/.0.png", ".cache/0.png", "cat/.ipynb_checkpoints/0-checkpoint.png"]
)
@pytest.mark.parametrize("zipped", [False, True])
def test_hidden_files_are_no_images(tmp_path, hidden, zipped):
    path = tree(tmp_path / "train") / hidden
    path.parent.mkdir(exist_ok=True)
    noise(9).save(path, format="PNG")
    if zipped:
        packed(tmp_path / "train", tmp_path / "train.zip")
    data = load(tmp_path)
    assert sorted(names(data, "train") + names(data, "val")) == visible()


def test_what_macos_adds_to_a_zip_file_is_no_image(tmp_path):
    tree(tmp_path / "train")
    packed(tmp_path / "train", tmp_path / "train.zip")
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as file:
        file.writestr("__MACOSX/cat/._0.png", b"\0\5\26\7")
    data = load(tmp_path)
    assert sorted(names(data, "train") + names(data, "val")) == visible()


def test_other_files_are_no_images(tmp_path):
    tree(tmp_path)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "cat" / "labels.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    data = load(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert sum(data.sizes.values()) == 8


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".Png", ".webp", ".bmp"])
def test_formats_are_known_by_suffix_in_any_case(tmp_path, suffix):
    tree(tmp_path)
    noise(9).save(tmp_path / "cat" / f"more{suffix}")
    assert sum(load(tmp_path).sizes.values()) == 9


def test_classes_are_sorted(tmp_path):
    data = load(tree(tmp_path, classes=("b", "10", "c", "9", "a")))
    assert data.classes == ["10", "9", "a", "b", "c"]


@pytest.mark.fault("E6")
def test_val_may_lack_a_class_but_not_bring_one(tmp_path):
    tree(tmp_path / "train", classes=("ant", "cat", "dog"))
    tree(tmp_path / "val", classes=("dog",))
    assert set(load(tmp_path).splits["val"].targets) == {2}
    tree(tmp_path / "val", classes=("bird",))
    message = refusal(tmp_path)
    assert "data.root: val has classes that train lacks: ['bird']" in message
    assert "Train has ant, cat, dog." in message


def test_missing_root_is_refused(tmp_path):
    message = refusal(tmp_path / "nowhere")
    assert "data.root" in message
    assert str(tmp_path / "nowhere") in message


@pytest.mark.parametrize("layout", ["", "train", "train/cat"])
def test_folder_without_images_is_refused(tmp_path, layout):
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    message = refusal(tmp_path)
    assert "train/<class>/<file> or <class>/<file>" in message
    assert ".jpg" in message
    assert str(tmp_path) in message


def test_images_outside_class_folders_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    noise(0).save(tmp_path / "train" / "0.png")
    assert "train/<class>/<file>" in refusal(tmp_path)


@pytest.mark.fault("E9")
def test_single_class_folder_is_refused(tmp_path):
    assert "found 1: cat" in refusal(tree(tmp_path, classes=("cat",)))


# Broken images


def truncated(path: Path) -> None:
    noise(0, (64, 64)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:900])


def html(path: Path) -> None:
    path.write_text("<html><body>404 Not Found</body></html>")


def empty(path: Path) -> None:
    path.touch()


def gif(path: Path) -> None:
    noise(0).save(path, format="GIF")


@pytest.mark.fault("E1", "E2")
@pytest.mark.parametrize("spoil", [truncated, html, empty, gif])
@pytest.mark.parametrize("zipped", [False, True])
def test_broken_image_is_named_before_training(tmp_path, spoil, zipped):
    tree(tmp_path / "train")
    spoil(tmp_path / "train" / "cat" / "spoilt.jpg")
    if zipped:
        packed(tmp_path / "train", tmp_path / "train.zip")
    message = refusal(tmp_path)
    place = f"{tmp_path / 'train.zip'}::cat/spoilt.jpg" if zipped else f"{tmp_path / 'train'}/cat/spoilt.jpg"
    assert f"1 cannot be used: train[4] '{place}' (no readable image)" in message
    assert "Mend or remove" in message


@pytest.mark.fault("E3")
def test_many_broken_images_are_counted_and_three_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # all of them are listed there
    tree(tmp_path, count=12)
    for index in range(10):
        html(tmp_path / "dog" / f"{index}.png")
    message = refusal(tmp_path)
    assert "10 cannot be used" in message
    assert message.count(str(tmp_path)) == 3
    assert "and 7 more" in message


def test_damaged_zip_entry_is_named(tmp_path):
    tree(tmp_path / "train")
    content = (tmp_path / "train" / "dog" / "2.png").read_bytes()
    packed(tmp_path / "train", tmp_path / "train.zip")
    archive = bytearray((tmp_path / "train.zip").read_bytes())
    middle = archive.index(content) + len(content) // 2
    archive[middle] ^= 0xFF
    (tmp_path / "train.zip").write_bytes(archive)
    assert "dog/2.png" in refusal(tmp_path)


def test_file_that_is_no_zip_file_is_named(tmp_path):
    html(tmp_path / "train.zip")
    assert "train.zip" in refusal(tmp_path)


def test_open_image_names_a_missing_file(tmp_path):
    with pytest.raises(UserError) as caught:
        open_image(str(tmp_path / "gone.png"))
    assert f"'{tmp_path / 'gone.png'}' is not" in str(caught.value)


@pytest.mark.fault("E1")
def test_broken_image_met_in_a_worker_is_told_in_our_words_alone(tmp_path, monkeypatch):
    tree(tmp_path)
    html(tmp_path / "cat" / "0.png")
    html(tmp_path / "cat" / "1.png")
    monkeypatch.setattr(images, "CHECKED_FILES", 0)
    data = load(tmp_path, num_workers=1)
    data.preprocess(**PREPROCESSING)
    loader = data.train_dataloader()
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    loader._iterator._shutdown_workers()  # left to the garbage collector, torch waits five seconds for them
    message = str(caught.value)
    assert message.startswith("data: every image must be readable; ")
    assert str(tmp_path / "cat") in message
    assert re.search(r"Mend or remove it\. It is sample \d of its split\.$", message)
    assert len(message.splitlines()) == 1


# Kinds of images


@pytest.mark.fault("E5")
@pytest.mark.parametrize("side", [(5, 40), (40, 5), (1, 1), (7, 7)])
def test_jpeg_of_a_few_pixels_is_readable(tmp_path, side):
    tree(tmp_path)
    noise(0, side).save(tmp_path / "cat" / "tiny.jpg")
    assert sum(load(tmp_path).sizes.values()) == 9


@pytest.mark.fault("E5")
@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, 90),
        ("1", 1, (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
    ],
)
def test_images_open_as_grey_or_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (9, 9), colour).save(tmp_path / "image.png")
    assert open_image(str(tmp_path / "image.png")).getpixel((4, 4)) == expected


@pytest.mark.fault("E5")
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_palette_images_open_as_rgb(tmp_path, transparency):
    image = Image.new("P", (9, 9), 2)
    image.putpalette([0, 0, 0, 50, 60, 70, 10, 20, 30])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "image.png", **options)
    assert open_image(str(tmp_path / "image.png")).getpixel((4, 4)) == (10, 20, 30)


@pytest.mark.fault("E5")
def test_sixteen_bit_images_keep_their_contrast(tmp_path):
    levels = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(levels).save(tmp_path / "image.png")
    found = np.asarray(open_image(str(tmp_path / "image.png")).convert("L"), dtype=float)
    assert np.abs(found - levels / 257).max() <= 1


@pytest.mark.fault("E5")
@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 1)), (6, (1, 0)), (8, (0, 1))])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photographs_are_turned_upright(tmp_path, orientation, corner, suffix):
    image = Image.new("L", (48, 32), 0)
    image.paste(255, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"image.{suffix}", exif=exif)
    upright = np.asarray(open_image(str(tmp_path / f"image.{suffix}")))
    assert upright.shape == ((48, 32) if orientation in (6, 8) else (32, 48))
    row, column = np.unravel_index(np.argmax(upright > 200), upright.shape)
    assert (column > 0, row > 0) == (bool(corner[0]), bool(corner[1]))


@pytest.mark.parametrize(("preprocessing", "channels"), [(GREY, 1), (PREPROCESSING, 3)])
@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("source", [1, 3])
def test_images_get_the_channels_of_the_network(tmp_path, preprocessing, channels, split, source):
    data = load(tree(tmp_path))
    data.preprocess(**preprocessing)
    sample = data.transforms[split](noise(1, channels=source))
    assert sample.shape == (channels, 16, 16)
    assert sample.dtype == torch.float32


def test_grey_image_has_three_equal_channels_in_an_rgb_network(tmp_path):
    data = load(tree(tmp_path))
    data.preprocess(**PREPROCESSING | {"mean": [0.5] * 3, "std": [0.5] * 3})
    red, green, blue = data.transforms["eval"](noise(1, channels=1))
    assert torch.equal(red, green)
    assert torch.equal(green, blue)


# Transforms


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (16, 16)])
@pytest.mark.parametrize(
    ("interpolation", "mode"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC), ("random", 3)],
)
def test_evaluation_resizes_crops_and_normalises(tmp_path, size, interpolation, mode):
    data = load(tree(tmp_path))
    data.preprocess(**PREPROCESSING | {"interpolation": interpolation})
    image = noise(3, size)
    width, height = (int(side * 20 / min(size)) for side in size)  # 16 / 0.8 = 20
    left, top = (width - 16) // 2, (height - 16) // 2
    cropped = image.resize((width, height), mode).crop((left, top, left + 16, top + 16))
    pixels = np.asarray(cropped, dtype=np.float64) / 255
    expected = ((pixels - PREPROCESSING["mean"]) / PREPROCESSING["std"]).transpose(2, 0, 1)
    assert np.allclose(data.transforms["eval"](image).numpy(), expected, atol=1e-5)


def test_augment_none_trains_as_it_evaluates(tmp_path):
    data = load(tree(tmp_path), augment="none")
    data.preprocess(**PREPROCESSING)
    for seed in range(5):
        assert torch.equal(data.transforms["train"](noise(seed)), data.transforms["eval"](noise(seed)))


@pytest.mark.parametrize("augment", ["default", "strong"])
def test_augmentation_draws_another_image_each_time(tmp_path, augment):
    data = load(tree(tmp_path), augment=augment)
    data.preprocess(**PREPROCESSING)
    draws = {data.transforms["train"](noise(1)).numpy().tobytes() for _ in range(10)}
    assert len(draws) == 10


def test_strong_augmentation_recolours_and_erases_and_default_does_neither(tmp_path):
    """An erased pixel is 0 after the normalisation, which no colour is under this mean and std."""
    own = (torch.tensor([200 / 255] * 3) - torch.tensor(PREPROCESSING["mean"])) / torch.tensor(PREPROCESSING["std"])
    erased, recoloured = {}, {}
    for augment in ("default", "strong"):
        data = load(tree(tmp_path), augment=augment)
        data.preprocess(**PREPROCESSING)
        torch.manual_seed(0)
        draws = [data.transforms["train"](Image.new("RGB", (24, 24), (200, 200, 200))) for _ in range(60)]
        gone = [(draw == 0).all(dim=0) for draw in draws]
        other = [(draw - own[:, None, None]).abs().amax(dim=0) > 1e-5 for draw in draws]
        erased[augment] = sum(bool(mask.any()) for mask in gone)
        recoloured[augment] = sum(bool((mask & ~hole).any()) for mask, hole in zip(other, gone, strict=True))
    assert (erased["default"], recoloured["default"]) == (0, 0)
    assert 5 <= erased["strong"] <= 25  # a quarter of them
    assert recoloured["strong"] >= 20


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("augment", ["none", "default", "strong"])
@pytest.mark.parametrize("preprocessing", [GREY, PREPROCESSING])
def test_a_batch_is_normalised_as_each_of_its_images_would_be(tmp_path, preprocessing, augment, split):
    data = load(tree(tmp_path), augment=augment)
    data.preprocess(**preprocessing)
    data.trainer = None
    whole = Transformed(data.splits[split], data.transforms["train" if split == "train" else "eval"], data.seed)
    keys = [key for batch in data.batches(split).batches(0) for key in batch]
    one_by_one = torch.stack([whole[0, index][0] for index in keys])
    (images, targets) = next(iter(data._loader(split)))
    found, same = data.on_after_batch_transfer((images, targets), 0)
    assert images.dtype == (torch.float32 if (augment, split) == ("strong", "train") else torch.uint8)
    assert found.dtype == torch.float32
    assert torch.equal(found, one_by_one)
    assert same is targets


def test_a_batch_has_the_precision_of_the_network(tmp_path):
    data = load(tree(tmp_path))
    data.preprocess(**PREPROCESSING)
    batch = next(iter(data.val_dataloader()))
    data.trainer = trainer_at(0)
    data.trainer.precision_plugin = HalfPrecision("bf16-true")
    images, _ = data.on_after_batch_transfer(batch, 0)
    assert images.dtype == torch.bfloat16


@pytest.mark.parametrize(("flip", "expected"), [(False, {False}), (True, {False, True})])
def test_images_are_mirrored_only_where_flip_is_set(tmp_path, flip, expected):
    data = load(tree(tmp_path), flip=flip)
    data.preprocess(**PREPROCESSING)
    torch.manual_seed(0)
    draws = [data.transforms["train"](gradient(60, 60))[0] for _ in range(40)]
    assert {bool(draw[:, 0].mean() > draw[:, -1].mean()) for draw in draws} == expected


@pytest.mark.parametrize("min_crop", [0.1, 0.35, 0.7, 1.0])
def test_random_crop_keeps_at_least_min_crop_of_the_area(tmp_path, min_crop):
    data = load(tree(tmp_path), min_crop=min_crop, flip=False)
    data.preprocess(**PREPROCESSING | {"size": 64, "mean": [0.0] * 3, "std": [1.0] * 3})
    torch.manual_seed(0)
    areas = []
    for _ in range(60):
        red, green, _ = data.transforms["train"](gradient(200, 200))
        areas.append(float((red.max() - red.min()) * (green.max() - green.min())))
    # A crop loses about half a pixel at each border to interpolation.
    assert min_crop - 0.06 <= min(areas) <= min_crop + 0.2


# Mixing


def batch_of_levels(classes: int, repeats: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image is of one level, which is its class."""
    targets = torch.arange(classes).repeat(repeats)
    return targets[:, None, None, None].float().expand(-1, 3, 16, 16).clone(), targets


def trainer_at(batch: int, training: bool = True) -> SimpleNamespace:
    loop = SimpleNamespace(batch_idx=batch, epoch_loop=SimpleNamespace(batch_idx=batch))
    return SimpleNamespace(training=training, current_epoch=0, global_step=batch, fit_loop=loop)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_gives_soft_targets_that_tell_what_was_mixed(options):
    data = Digits(**options)
    torch.manual_seed(0)
    changed = 0
    for batch in range(10):
        data.trainer = trainer_at(batch)
        images, targets = batch_of_levels(10)
        mixed, soft = data.on_after_batch_transfer((images, targets), 0)
        assert soft.shape == (20, 10)
        assert torch.allclose(soft.sum(dim=1), torch.ones(20))
        expected = (soft * torch.arange(10)).sum(dim=1)
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-4)
        changed += not torch.equal(mixed, images)
    assert changed > 0


@pytest.mark.parametrize(
    ("options", "trainer"),
    [
        ({}, trainer_at(0)),
        ({"mixup": 0.8, "cutmix": 1.0}, trainer_at(0, training=False)),
        ({"mixup": 0.8, "cutmix": 1.0}, None),
    ],
)
def test_batches_are_left_alone_outside_training_and_without_mixing(options, trainer):
    data = Digits(**options)
    data.trainer = trainer
    images, targets = batch_of_levels(10)
    same, hard = data.on_after_batch_transfer((images, targets), 0)
    assert same is images
    assert hard is targets


class Seen(L.Callback):
    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.inputs.append(batch[0].clone())


def trained_on(seed_before: int) -> list[torch.Tensor]:
    """The batches that a network trains on, where something drew numbers before the epoch began."""
    data = Digits(mixup=0.8, train_size=32, batch_size=16, num_workers=0)
    data.preprocess(**GREY)
    body = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    network = Network(body, nn.Linear(8, 10), {"stem": ["1.weight", "1.bias"]})
    module = FineTuner(network, Classification(data.classes), create_optimizer, constant())
    seen = Seen()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", limit_val_batches=0, callbacks=[seen], enable_model_summary=False, **quiet
    )
    torch.manual_seed(seed_before)
    trainer.fit(module, data)
    return seen.inputs


def test_mixing_draws_the_same_in_a_resumed_epoch():
    """What was drawn before an epoch differs between an uninterrupted run and one that resumes there."""
    first, second = trained_on(1), trained_on(2)
    assert len(first) == len(second) == 2
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True]


@pytest.mark.parametrize("size", [None, 64])
def test_network_is_told_the_image_size(tmp_path, size):
    data = load(tree(tmp_path, classes=("a", "b", "c")), image_size=size)
    assert data.network_arguments == {"image_size": size}


def test_open_image_reads_the_pixels_of_a_zip_entry(tmp_path):
    image = noise(5)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
        file.writestr("a b/ü.png", buffer.getvalue())
    found = open_image(f"{tmp_path / 'some.zip'}::a b/ü.png")
    assert np.array_equal(np.asarray(found), np.asarray(image))
