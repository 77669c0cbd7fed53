"""Faults of what is made of a finished run: killed writers, bad files, and runs that are not what they were."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from PIL import Image
from processes import exit_code_of
from test_evaluate import DIGITS, TEXT, finished
from test_train_text import sentences, table, write

from thaw.errors import UserError
from thaw.serve.fitted import fitted


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def export_and_die(folder: Path) -> None:
    """Killed when the weights are written, before they are compared."""
    from thaw.serve import export, safetensors_format

    save_files = safetensors_format.save_files
    safetensors_format.save_files = lambda *arguments: (save_files(*arguments), die())
    export.export(folder, "safetensors")


def predict_and_die(folder: Path, place: Path, out: Path) -> None:
    """Killed in the second batch."""
    from thaw.serve.predict import Predictor
    from thaw.serve.sink import table
    from thaw.serve.sources import samples

    predictor = Predictor(fitted(folder), batch_size=2)
    found, _ = samples(str(place), predictor.inputs)
    with table(out, predictor.columns) as write_rows:
        for number, rows in enumerate(predictor.rows(found)):
            write_rows(rows)
            if number:
                die()


@pytest.mark.medium
@pytest.mark.fault("B16")
def test_an_exporter_killed_halfway_leaves_no_file_at_the_final_name(run_train) -> None:
    folder = finished(run_train(*DIGITS))
    assert exit_code_of(export_and_die, folder) == -signal.SIGKILL
    assert [path.suffix for path in (folder / "export").iterdir()] == [".tmp"]
    assert list((folder / "export").rglob("model.safetensors"))  # it had come so far


@pytest.mark.medium
@pytest.mark.fault("J4")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_killed_halfway_are_absent(run_train, tmp_path: Path, suffix: str) -> None:
    folder = finished(run_train(*DIGITS))
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number}.png")
    out = tmp_path / f"out{suffix}"
    assert exit_code_of(predict_and_die, folder, tmp_path / "images", out) == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob(f".out{suffix}.*.tmp"))) == 1


@pytest.mark.medium
@pytest.mark.fault("J2")
def test_a_bad_file_is_a_row_with_its_error_and_the_others_go_on(run_train, run_script, tmp_path: Path) -> None:
    folder = finished(run_train(*DIGITS))
    (tmp_path / "images").mkdir()
    for name in ("a", "c"):
        Image.new("L", (8, 8), 100).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    code, printed, errors = run_script("predict", folder, "images", "--out", "out.csv")
    assert code == 3, errors
    assert "1 sample with an error" in printed
    rows = table(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert [bool(row["prediction"]) for row in rows] == [True, False, True]
    assert "every image must be readable" in rows[1]["error"]


@pytest.mark.medium
@pytest.mark.fault("J3")
def test_another_number_of_classes_is_refused(run_train) -> None:
    folder = finished(run_train(*DIGITS))
    record = json.loads((folder / "run.json").read_text())
    record["data"]["classes"].append("ten")
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="must fit the network and the 11 classes of the run"):
        fitted(folder)


@pytest.mark.medium
@pytest.mark.fault("J3")
@pytest.mark.parametrize("kind", ["settings", "tokenizer"])
def test_another_preprocessing_is_refused(run_train, tmp_path: Path, kind: str) -> None:
    if kind == "settings":
        folder = finished(run_train(*DIGITS))
        path = folder / "config.yaml"
        path.write_text(path.read_text().replace("mean: null", "mean: [0.5]"))
        if "mean: [0.5]" not in path.read_text():
            path.write_text(re.sub(r"(?m)^model:$", "model:\n  mean: [0.5]", path.read_text()))
    else:
        folder = finished(run_train(*TEXT, write(tmp_path / "data", sentences(60))))
        path = folder / "model" / "tokenizer.json"
        held = json.loads(path.read_text())
        vocabulary = held["model"]["vocab"]
        first, second = list(vocabulary)[5:7]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        path.write_text(json.dumps(held))
    with pytest.raises(UserError, match="must be prepared as they were in training"):
        fitted(folder)
