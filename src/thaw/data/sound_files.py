"""Sound files: decoded, measured by their headers, and looked at for what would stop a run in its midst."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import soundfile
import soxr

from thaw.data.files import contents
from thaw.errors import UserError, first_line

SHORTEST = 0.02  # seconds, one window of any front end
END = 256  # samples that are read to see whether a file has its end
FAILURES = (OSError, RuntimeError)  # of soundfile, the disk and archives


def fault(path: str, to_the_end: bool) -> str:
    """Why a file cannot be used; empty where it can.

    Args:
        to_the_end: whether to look at its end too, which a file that was cut short under a sound header has not.
    """
    try:
        if duration(path) < SHORTEST:
            return f"shorter than {SHORTEST} s"
    except UserError:
        return "no readable sound"
    try:
        if to_the_end:
            _read_end(path)
    except UserError:
        return "cut short or damaged"
    return ""


def _read_end(path: str) -> None:
    try:
        with soundfile.SoundFile(_source(path)) as sound:
            sound.seek(max(0, sound.frames - END))
            _assert_finite(path, sound.read())
    except FAILURES:
        load(path)  # what cannot be wound forward may be readable all the same


def load(path: str) -> tuple[np.ndarray, int]:
    """A sound file as one channel of float32 in [-1, 1] (samples,), and its samples a second.

    Raises:
        UserError: the file cannot be decoded, or holds what is no number; it is named.
    """
    with _readable(path):
        wave, rate = soundfile.read(_source(path), dtype="float32", always_2d=True)
    _assert_finite(path, wave)
    return wave.mean(axis=1), rate


def _assert_finite(path: str, wave: np.ndarray) -> None:
    if not np.isfinite(wave).all():  # floating-point formats can hold it, and one value would spoil every weight
        raise UserError(f"data: every sound must be of numbers; '{path}' holds infinities or NaN. Mend or remove it.")


@cache
def duration(path: str) -> float:
    """Seconds, from the file's header.

    Raises:
        UserError: as of `load`.
    """
    with _readable(path):
        return soundfile.info(_source(path)).duration


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        reason = first_line(error)
        raise UserError(f"data: every sound must be readable; '{path}' is not ({reason}). Mend or remove it.") from None


def _source(path: str) -> str | io.BytesIO:
    return io.BytesIO(contents(path)) if ".zip::" in path else path


def resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The same sound at another number of samples a second."""
    return wave if rate == wanted else soxr.resample(wave, rate, wanted).astype(np.float32)
