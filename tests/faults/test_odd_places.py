"""Odd paths and names, a home that is not there, no network, an open umask: a run works or says what it needs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from conftest import ROOT, Outcome

from thaw.run.checkpoint import AtomicCheckpointIO
from thaw.run.folder import folder_name, run_name
from thaw.run.run import Run

QUICK = ("logger=none", "callbacks=none", "data.train_size=64", "trainer=cpu", "data.num_workers=0")
ONE = (*QUICK, "trainer.max_epochs=1")


def python(*arguments: str, before: tuple[str, ...] = (), folder: Path, **environment: str | None) -> tuple[int, str]:
    """Exit code and output of a fresh `python train.py …`; a variable that is None is unset."""
    known = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")} | environment
    ended = subprocess.run(
        [*before, sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, env={name: value for name, value in known.items() if value is not None},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=200,
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


# Paths and names


@pytest.mark.medium
@pytest.mark.fault("H9")
@pytest.mark.parametrize(
    "name",
    [
        "two words",
        "lr=3e-5,seed=1",
        "größe 冰 ❄",
        "n" * 255,
        "it's",
        "a;b&c|d",
        "$HOME ~ *",
        "[red]bold",
        "-dash",
        "#1",
    ],
)
def test_a_run_and_its_data_may_lie_at_an_odd_path(run_train, tmp_path: Path, name: str) -> None:
    from PIL import Image

    for label, grey in (("dark", 40), ("light", 200)):
        (tmp_path / name / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (20, 18), (grey + number,) * 3).save(tmp_path / name / label / f"{number}.png")
    quoted = name.replace("\\", "\\\\").replace("'", "\\'")
    outcome: Outcome = run_train(
        *QUICK[:2], "trainer=cpu", "data=image_folder", f"data.root='{quoted}'", f"run.dir='runs/{quoted}'",
        "data.val_size=0.25", "data.num_workers=0", "data.image_size=16", "trainer.max_epochs=1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    assert [folder.name for folder in outcome.folders] == [name]
    assert f"runs/{name}" in outcome.printed
    assert (tmp_path / "runs" / name / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.fault("H9", "S19")
@pytest.mark.parametrize("name", ["a\0b", "n" * 256, "é" * 128, "http://host/run", "/proc/x", "/dev/null/x", ".", "/"])
def test_a_path_that_no_folder_can_have_is_refused(run_train, tmp_path: Path, name: str) -> None:
    outcome = run_train(f"run.dir='{name}'", *ONE)
    assert outcome.code == 2
    assert "run.dir" in outcome.errors
    assert "Traceback" not in outcome.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("S19")
@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "../../../x", "a/b", "..", ".", "", "a\0b", "~root", "; touch marker"]
)
def test_a_run_takes_its_name_from_no_place_but_runs(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for choices in (
        {"experiment": name, "data": "a", "model": "b", "freezing": "c"},
        {"data": name, "model": name, "freezing": name},
    ):
        found = run_name(choices)
        assert found
        assert folder_name(found) == found
        run = Run.open(None, found, [])
        assert run.folder.resolve().parent == tmp_path / "here" / "runs"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.fault("S19")
def test_class_folders_and_metrics_name_no_file(run_train, tmp_path: Path) -> None:
    from PIL import Image

    for label, grey in (("..evil", 40), ("val", 90), ("; touch marker", 200)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (20, 18), (grey + number,) * 3).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "=2+5")
    outcome = run_train(
        *QUICK[:2], "trainer=cpu", "data=image_folder", "data.root=images", "monitor=val/accuracy",
        "data.val_size=0.25", "data.num_workers=0", "data.image_size=16", "trainer.max_epochs=1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    assert {path.name for path in tmp_path.iterdir()} == {"images", "runs"}
    assert not list(tmp_path.rglob("*marker"))[1:]
    assert sorted(path.stem for path in outcome.folders[-1].glob("checkpoints/*.ckpt")) == ["best", "last"]


@pytest.mark.medium
@pytest.mark.fault("S20")
def test_no_shell_reads_a_name(run_train, tmp_path: Path) -> None:
    for name in ("; touch marker", "$(touch marker)", "`touch marker`", "| touch marker", "&& touch marker"):
        outcome = run_train(f"run.dir='runs/{name}'", *ONE)
        assert outcome.code == 0, outcome.errors
    assert not (tmp_path / "marker").exists()
    assert {folder.name for folder in outcome.folders} >= {"; touch marker", "$(touch marker)"}
    # What it tells to be copied into a shell is one word there.
    said = Run(tmp_path / "runs" / "; touch marker", {"overrides": ["a='; touch marker'"]}).resume_command
    subprocess.run(["sh", "-c", f"true {said}"], cwd=tmp_path, check=True)
    assert not (tmp_path / "marker").exists()


# What is missing


@pytest.mark.medium
@pytest.mark.fault("H10")
@pytest.mark.parametrize(
    "home", ["unset", *(pytest.param(home, marks=pytest.mark.slow) for home in ("missing", "file"))]
)
def test_a_run_needs_no_home(tmp_path: Path, home: str) -> None:
    (tmp_path / "file").touch()
    places = {"unset": None, "missing": str(tmp_path / "no"), "file": str(tmp_path / "file")}
    unset = dict.fromkeys(["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_DATASETS_CACHE", "MPLCONFIGDIR"])
    code, said = python(*ONE, folder=tmp_path, HOME=places[home], **unset)
    assert code == 0, said
    assert "Traceback" not in said
    assert json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())["status"] == "finished"


@pytest.mark.fault("H10")
def test_a_cache_that_cannot_be_written_is_named_by_its_variable(run_train, monkeypatch, tmp_path: Path) -> None:
    import datasets

    (tmp_path / "file").touch()
    (tmp_path / "text.csv").write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(60)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    outcome = run_train("data=text_csv", "data.root=text.csv", "model=bert", *QUICK[:2])
    assert outcome.code == 2
    assert outcome.errors.startswith("error: HF_DATASETS_CACHE must be a folder that can be written")
    assert "text.csv" not in outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.medium
@pytest.mark.fault("H10")
@pytest.mark.parametrize("model", [("model=resnet18",), ("model=bert", "data=docstrings")])
def test_weights_that_are_in_no_cache_name_the_ways_out(run_train, monkeypatch, tmp_path: Path, model) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    outcome = run_train(*model, *QUICK[:2], "trainer=cpu")
    assert outcome.code == 2
    assert "model.weights=none" in outcome.errors
    assert "Traceback" not in outcome.errors
    assert len(outcome.errors.strip().splitlines()) <= 6


@pytest.mark.fault("H6")
def test_a_package_that_is_not_installed_is_named(run_train, monkeypatch, tmp_path: Path) -> None:
    for library in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{library}", False)
    outcome = run_train("logger=tensorboard", *ONE[1:])
    assert outcome.code == 2, outcome.errors
    assert "`tensorboard`" in outcome.errors
    assert "pip install" in outcome.errors
    assert "Traceback" not in outcome.errors

    monkeypatch.setitem(sys.modules, "peft", None)
    for name in ("thaw.freezing.lora", "thaw.model.lora"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    outcome = run_train("freezing=lora", *ONE)
    assert outcome.code == 2, outcome.errors
    assert "peft" in outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.medium
@pytest.mark.fault("S21")
def test_a_run_opens_no_connection(tmp_path: Path) -> None:
    """In a network name space of its own there is not even a loopback that is up."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-n", "true"], capture_output=True).returncode:
        pytest.skip("unshare -n is not permitted here")
    probe = "import socket; socket.create_connection(('127.0.0.1', 9), 2)"
    refused = subprocess.run([unshare, "-n", sys.executable, "-c", probe], capture_output=True, text=True)
    assert "unreachable" in refused.stderr
    code, said = python(*ONE[1:], before=(unshare, "-n"), folder=tmp_path, WANDB_MODE=None, HF_HUB_OFFLINE=None)
    assert code == 0, said
    assert json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())["status"] == "finished"


@pytest.mark.fault("S21")
def test_a_run_in_this_process_opens_no_socket_to_elsewhere(run_train, monkeypatch) -> None:
    asked: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            asked.append(address)
            raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: asked.append(a) or (_ for _ in ()).throw(OSError()))
    assert run_train(*ONE).code == 0
    assert asked == []


# Files while they are written


@pytest.mark.fault("S22")
def test_unfinished_files_are_private_and_new_under_an_open_umask(tmp_path: Path, monkeypatch) -> None:
    opened: dict[str, tuple[int, int]] = {}
    real = os.open

    def note(path: str, flags: int, mode: int = 0o777, **keywords: object) -> int:
        descriptor = real(path, flags, mode, **keywords)
        if str(path).endswith(".tmp"):
            opened[Path(path).name] = (flags, os.fstat(descriptor).st_mode & 0o777)
        return descriptor

    monkeypatch.setattr(os, "open", note)
    before = os.umask(0)
    try:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "checkpoints" / "last.ckpt")
        run = Run(tmp_path)
        run.update(epochs=1)
        run.update(epochs=2)
    finally:
        os.umask(before)
    assert len(opened) >= 2
    for name, (flags, mode) in opened.items():
        assert flags & os.O_EXCL, name
        assert mode == 0o600, name
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o666 & ~before
    assert json.loads((tmp_path / "run.json").read_text())["epochs"] == 2


@pytest.mark.fault("S22")
def test_an_unfinished_file_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose name was guessed."""
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f".run.json.{uuid.uuid4().hex}.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        Run(tmp_path).update(epochs=1)
    assert (tmp_path / "precious").read_text() == "precious"
