"""No command runs code from a checkpoint, a configuration inside one, or an address."""

import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from hostile import WAYS, Payload, as_archive, script

from thaw.errors import UserError
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.restore import restore

QUICK = ("logger=none", "callbacks=none", "data.train_size=64", "trainer=cpu", "data.num_workers=0")


def forget_sums(folder: Path) -> None:
    """What tells a damaged file must not be what keeps a hostile one out."""
    for path in folder.iterdir():
        if path.suffix not in (".ckpt", ".pkl"):
            path.unlink()


def poison(folder: Path, write: Any, marker: Path) -> None:
    for path in list((folder / "checkpoints").glob("*.ckpt")):
        write(path, marker)
    forget_sums(folder / "checkpoints")


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.fault("S1", "S3")
@pytest.mark.parametrize("force", [None, "1"])
@pytest.mark.parametrize("write", WAYS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_loading_runs_no_code_whatever_the_environment_says(tmp_path, monkeypatch, write, force) -> None:
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    write(tmp_path / "evil.ckpt", tmp_path / "marker")
    for load in (load_checkpoint, lambda path: AtomicCheckpointIO().load_checkpoint(path, weights_only=False)):
        with pytest.raises(UserError, match="must be a checkpoint of tensors and plain containers"):
            load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.medium
@pytest.mark.fault("S1", "S3")
def test_no_command_runs_code_from_a_run_directory(run_train, run_task, stopped_after_epoch, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    with stopped_after_epoch(0):
        stopped: Outcome = run_train(*QUICK, "trainer.max_epochs=2", "run.dir=runs/stopped")
    assert stopped.code == 130
    poison(tmp_path / "runs" / "stopped", as_archive, marker)
    resumed = run_train(*QUICK, "trainer.max_epochs=2", "run.dir=runs/stopped", "resume=must")
    assert not marker.exists()
    assert resumed.code == 2
    assert "tensors and plain containers" in resumed.errors
    assert "Traceback" not in resumed.errors

    assert run_train(*QUICK, "trainer.max_epochs=1", "run.dir=runs/done").code == 0
    done = tmp_path / "runs" / "done"
    poison(done, as_archive, marker)
    for name in ("interpolate", "soup"):
        ended = run_task(lambda name=name: script(name, done), f"{name}.py")
        assert ended.code == 2, ended.errors
        assert "tensors and plain containers" in ended.errors
        assert "Traceback" not in ended.errors
        assert not marker.exists()
    with pytest.raises(UserError, match="plain containers"):
        restore(done).checkpoint()
    assert not marker.exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """An address that hands out a hostile checkpoint, and the paths that were asked of it."""
    (tmp_path / "served").mkdir()
    as_archive(tmp_path / "served" / "evil.ckpt", tmp_path / "marker")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}", asked
    listener.shutdown()
    listener.server_close()


@pytest.mark.medium
@pytest.mark.fault("S2")
def test_no_address_is_fetched_in_place_of_a_file(run_train, run_task, server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    url, asked = server
    for load in (load_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match="is missing"):
            load(f"{url}/evil.ckpt")
    for name in ("interpolate", "soup"):
        assert run_task(lambda name=name: script(name, url), f"{name}.py").code == 2
    for overrides in (
        [f"run.dir={url}/run", "resume=auto"],
        [f"model.weights={url}/evil.ckpt"],
        ["data=image_folder", f"data.root={url}/data"],
        ["data=docstrings", "model=bert", f"model.name={url}/model"],
    ):
        outcome = run_train(*overrides, *QUICK[:2])
        assert outcome.code == 2, (overrides, outcome.errors)
        assert "Traceback" not in outcome.errors
    assert asked == []
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("S4")
@pytest.mark.parametrize(
    "key", ["_instantiator", "_class_path", "class_path", "_target_", "hparams_name", "hyper_parameters"]
)
@pytest.mark.parametrize("value", ["os.mkdir", "hostile.Payload", ["os.mkdir"], {"_target_": "os.mkdir"}])
def test_settings_in_a_checkpoint_are_only_data(tmp_path: Path, monkeypatch, key: str, value: Any) -> None:
    """CVE-2026-58659: Lightning's own loader imported what `hyper_parameters._instantiator` names."""
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", lambda name, *_: imported.append(name))
    hyper = {key: value, "path": str(tmp_path / "marker"), "init_args": {"path": str(tmp_path / "marker")}}
    state = {"state_dict": {}, "hyper_parameters": hyper, "hparams_type": "os.mkdir", key: value}
    torch.save(state, tmp_path / "evil.ckpt")
    assert load_checkpoint(tmp_path / "evil.ckpt") == state
    assert imported == []
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("S4", "S5")
def test_a_run_goes_on_from_its_own_settings_and_not_from_those_in_its_checkpoint(
    run_train, stopped_after_epoch, tmp_path: Path
) -> None:
    with stopped_after_epoch(0):
        run_train(*QUICK, "trainer.max_epochs=2", "run.dir=runs/mine")
    hostile = {"_target_": "os.mkdir", "path": str(tmp_path / "marker"), "mode": 0o700}
    for path in (tmp_path / "runs" / "mine" / "checkpoints").glob("*.ckpt"):
        state = load_checkpoint(path)
        state["hyper_parameters"] = {"model": hostile, "callbacks": [hostile], "_instantiator": "os.mkdir", **hostile}
        torch.save(state, path)
    forget_sums(tmp_path / "runs" / "mine" / "checkpoints")
    outcome = run_train(*QUICK, "trainer.max_epochs=2", "run.dir=runs/mine", "resume=must")
    assert outcome.code == 0, outcome.errors
    assert outcome.record["status"] == "finished"
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("S5", "S13")
@pytest.mark.parametrize(
    "change",
    [
        ("callbacks:", "callbacks:\n  evil: {_target_: os.mkdir, path: marker}\n  list:\n  - {_target_: os.mkdir}\nx:"),
        ("dropout: 0.0", "dropout: {_target_: os.mkdir, path: marker}"),
        ("dropout: 0.0", "dropout: !!python/object/apply:os.mkdir [marker]"),
        ("seed: 0", "seed: !!python/name:os.mkdir"),
        ("_target_: thaw.model.timm.timm_network", "_target_: ${where}\nwhere: os.mkdir\nx:"),
    ],
)
def test_a_configuration_from_elsewhere_builds_nothing_of_its_own(tmp_path, monkeypatch, change) -> None:
    from test_config import composed

    from thaw import config

    monkeypatch.chdir(tmp_path)
    config.write(composed("trainer=cpu"), tmp_path / "config.yaml")
    (tmp_path / "run.json").write_text('{"status": "finished", "data": {"fingerprint": ""}}')
    text = (tmp_path / "config.yaml").read_text()
    assert change[0] in text
    (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(UserError) as caught:
        restore(tmp_path)
    assert "others than in that run" not in str(caught.value)  # it did not come as far as the data
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("S14")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_cache_beside_the_data_is_ignored(run_train, tmp_path: Path) -> None:
    from PIL import Image

    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 36), (grey + number,) * 3).save(tmp_path / "images" / name / f"{number}.png")
    for place in (tmp_path, tmp_path / "images", tmp_path / "images" / "dark", tmp_path / "runs"):
        place.mkdir(exist_ok=True)
        for ending in ("cache.pkl", "features.npy", "data.joblib", "labels.pt", ".cache.pickle"):
            (place / ending).write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
    outcome = run_train(
        *QUICK[:2], "trainer=cpu", "data=image_folder", "data.root=images", "data.val_size=0.25",
        "data.num_workers=0", "data.image_size=16", "trainer.max_epochs=1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    assert not (tmp_path / "marker").exists()
