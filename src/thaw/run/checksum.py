"""A checksum beside a file, as `sha256sum -c` reads it: a whole file is told from a damaged one."""

import hashlib
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from thaw.run.unfinished import rename, replacing


class HashingWriter(io.RawIOBase):
    """Passes bytes on to a file and sums them on the way: the sum is of what was meant, not of what a disk has kept."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sum = file, hashlib.sha256()
        self._beside = ThreadPoolExecutor(1)
        self.error: OSError | None = None

    @property
    def digest(self) -> str:
        return self._sum.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:
        # Summed while it is written: either takes about as long as the other.
        summed = self._beside.submit(self._sum.update, data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        finally:
            summed.result()  # the caller may reuse its memory


def sidecar(path: Path) -> Path:
    """Where the checksum of a file lies."""
    return path.with_name(f"{path.name}.sha256")


def put(written: Path, path: Path, digest: str) -> None:
    """Give a written file its name and its checksum, so that a kill at any point leaves a file that fits a sum of its.

    Between the two renames the sidecar holds the sums of both files, the old and the new. A file without a sidecar gets
    none before it is replaced: until then nothing is known of it.
    """
    if (found := sums(path)) is not None:
        _write_sums(path, [digest, *found])
    rename(written, path)
    _write_sums(path, [digest])


def damage(path: Path) -> str | None:
    """What is wrong with a file, in words; None where it fits its checksum.

    Without a sidecar it must be a zip file, as torch writes them, whose members fit the sums in it.
    """
    try:
        known = sums(path)
        if not path.exists():
            return "is a link to nothing" if path.is_symlink() else "is missing"
        if not path.is_file():
            return "is a folder"
        if not path.stat().st_size:
            return "is empty"
        if known is None:
            with zipfile.ZipFile(path) as archive:
                return "is damaged" if archive.testzip() else None
        with open(path, "rb") as file:
            fits = hashlib.file_digest(file, "sha256").hexdigest() in known
        return None if fits else f"does not fit its checksum in {sidecar(path).name}: it was cut short or altered"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except Exception:  # zipfile raises almost anything on a damaged file
        return "is broken"


def sums(path: Path) -> list[str] | None:
    """What lies beside a file; None where nothing does."""
    try:
        return [line.split()[0] for line in sidecar(path).read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return None


def _write_sums(path: Path, digests: list[str]) -> None:
    with replacing(sidecar(path)) as file:
        file.writelines(f"{digest}  {path.name}\n" for digest in digests)
