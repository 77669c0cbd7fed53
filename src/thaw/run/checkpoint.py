"""Checkpoints: written so that a crash leaves the previous one whole, loaded so that no code in them runs."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from thaw.errors import RunError, UserError
from thaw.run import checksum, disk
from thaw.run.claims import assert_plausible, assert_within
from thaw.run.unfinished import private, publish, unfinished


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames, because Lightning's own way goes through `TMPDIR` and is then no rename.

    A checksum lies beside each file. A kill at any point leaves the earlier file or the new one, and its sum.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save tensors and plain containers.

        Raises:
            RunError: the folder takes no such file; the earlier one is as it was.
            TypeError: the checkpoint holds what could not be loaded without running code.
        """

        def put_in(file: BinaryIO, written: Path) -> str:
            writer = checksum.HashingWriter(file)
            try:
                with io.BufferedWriter(writer, 1 << 20) as buffered:  # torch writes in many small pieces
                    torch.save(checkpoint, buffered)
            except RuntimeError:  # which would tell only that a position is not what torch expects
                if writer.error:
                    raise writer.error from None
                raise
            file.flush()
            if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(written):
                raise TypeError(f"A checkpoint must hold tensors and plain containers; it holds {', '.join(foreign)}.")
            return writer.digest

        self._replace(Path(path), put_in, lambda: tensor_bytes(checkpoint))

    def copy_checkpoint(self, source: Path, path: Path) -> None:
        """Save what has just been saved once more, at a fraction of the cost.

        Raises:
            RunError: as above.
        """

        def put_in(file: BinaryIO, written: Path) -> str:
            with open(source, "rb") as saved:
                shutil.copyfileobj(saved, file, 1 << 20)
            return checksum.sums(source)[0]

        self._replace(path, put_in, lambda: source.stat().st_size)

    def _replace(self, path: Path, put_in: Callable[[BinaryIO, Path], str], size: Callable[[], int]) -> None:
        """Let `put_in` write the file, and return its checksum, under another name until it is whole."""
        written = unfinished(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(written, "xb", opener=private) as file:
                digest = put_in(file, written)
                publish(file)
                file.flush()
                os.fsync(file.fileno())
            checksum.put(written, path, digest)
        except OSError as error:
            written.unlink(missing_ok=True)  # first, so that what it took counts as free
            raise RunError(disk.refusal(error, path.parent, size())) from error
        finally:
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        for gone in (Path(path), checksum.sidecar(Path(path))):
            gone.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load tensors and plain containers onto the CPU; anything else in the file is refused, never run.

    Raises:
        UserError: no such file, one that does not fit its checksum, or no checkpoint of plain containers.
    """
    path = Path(path)
    if wrong := checksum.damage(path):
        raise UserError(_refused(path, wrong))
    return _load(path, mmap=False)


def peek(path: Path) -> dict[str, Any]:
    """The content of a file that is known to be whole; its tensors stay on the disk until they are looked at.

    Raises:
        UserError: no checkpoint of plain containers.
    """
    return _load(path, mmap=True)


def _load(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        assert_plausible(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        assert_within(loaded, path)
        return loaded
    except Exception as error:  # unpickling a hostile file raises almost anything
        raise UserError(_refused(path, f"holds something else ({type(error).__name__})")) from None


def _refused(path: Path, wrong: str) -> str:
    return (
        f"'{path}' must be a checkpoint of tensors and plain containers; it {wrong}. "
        "Run again with resume=never to start afresh."
    )


def tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(tensor_bytes, content.values()))
    return sum(map(tensor_bytes, content)) if isinstance(content, (list, tuple)) else 0
