"""Spoilt copies of good files of every kind: each is read, or refused in words; nothing else, and never without end."""

import faulthandler
import io
import itertools
import json
import random
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from thaw.data import files
from thaw.data.files import contents, labelled_files
from thaw.data.images import FORMATS, open_image, unreadable
from thaw.data.sound_files import duration, fault, load
from thaw.data.table import labels, read_table
from thaw.data.text import Text
from thaw.errors import UserError

LIMIT = 20  # seconds that one file may take
TOKENS = [b"", b"\0", b"\xff" * 4, b"\n", b",", b'"', b"{", b"}", b"[", b"]", b"9" * 400, b"\xf0\x9f", b"-1", b"null"]


def image(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, format=kind, **({} if kind == "BMP" else {"exif": exif}))
    return buffer.getvalue()


def sound(kind: str) -> bytes:
    buffer = io.BytesIO()
    wave = np.sin(np.arange(800) / 5).astype(np.float32)
    soundfile.write(buffer, wave, 8000, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return buffer.getvalue()


def rows() -> list[dict[str, Any]]:
    return [{"text": f"größer, {number}", "label": "ab"[number % 2]} for number in range(24)]


def csv_file() -> bytes:
    return ("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows())).encode()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, number in itertools.product(("cat", "dog"), range(2)):
            file.writestr(f"{name}/{number}.png", image("PNG"))
            file.writestr(f"{name}/{number}.wav", sound("WAV"))
    return buffer.getvalue()


def read_image(path: Path) -> None:
    found = open_image(str(path))
    assert found.mode in ("L", "RGB")
    assert np.asarray(found).dtype == np.uint8
    assert set(unreadable([str(path)])) <= {0}


def read_sound(path: Path) -> None:
    duration.cache_clear()
    reason = fault(str(path), to_the_end=True)
    wave, rate = load(str(path))
    assert np.isfinite(wave).all()
    assert wave.ndim == 1
    assert rate > 0
    assert reason in ("", "shorter than 0.02 s", "cut short or damaged", "no readable sound")


def read_rows(path: Path) -> None:
    for table in read_table(path).values():
        assert len(labels(table, "label")) == len(table)
    Text(str(path), num_workers=0, val_size=0.3)


def read_archive(path: Path) -> None:
    files.archive.cache_clear()
    read = 0
    for paths, _ in labelled_files(path.parent, [*FORMATS, ".wav"], "", "").values():
        for entry in paths:
            with suppress(UserError):
                assert load(entry)[1] if entry.endswith("wav") else open_image(entry).size
                read += len(contents(entry)) > 0
    if not read:
        raise UserError("no entry can be read")


# How each kind of file is made and read, and its share of the ten thousand.
KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], None], int]] = {
    "jpg": (lambda: image("JPEG"), read_image, 2500),
    "png": (lambda: image("PNG"), read_image, 2000),
    "webp": (lambda: image("WEBP"), read_image, 1000),
    "bmp": (lambda: image("BMP"), read_image, 500),
    "wav": (lambda: sound("WAV"), read_sound, 1500),
    "flac": (lambda: sound("FLAC"), read_sound, 500),
    "zip": (archive, read_archive, 1500),
    "csv": (csv_file, read_rows, 250),
    "jsonl": (lambda: "\n".join(json.dumps(row) for row in rows()).encode(), read_rows, 250),
}


def spoilt(good: bytes, draw: random.Random) -> bytes:
    """A copy with one to six changes: bits and bytes, pieces cut out, doubled or put elsewhere, an end that lacks."""
    found = bytearray(good)
    for _ in range(draw.randint(1, 6)):
        at, size = draw.randrange(len(found) + 1), draw.choice((1, 2, 4, 16, 200))
        change = draw.randrange(7)
        if change == 0 and found:
            found[at % len(found)] ^= 1 << draw.randrange(8)
        elif change == 1 and found:
            found[at % len(found)] = draw.choice((0, 1, 127, 128, 255))
        elif change == 2:
            del found[at : at + size]
        elif change == 3:
            found[at:at] = found[at : at + size]
        elif change == 4:
            found[at:at] = draw.choice(TOKENS)
        elif change == 5:
            found[at : at + size] = draw.randbytes(size)
        elif draw.random() < 0.5:
            del found[at:]
    return bytes(found)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not read within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(10 * seconds, exit=True)  # a library that never comes back to Python
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def outcomes(kind: str, count: int, folder: Path) -> dict[str, int]:
    """How many spoilt files were read, and how many refused in words; anything else fails, with the number to seed."""
    make, read, _ = KINDS[kind]
    good, counted = make(), {"read": 0, "refused": 0}
    for number in range(count):
        path = folder / str(number) / f"train.{kind}"
        path.parent.mkdir()
        path.write_bytes(good if number == 0 else spoilt(good, random.Random(f"{kind} {number}")))
        said = ""
        try:
            with within(LIMIT):
                read(path)
        except UserError as refused:
            said = str(refused)
        except BaseException as error:
            error.add_note(f"of file {number} of kind {kind}")
            raise
        assert number or not said, f"the good file itself: {said}"
        assert len(said.splitlines()) <= 6, (number, said)
        counted["refused" if said else "read"] += 1
        path.unlink()
    return counted


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an error of a warning would hide what comes after it
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_file_is_read_or_refused_in_words(tmp_path: Path, kind: str) -> None:
    found = outcomes(kind, 100, tmp_path)
    assert min(found.values()) > 0, found  # else it is the same file over and over, or none at all


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_spoilt_files_are_read_or_refused_in_words(tmp_path: Path, kind: str) -> None:
    assert sum(share for _, _, share in KINDS.values()) == 10_000
    found = outcomes(kind, KINDS[kind][2], tmp_path)
    assert min(found.values()) > 0, found
