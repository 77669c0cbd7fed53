"""Spoilt data: what can be found before training is, all of it at once; what cannot is named when it is met."""

import csv
import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from test_images import PREPROCESSING, html, load, noise, packed, refusal, tree, truncated
from test_speech import RATE, save, speech, tone
from test_table import WRITERS
from test_text import BYTES
from test_text import load as load_text
from test_text import write as write_table

from thaw.data import files, images
from thaw.data.files import contents
from thaw.data.images import open_image, unreadable
from thaw.data.sound_files import fault
from thaw.data.sound_files import load as load_sound
from thaw.data.table import labels, read_table
from thaw.errors import UserError

IMAGES = ("data=image_folder", "data.root=images", "logger=none", "trainer=cpu", "trainer.max_epochs=1")
BERT = (
    "model=transformers", "model.name=bert", "model.weights=none", "data=text_csv", "data.root=a.csv", "logger=none",
    "model.options={hidden_size:16,num_hidden_layers:1,num_attention_heads:2,intermediate_size:32}",
)  # fmt: skip


# Broken files


@pytest.mark.fault("E1")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_jpeg_met_in_training_is_named_by_path_and_index(
    run_train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The look before training may have been left out, or the file cut short since."""
    for split in ("train", "val"):
        tree(tmp_path / "images" / split, count=6)
    truncated(tmp_path / "images" / "train" / "dog" / "5.jpg")
    monkeypatch.setattr(images, "CHECKED_FILES", 0)
    outcome = run_train(*IMAGES, f"data.num_workers={workers}")
    assert outcome.code == 2, outcome.errors
    [said] = [line for line in outcome.errors.splitlines() if line.startswith("error:")]
    assert "images/train/dog/5.jpg' is not" in said
    assert said.endswith("It is sample 11 of its split.")  # after six cats and five dogs
    assert "Traceback" not in outcome.errors
    assert outcome.record["status"] == "failed"


@pytest.mark.fault("E1")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_transform_raises_tells_the_sample_too(tmp_path: Path, workers: int) -> None:
    data = load(tree(tmp_path), num_workers=workers, batch_size=1)
    data.preprocess(**PREPROCESSING)
    data.transforms["train"] = no_transform
    loader = data.train_dataloader()
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    if workers:
        loader._iterator._shutdown_workers()
    told = "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(r"This is of sample \d of its split\.", told)


def no_transform(image: Image.Image) -> None:
    raise RuntimeError("a transform that fails")


@pytest.mark.fault("E1", "E2", "E3")
def test_all_that_is_broken_is_listed_in_a_file_with_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "images", count=120)
    for number, spoil in enumerate((truncated, html, html, html, html)):
        spoil(tmp_path / "images" / "cat" / f"b,\n{number}.jpg")
    for skip in ("raise", "skip"):  # five of 245: two in a hundred
        message = refusal(tmp_path / "images", on_bad_sample=skip)
        assert "5 cannot be used: train[120] '" in message
        assert "and 2 more, all in bad_samples.csv." in message
    with open("bad_samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["index"]) for row in rows] == [("train", str(index)) for index in range(120, 125)]
    assert [row["sample"] for row in rows] == [f"{tmp_path}/images/cat/b,\n{number}.jpg" for number in range(5)]
    assert {row["reason"] for row in rows} == {"no readable image"}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_without_a_place_for_the_list_the_message_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        html(tree(tmp_path / "images") / "cat" / f"{number}.jpg")
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.chdir(tmp_path / "closed")
    assert "and 2 more.\n" in refusal(tmp_path / "images")


def test_a_message_shows_no_more_of_a_sample_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "\x1b[31mline\n" * 1000 + str(number), "label": "ab"[number % 2]} for number in range(20)]
    rows[3]["label"] = ""
    with pytest.raises(UserError) as caught:
        load_text(write_table(tmp_path / "a.csv", rows))
    assert len(str(caught.value)) < 700
    assert len(str(caught.value).splitlines()) == 2
    assert "\x1b" not in str(caught.value)


@pytest.mark.fault("E2")
def test_skipped_images_are_counted_in_the_result(run_train: Callable, tmp_path: Path) -> None:
    tree(tmp_path / "images", count=60)
    html(tmp_path / "images" / "cat" / "7.png")
    outcome = run_train(*IMAGES, "data.on_bad_sample=skip", "data.num_workers=0")
    assert outcome.code == 0, outcome.errors
    assert outcome.record["data"]["quality"]["skipped"] == {"no readable image": 1}
    assert outcome.record["data"]["skipped"] == ["train 'images/cat/7.png' (no readable image)"]
    assert sum(outcome.record["data"]["sizes"].values()) == 119


# Bombs and formats


def bomb(path: Path, side: int) -> None:
    """A PNG file of 69 bytes that asks for side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    found = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 4)) + chunk(b"IEND", b"")
    )
    path.write_bytes(found)
    assert len(found) <= 72


@pytest.mark.fault("E4", "S12")
@pytest.mark.parametrize("side", [8193, 10_000, 14_000])
@pytest.mark.parametrize("filters", ["default", "ignore"])
def test_an_image_that_asks_for_all_memory_is_refused_by_its_path(tmp_path: Path, side: int, filters: str) -> None:
    tree(tmp_path)
    bomb(tmp_path / "cat" / "bomb.png", side)
    with warnings.catch_warnings():
        warnings.simplefilter(filters)  # what Pillow warns of is refused whoever has silenced it
        with pytest.raises(UserError, match=r"bomb\.png' is not \(.*pixels.*\)"):
            open_image(str(tmp_path / "cat" / "bomb.png"))
        assert f"train[4] '{tmp_path}/cat/bomb.png' (no readable image)" in refusal(tmp_path)


@pytest.mark.fault("E4", "S12")
def test_the_largest_image_that_is_allowed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 24 * 20)
    noise(0).save(tmp_path / "a.png")
    noise(0, (25, 20)).save(tmp_path / "b.png")
    assert unreadable([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == {1: "no readable image"}


@pytest.mark.fault("S12", "S11")
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_of_more_bytes_than_there_is_memory_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    """A zip file holds a gigabyte of zeros in one megabyte: it is refused by what it would unpack to."""
    tree(tmp_path / "train", count=3)
    noise(0, (200, 200)).save(tmp_path / "train" / "cat" / "large.bmp")
    monkeypatch.setattr(files, "MOST_BYTES", 50_000)
    if zipped:
        packed(tmp_path / "train", tmp_path / "train.zip")
    assert "1 cannot be used: train[3] '" in refusal(tmp_path)


CARDS = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 10", "NAXIS2  = 10", "END")
FITS = "".join(card.ljust(80) for card in CARDS).ljust(2880).encode() + bytes(2880)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.fault("S12")
@pytest.mark.parametrize("kind", ["TIFF", "GIF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "FITS", "EPS"])
def test_formats_beside_the_four_are_refused_whatever_the_suffix_says(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.jpg"
    if kind in ("FITS", "EPS"):
        path.write_bytes(FITS if kind == "FITS" else EPS)
    else:
        noise(0, (32, 32)).save(path, format=kind)
    Image.init()
    with Image.open(path) as image:  # Pillow itself would take it
        assert image.format == kind
    with pytest.raises(UserError, match=r"image\.jpg' is not \(cannot identify image file"):
        open_image(str(path))


@pytest.mark.fault("S12")
@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "png"), ("PNG", "webp"), ("WEBP", "bmp"), ("BMP", "jpg")])
def test_the_four_formats_are_read_by_their_contents(tmp_path: Path, kind: str, suffix: str) -> None:
    noise(0).save(tmp_path / f"a.{suffix}", format=kind)
    assert open_image(str(tmp_path / f"a.{suffix}")).size == (24, 20)


# Kinds of images


@pytest.mark.fault("E5")
def test_cmyk_opens_as_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = open_image(str(tmp_path / "a.jpg")).getpixel((8, 8))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.fault("E5")
@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(str(tmp_path / f"a.{suffix}")).getpixel((8, 8)) == (250, 0, 0)


@pytest.mark.fault("E5")
def test_an_animated_gif_is_refused_by_its_name(tmp_path: Path) -> None:
    frames = [noise(seed) for seed in range(3)]
    tree(tmp_path)
    frames[0].save(tmp_path / "cat" / "moves.png", format="GIF", save_all=True, append_images=frames[1:])
    assert f"train[4] '{tmp_path}/cat/moves.png' (no readable image)" in refusal(tmp_path)


@pytest.mark.fault("E5")
@pytest.mark.parametrize("split", ["train", "eval"])
def test_an_image_of_one_pixel_goes_through_both_transforms(tmp_path: Path, split: str) -> None:
    data = load(tree(tmp_path))
    data.preprocess(**PREPROCESSING)
    assert data.transforms[split](noise(0, (1, 1))).isfinite().all()


# Labels and splits


@pytest.mark.fault("E6")
def test_classes_that_a_split_lacks_are_named_before_training(run_train: Callable, tmp_path: Path) -> None:
    tree(tmp_path / "images" / "train", classes=("ant", "bee", "[cat]", "dog"), count=10)
    tree(tmp_path / "images" / "val", classes=("ant", "bee"), first=1000)
    tree(tmp_path / "images" / "test", classes=("ant", "bee", "[cat]"), first=2000)
    outcome = run_train(*IMAGES, "data.num_workers=0")
    assert outcome.code == 0, outcome.errors
    before = outcome.printed.partition("Plan")[0]
    assert "no sample in val: [cat], dog\nno sample in test: dog\n" in before
    assert outcome.record["data"]["quality"]["lacking"] == {"val": ["[cat]", "dog"], "test": ["dog"]}


@pytest.mark.fault("E6")
def test_a_class_that_train_lacks_stops_the_run_before_training(run_train: Callable, tmp_path: Path) -> None:
    tree(tmp_path / "images" / "train", classes=("ant", "bee"))
    tree(tmp_path / "images" / "val", classes=("ant", "wasp", "yak"))
    outcome = run_train(*IMAGES)
    assert outcome.code == 2
    assert "val has classes that train lacks: ['wasp', 'yak']. Train has ant, bee." in outcome.errors
    assert not outcome.folders


@pytest.mark.fault("E7")
def test_class_indices_beyond_the_named_classes_are_listed_by_row(run_train: Callable, tmp_path: Path) -> None:
    """The features of the file promise two classes; its rows hold others. -1 is no label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = {"text": [f"text {number}" for number in range(20)], "label": [0, 1] * 10}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    held = [0, 1, 2, 1, -2, 0, -1, 2, 2] + [0, 1] * 5 + [0]
    spoilt = table.set_column(table.schema.get_field_index("label"), "label", pa.array(held, pa.int64()))
    pq.write_table(spoilt.replace_schema_metadata(table.schema.metadata), tmp_path / "a.parquet")
    outcome = run_train(*BERT, "data.root=a.parquet")
    assert outcome.code == 2, outcome.errors
    assert "of the 2 classes that the table names, from 0 to 1, or -1 for none; " in outcome.errors
    assert "row 3 has 2, row 5 has -2, row 8 has 2 and 1 more" in outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.fault("E7")
def test_lists_of_class_indices_are_checked_too() -> None:
    import datasets

    tags = datasets.List(ClassLabel(names=["O", "PER"]))
    table = Dataset.from_dict({"tags": [[0, 1], [1, 0]]}, features=Features({"tags": tags}))
    table = Dataset(table.data.table.set_column(0, "tags", [[[0, 1], [1, 5]]]), info=table.info)
    with pytest.raises(UserError, match="row 2 has 5"):
        labels(table, "tags")


@pytest.mark.fault("E7")
@pytest.mark.parametrize(
    ("wrong", "reason"), [("tall", "label 'tall' is no number"), ("inf", "label 'inf' is not finite"), ("", "no label")]
)
def test_targets_that_are_no_numbers_are_listed_with_their_samples(tmp_path: Path, wrong: str, reason: str) -> None:
    rows = [{"text": f"t{number}", "label": str(number)} for number in range(20)]
    rows[4]["label"] = rows[9]["label"] = wrong
    path = write_table(tmp_path / "a.csv", rows)
    with pytest.raises(UserError) as caught:
        load_text(path, target="number")
    assert f"2 cannot be used: train[4] 't4' ({reason}), train[9] 't9' ({reason})" in str(caught.value)


@pytest.mark.fault("E7")
def test_minus_one_and_texts_are_classes_like_any_other_in_a_table_without_names(tmp_path: Path) -> None:
    rows = [{"text": f"t{number}", "label": ("-1", "0", "one")[number % 3]} for number in range(30)]
    assert load_text(write_table(tmp_path / "a.csv", rows)).classes == ["-1", "0", "one"]


@pytest.mark.fault("E8")
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_files_is_refused_and_not_carved_in_silence(tmp_path: Path, split: str, zipped: bool) -> None:
    tree(tmp_path / "train")
    (tmp_path / split / "cat").mkdir(parents=True)
    if zipped:
        packed(tmp_path / split, tmp_path / f"{split}.zip")
    message = refusal(tmp_path)
    assert f"{split} has none. Fill or remove it." in message
    assert str(tmp_path) in message


@pytest.mark.fault("E8")
def test_a_table_without_rows_for_one_split_stops_the_run(run_train: Callable, tmp_path: Path) -> None:
    rows = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(20)]
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "train.csv", rows)
    (tmp_path / "data" / "val.csv").write_text("text,label\n")
    outcome = run_train(*BERT, "data.root=data")
    assert outcome.code == 2, outcome.errors
    assert "data/val.csv' must be a table" in outcome.errors
    assert not outcome.folders


@pytest.mark.fault("E8")
def test_a_split_smaller_than_a_batch_is_trained_on(run_train: Callable) -> None:
    """There is no drop_last that could leave nothing."""
    outcome = run_train("data.train_size=12", "data.batch_size=512", "trainer.max_epochs=1", "logger=none")
    assert outcome.code == 0, outcome.errors
    assert outcome.record["steps"] == 1


@pytest.mark.fault("E9")
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a,x"], "at least two classes, each in a folder or under a label of its own; found 1: x."),
        (["a,x", "b,x", "c,x"], "found 1: x."),
        (["a,x", "b,y"], "data.val_size must leave every class at least one sample"),
        ([",x", ",y", " ,y"], "3 cannot be used: train[0] 'row 1' (no text)"),
    ],
)
def test_one_sample_one_class_or_nothing_in_any_sample_stops_the_run(
    run_train: Callable, tmp_path: Path, rows: list[str], said: str
) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    outcome = run_train(*BERT)
    assert outcome.code == 2, outcome.errors
    assert said in outcome.errors
    assert not outcome.folders


@pytest.mark.fault("E9")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sound_of_what_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    tree_of_tones = [save(tmp_path / name / f"{n}.wav", tone(300 + n, 0.1)) for name in ("a", "b") for n in range(4)]
    wave = np.full(RATE // 10, value, np.float32)
    soundfile.write(tree_of_tones[5], wave, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"train\[5\] '.*b/1\.wav' \(cut short or damaged\)"):
        speech(tmp_path)
    wave[5:] = 0  # found when it is met, before it spoils a weight
    soundfile.write(tree_of_tones[5], wave, RATE, subtype="FLOAT")
    assert not fault(str(tree_of_tones[5]), to_the_end=True)
    with pytest.raises(UserError, match=r"b/1\.wav' holds infinities or NaN"):
        load_sound(str(tree_of_tones[5]))


# The same data again


@pytest.mark.fault("E13")
@pytest.mark.parametrize("change", ["pixels", "label", "added", "none"])
def test_a_run_does_not_go_on_with_files_that_have_changed(run_train: Callable, tmp_path: Path, change: str) -> None:
    tree(tmp_path / "images", count=12)
    command = (*IMAGES, "data.num_workers=0", "data.val_size=0.25", "run.dir=runs/one")
    assert run_train(*command).code == 0
    record = tmp_path / "runs" / "one" / "run.json"
    record.write_text(record.read_text().replace('"status": "finished"', '"status": "interrupted"'))
    path = tmp_path / "images" / "cat" / "3.png"
    if change == "pixels":  # under the same name
        noise(999).save(path)
    elif change == "label":
        path.rename(tmp_path / "images" / "dog" / "99.png")
    elif change == "added":
        noise(999).save(path.with_name("99.png"))
    else:
        path.write_bytes(path.read_bytes())  # another time, the same bytes
    outcome = run_train(*command, "resume=must")
    if change == "none":
        assert outcome.code == 0, outcome.errors
    else:
        assert outcome.code == 2
        assert "the samples or their labels are others than before" in outcome.errors


@pytest.mark.fault("E16")
def test_the_same_image_in_train_and_test_is_counted_and_shown(run_train: Callable, tmp_path: Path) -> None:
    tree(tmp_path / "images" / "train", count=8)
    tree(tmp_path / "images" / "test", count=4, first=5000)
    for number in range(3):
        held = (tmp_path / "images" / "train" / "cat" / f"{number}.png").read_bytes()
        (tmp_path / "images" / "test" / "cat" / f"copy{number}.png").write_bytes(held)
    outcome = run_train(*IMAGES, "data.num_workers=0", "data.val_size=0.25")
    assert outcome.code == 0, outcome.errors
    leaks = [leak for leak in outcome.record["data"]["quality"]["leaks"] if leak["later"] == "test"]
    assert sum(leak["samples"] for leak in leaks) == 3
    assert sum(map(int, re.findall(r"(\d) of test also in", outcome.printed))) == 3


# Text


LONG = "word " * 200_000  # a megabyte


@pytest.mark.fault("E15")
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_line_of_a_megabyte_is_read_whole(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]
    rows[6]["text"] = LONG
    WRITERS[suffix](tmp_path / f"a.{suffix}", rows)
    assert read_table(tmp_path / f"a.{suffix}")["train"][6]["text"] == LONG


@pytest.mark.fault("E15")
def test_a_text_of_a_megabyte_is_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]
    rows[6]["text"] = LONG
    data = load_text(write_table(tmp_path / "a.csv", rows), max_length=32, test_size=0.2)
    assert sum(data.truncated.values()) == 1
    found = [s["input_ids"] for split in data.splits.values() for s, _ in split if len(s["input_ids"]) == 32]
    assert [BYTES.decode(ids)[:20] for ids in found] == [LONG[:20]]


@pytest.mark.fault("E15")
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_invalid_utf_8_stops_the_run_in_words(run_train: Callable, tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"text {number} ä", "label": "ab"[number % 2]} for number in range(20)]
    WRITERS[suffix](tmp_path / f"a.{suffix}", rows)
    held = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(held.replace("7 ä".encode(), b"7 \xff\xfe"))
    outcome = run_train(*BERT, f"data.root=a.{suffix}")
    assert outcome.code == 2, outcome.errors
    assert f"a.{suffix}' must be a table in UTF-8" in outcome.errors
    assert "Traceback" not in outcome.errors


# Names


ODD = ["../x", "a,b", "two\nlines", "[red]x[/red]", '"q"', "=1+1", "/etc/x", "$(touch marker)"]


@pytest.mark.fault("S19")
def test_classes_of_odd_names_stay_names(run_train: Callable, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(10 * len(ODD)):
        noise(number).save(tmp_path / "images" / f"{number}.png")
        rows.append({"path": f"{number}.png", "label": ODD[number % len(ODD)]})
    write_table(tmp_path / "images" / "train.csv", rows)
    before = set(tmp_path.parent.iterdir())
    outcome = run_train(
        "data=image_csv",
        "data.root=images",
        "data.test_size=0.25",
        "data.val_size=0.2",
        "data.num_workers=0",
        *IMAGES[2:],
    )
    assert outcome.code == 0, outcome.errors
    [folder] = outcome.folders
    assert outcome.record["data"]["classes"] == sorted(ODD)
    for name, column in (("per_class.csv", "class"), ("predictions.csv", "target")):
        with open(folder / name, newline="") as file:
            assert {row[column] for row in csv.DictReader(file)} == set(ODD)
    assert set(tmp_path.parent.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "runs"}


@pytest.mark.fault("S19")
@pytest.mark.parametrize("place", ["cl\udcffass/1.png", "cat/\udcff.png"])
def test_a_name_that_is_no_utf_8_is_refused_before_training(run_train: Callable, tmp_path: Path, place: str) -> None:
    """Else every table and figure of the run would fail at its end."""
    path = tree(tmp_path / "images") / place
    try:
        path.parent.mkdir(exist_ok=True)
        noise(9).save(path)
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error}")
    outcome = run_train(*IMAGES)
    assert outcome.code == 2, outcome.errors
    assert "every name must be in UTF-8; 1 are not, the first '" in outcome.errors
    assert "\\udcff" in outcome.errors
    assert not outcome.folders


@pytest.mark.fault("S10", "S11")
def test_archives_are_read_in_place_and_nothing_of_them_is_ever_unpacked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image = io.BytesIO()
    noise(1).save(image, format="PNG")
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = 0o120777 << 16  # a symbolic link, out of the folder
    with zipfile.ZipFile(tmp_path / "data" / "train.zip", "w") as file:
        for name in ("cat", "dog"):
            for number in range(8):
                file.writestr(f"{name}/{number}.png", image.getvalue() + bytes([number]))
        for name in ("../x/evil.png", "cat/../../evil.png", "/etc/evil.png", "..\\evil\\evil.png"):
            file.writestr(name, image.getvalue())
    before = {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), *tmp_path.parent.iterdir()]}
    data = load(tmp_path / "data")
    data.preprocess(**PREPROCESSING)
    assert sum(len(batch) for batch, _ in data.train_dataloader()) == data.sizes["train"]
    assert data.classes == ["cat", "dog"]
    assert not [path for samples in data.splits.values() for path in samples.inputs if "evil" in path]
    assert {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), *tmp_path.parent.iterdir()]} == before
    with zipfile.ZipFile(tmp_path / "data" / "train.zip", "a") as file:
        file.writestr(link, "/etc/passwd")
    files.archive.cache_clear()
    assert contents(f"{tmp_path}/data/train.zip::cat/link.png") == b"/etc/passwd"  # its own bytes: nothing is followed
    assert "link.png' (no readable image)" in refusal(tmp_path / "data")


@pytest.mark.fault("S10", "S11")
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "rar", "7z"])
def test_other_archives_are_no_data(tmp_path: Path, suffix: str) -> None:
    import tarfile

    tree(tmp_path / "images")
    with tarfile.open(tmp_path / f"train.{suffix}", "w") as file:
        file.add(tmp_path / "images", "../images")
    assert "data.root must be a folder or a table" in refusal(tmp_path / f"train.{suffix}")
