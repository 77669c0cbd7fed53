"""`scripts/predict.py`: a run's directory, moved to where neither data nor weights nor a network are."""

import gc
import io
import json
import shutil
import socket
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_evaluate import DIGITS, MEL, TEXT, finished
from test_train_speech import SMALL, TASK, WAV2VEC2, folders, recordings
from test_train_text import QUICK, sentences, table, write

from thaw.serve.fitted import fitted
from thaw.serve.predict import BATCH, Predictor
from thaw.serve.sources import Sample


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`alone(folder)` moves a run to an empty place and takes everything else, and the network, away."""

    def move(folder: Path, *gone: str) -> Path:
        moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
        for name in (*gone, "runs"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a socket was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        return moved

    return move


def assert_same_numbers(mine: list[dict], before: list[dict], tolerance: float = 2e-4) -> None:
    """The run's own predictions, but for the rounding that the other samples of a batch decide."""
    assert len(mine) == len(before) > 4
    for now, then in zip(mine, before, strict=True):
        for name in then.keys() - {"split", "sample", "target"}:
            if name.startswith(("probability/", "prediction/")):
                assert float(now[name]) == pytest.approx(float(then[name]), abs=tolerance), name
        assert now.get("error", "") == ""


@pytest.mark.medium
@pytest.mark.fault("J5")
def test_images_are_predicted_as_the_run_itself_did(run_train, run_script, alone, tmp_path: Path) -> None:
    from thaw.data.digits import Digits

    folder = finished(run_train(*DIGITS, "freezing=lora"))
    data, before = Digits(seed=0), table(folder / "predictions.csv")
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(data.splits["test"].inputs):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:03d}.png")
    code, printed, errors = run_script("predict", alone(folder), "images", "--out", "out.csv")
    assert code == 0, errors
    assert "Written: out.csv, 360 predictions" in printed
    mine = table(tmp_path / "out.csv")
    assert [row["sample"] for row in mine] == [f"images/{number:03d}.png" for number in range(360)]
    assert [row["prediction"] for row in mine] == [row["prediction"] for row in before]
    assert_same_numbers(mine, before)


@pytest.mark.fault("J5")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_texts_are_predicted_without_data_weights_or_network(
    run_train, run_script, alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    from test_transformers import TINY
    from transformers import AutoConfig, AutoModel

    from thaw.model.tokenizer import byte_tokenizer

    AutoModel.from_config(AutoConfig.for_model("bert", **TINY["bert"], vocab_size=258)).save_pretrained("weights")
    Path("weights").rename(tmp_path / "weights")
    byte_tokenizer(token_types=True).save(tmp_path / "weights")
    rows = sentences(60)
    named = f"model.name={tmp_path / 'weights'}"
    folder = finished(
        run_train(
            TEXT[0],
            "model=transformers",
            named,
            *QUICK,
            write(tmp_path / "data", rows),
            f"trainer.precision={precision}",
        )
    )
    before = table(folder / "predictions.csv")
    shutil.copy(tmp_path / "data" / "test.csv", tmp_path / "texts.csv")
    folder = alone(folder, "data", "weights")
    assert run_script("predict", folder, "texts.csv", "--out", "out.jsonl")[0] == 0
    mine = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in mine] == [row["text"] for row in rows[-12:]] == [row["sample"] for row in before]
    assert_same_numbers(mine, before, tolerance=2e-4 if precision == "32-true" else 0.02)

    lines = "".join(row["text"] + "\n" for row in rows[-12:]).encode() + b"\xff\xfe\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    code, _, errors = run_script("predict", folder, "-", "--out", "out.parquet", "--top", "1")
    assert code == 3, errors
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == ["sample", "prediction", "probability", "class_1", "probability_1", "error"]
    assert list(frame["prediction"][:12]) == [row["prediction"] for row in mine]
    assert frame["error"][12] == "line 13 is not in UTF-8"


@pytest.mark.fault("J5")
@pytest.mark.parametrize(
    "options",
    [MEL, (*MEL[:3], *SMALL, *MEL[4:]), (*MEL[:3], *WAV2VEC2, *MEL[4:])],
    ids=["mel", "deepspeech", "wav2vec2"],
)
def test_sounds_are_predicted_as_the_run_itself_did(run_train, run_script, alone, tmp_path: Path, options) -> None:
    folders(tmp_path / "data", count=8)
    folder = finished(run_train(*options))
    before = table(folder / "predictions.csv")
    (tmp_path / "data" / "test").rename(tmp_path / "heard")
    code, _, errors = run_script("predict", alone(folder, "data"), "heard", "--out", "out.csv")
    assert code == 0, errors
    # The norm of wav2vec2's first convolution is over all steps, also those of padding.
    tolerance = 2e-3 if options[3] == "model=wav2vec2" else 2e-4
    assert_same_numbers(table(tmp_path / "out.csv"), before, tolerance)


def test_a_transcript_is_predicted_for_each_recording(run_train, run_script, alone, tmp_path: Path) -> None:
    rows = recordings(tmp_path / "data")
    folder = finished(
        run_train("data=speech_csv", "data.root=data", TASK, *SMALL, *MEL[4:], "optimizer.lr=0.01", "data.val_size=0.2")
    )
    before = table(folder / "predictions.csv")
    code, _, errors = run_script("predict", alone(folder), "data/test.csv", "--out", "out.csv")
    assert code == 0, errors
    mine = table(tmp_path / "out.csv")
    assert list(mine[0]) == ["sample", "prediction", "error"]
    assert [row["sample"] for row in mine] == [f"data/{path}" for path, _ in rows[-8:]]
    assert [row["prediction"] for row in mine] == [row["prediction"] for row in before]


@pytest.mark.parametrize(
    ("task", "label", "columns"),
    [
        ("multilabel", lambda row: row["label"] + ";wet" * (len(row["text"]) % 2), {"prediction", "probability/wet"}),
        ("regression", lambda row: len(row["text"]), {"prediction/value"}),
        ("token_classification", lambda row: " ".join(word[0] for word in row["text"].split()), {"prediction"}),
    ],
)
def test_each_task_has_its_columns(run_train, run_script, tmp_path: Path, task: str, label, columns: set) -> None:
    rows = [row | {"label": label(row)} for row in sentences(60)]
    folder = finished(run_train(*TEXT, write(tmp_path / "data", rows), f"task={task}"))
    code, _, errors = run_script("predict", folder, "data/test.csv", "--out", "out.csv")
    assert code == 0, errors
    mine, before = table(tmp_path / "out.csv"), table(folder / "predictions.csv")
    assert columns | {"sample", "error"} <= set(mine[0])
    assert_same_numbers(mine, before, tolerance=1e-3)
    if task != "regression":
        assert [row["prediction"] for row in mine] == [row["prediction"] for row in before]


@pytest.mark.medium
def test_a_resumed_run_leaves_the_same(run_train, stopped_after_epoch, tmp_path: Path) -> None:
    def left(folder: Path) -> dict:
        inputs = json.loads((folder / "run.json").read_text())["inputs"]
        return {path.name: path.read_bytes() for path in (folder / "model").iterdir()} | {"inputs": inputs}

    options = (*TEXT, write(tmp_path / "data", sentences(60)), "run.dir=runs/mine")
    with stopped_after_epoch(0):
        before = left(run_train(*options).folders[-1])
    folder = finished(run_train(*options, "resume=must"))
    assert left(folder) == before
    assert {"config.json", "tokenizer.json"} < before.keys()
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.medium
def test_memory_does_not_grow_with_the_number_of_samples(run_train, tmp_path: Path) -> None:
    predictor = Predictor(fitted(finished(run_train(*TEXT, write(tmp_path / "data", sentences(60))))))

    drawn: list[int] = []
    held: dict[int, int] = {}

    def many() -> Iterator[Sample]:
        for number in range(2000):
            drawn[:] = [number]
            yield Sample(f"sample {number}", "hay " * (1 + number % 5))

    tracemalloc.start()
    for batch, rows in enumerate(predictor.rows(many()), start=1):
        assert drawn == [min(batch * BATCH, 2000) - 1]  # none is read before its turn
        if batch in (10, 60):
            del rows
            gc.collect()  # how much garbage waits for its collection is chance
            held[batch] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    an_empty_row_each = 50 * BATCH * sys.getsizeof({})
    assert held[60] - held[10] < an_empty_row_each


@pytest.mark.medium
def test_what_cannot_be_predicted_is_told_in_words(run_train, run_script, stopped_after_epoch, tmp_path: Path) -> None:
    folder = finished(run_train(*DIGITS))
    with stopped_after_epoch(0):
        stopped = run_train(*DIGITS).folders[-1]
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("words\n")
    (tmp_path / "table.csv").write_text("file,label\na.png,1\n")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    old = shutil.copytree(folder, tmp_path / "runs" / "old")
    record = json.loads((old / "run.json").read_text())
    own = shutil.copytree(folder, tmp_path / "runs" / "own")
    record["inputs"] = {"preprocessing": record["inputs"]["preprocessing"]}  # of a DataModule that tells no more
    (own / "run.json").write_text(json.dumps(record))
    del record["inputs"]
    (old / "run.json").write_text(json.dumps(record))
    for arguments, said in (
        ((tmp_path / "nothing", "a.png"), "there is no run.json"),
        ((stopped, "a.png"), "is interrupted"),
        ((old, "a.png"), "run.json must say under 'inputs'"),
        ((own, "a.png"), "Let `inputs` of its DataModule"),
        ((folder, "b.png"), "there is no 'b.png'"),
        ((folder, "empty"), "'empty' has none"),
        ((folder, "words.txt"), "INPUT must be of the kind that the run was trained on (.jpg"),
        ((folder, "table.csv"), "--column must be a column of the table; got 'path'"),
        ((folder, "a.png", "--top", "0"), "--top must be 1 or more"),
    ):
        code, _, errors = run_script("predict", *arguments, "--out", "out.csv")
        assert code == 2, errors
        assert said in errors
        assert len(errors.splitlines()) <= 6
        assert "Traceback" not in errors
    for out, said in (("out.txt", "--out must end in .csv, .parquet or .jsonl"), ("no/out.csv", "--out must lie in")):
        code, _, errors = run_script("predict", folder, "a.png", "--out", out)
        assert (code, said in errors) == (2, True), errors
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".out*"))
    assert run_script("predict", folder, "table.csv", "--out", "out.csv", "--column", "file")[0] == 0
