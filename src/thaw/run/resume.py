"""What a run goes on from: the newest whole checkpoint, of the same network, with room for the next ones."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from thaw.data.datamodule import DataModule
from thaw.errors import UserError
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.run import checksum, disk
from thaw.run.checkpoint import peek, tensor_bytes
from thaw.run.folder import assert_writable
from thaw.run.run import Run

# What a run goes on from. `crash.ckpt` is evidence of what went wrong, and never one of these.
ROLES = ("last", "best")
NEEDED = ("epoch", "global_step", "state_dict", "optimizer_states", "loops")


class Found(NamedTuple):
    """Where a run can go on from.

    Args:
        path: of the newest whole checkpoint; None where there is none.
        step: optimizer steps it has seen.
        left_out: what is wrong with each of the others that is not whole, in words.
        metrics: of the epoch that it ends; none where it stands within an epoch.
    """

    path: Path | None = None
    step: int = 0
    left_out: Sequence[str] = ()
    metrics: Mapping[str, float] = MappingProxyType({})


def find(folder: Path) -> Found:
    """The newest whole checkpoint of a run, by the steps in it: copying files changes their dates.

    Raises:
        UserError: a folder lies where a checkpoint must be written.
    """
    whole, left_out = [], []
    for path in _checkpoints(folder):
        if path.is_dir():
            raise UserError(f"'{path}' must be a file; it is a folder. Move it away.")
        if not path.exists() and not path.is_symlink():
            continue
        wrong = checksum.damage(path)
        if not wrong:
            try:
                content = peek(path)
                lacking = [key for key in NEEDED if key not in content]
                wrong = f"is no state of a run: it has no {', '.join(lacking)}" if lacking else None
            except UserError:
                wrong = "is no checkpoint of tensors and plain containers"
        if wrong:
            left_out.append(f"{path} {wrong}")
        else:
            metrics = {} if content.get("gathered") else content.get("metrics", {})
            whole.append(Found(path, content["global_step"], left_out, metrics))
    # Of two equally new ones the first is `last`.
    return max(whole, key=lambda found: found.step, default=Found(left_out=left_out))


def _checkpoints(folder: Path) -> list[Path]:
    return [folder / f"{role}.ckpt" for role in ROLES]


def assert_fits(path: Path, module: nn.Module) -> None:
    """Check that a whole checkpoint is of this network, before anything is trained.

    Raises:
        UserError: its tensors have other names or shapes.
    """
    saved = {name: tuple(tensor.shape) for name, tensor in peek(path)["state_dict"].items()}
    asked = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if apart := sorted(name for name in saved.keys() | asked.keys() if saved.get(name) != asked.get(name)):
        name = next((name for name in apart if name in saved and name in asked), apart[0])
        raise UserError(
            f"'{path}' must be of this network; {len(apart)} of its tensors are of another: {name} is "
            f"{saved.get(name, 'missing')} there, {asked.get(name, 'missing')} here. "
            "Write the model and data it was trained with, or another run.dir."
        )


def assert_ready(
    run: Run, changed: Sequence[str], data: DataModule, module: FineTuner, trained: Collection[str]
) -> None:
    """Check that a run which has been opened can begin, or go on from where it stood.

    Args:
        changed: settings that are others than before, in words.
        trained: names of the layer groups that train at some time.

    Raises:
        UserError: other settings or data, a checkpoint of another network, or no right or room to write checkpoints.
    """
    changed = [*changed, *_other_data(run.record.get("data"), data)]
    processes = run.record.get("settled", {}).get("processes", data.ranks)
    if processes != data.ranks:  # each would see other batches
        changed.append(f"the processes were {processes}, are now {data.ranks}")
    if changed:
        raise UserError(f"resume must go on with the same settings: {'; '.join(changed)}. Or write another run.dir.")
    if run.finished:
        return
    if run.last:
        assert_fits(run.last, module)
    assert_writable(str(run.folder / "checkpoints"))
    assert_room(run.folder / "checkpoints", module.network, trained)


def _other_data(before: Mapping[str, Any] | None, data: DataModule) -> list[str]:
    if not before or before["fingerprint"] == data.fingerprint:
        return []
    if before["classes"] == data.classes:
        return ["the samples or their labels are others than before"]
    return [f"the classes were {_some(before['classes'])}, are now {_some(data.classes)}"]


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join([repr(name) for name in names[:most]] + ["…"] * (len(names) > most))


def expected_bytes(network: Network, trained: Collection[str]) -> int:
    """About the size of a checkpoint: the weights, and Adam's two moments of the layer groups that will train."""
    kept = [network.groups[group] for group in trained]
    return tensor_bytes(network.state_dict()) + 2 * tensor_bytes(kept)


def assert_room(folder: Path, network: Network, trained: Collection[str]) -> None:
    """Check that a disk has room for `best`, `last` and the one that is being written.

    Args:
        trained: names of the layer groups that train at some time.

    Raises:
        UserError: it has not.
    """
    there = sum(path.stat().st_size for path in _checkpoints(folder) if path.is_file())
    size = expected_bytes(network, trained)
    disk.assert_room(folder, max(3 * size - there, size))
