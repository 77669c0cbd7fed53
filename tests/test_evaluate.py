"""`scripts/evaluate.py`: the figures of a run again to the last digit, from its directory; and other data."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from test_train_speech import SMALL, folders
from test_train_text import BERT, QUICK, sentences, write

from thaw.errors import UserError
from thaw.serve.evaluation import evaluate

DIGITS = ("logger=none", "data.train_size=64", "trainer.max_epochs=2", "trainer=cpu", "optimizer.lr=1e-3")
TEXT = ("data=text_csv", *BERT, *QUICK)
MEL = ("data=speech_folder", "data.root=data", "data.val_size=0.2", "model=resnet", *QUICK[:4], "data.num_workers=0")


def finished(outcome) -> Path:
    assert outcome.code == 0, outcome.errors
    return outcome.folders[-1]


def assert_equal_to_the_last_digit(folder: Path) -> None:
    found = evaluate(folder)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert found.measured == {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert found.measured
    assert found.before == found.measured


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("callbacks=ema",),
        ("freezing=lora", "task.class_weights=balanced"),
        ("task.class_weights=balanced", "data.batch_size=24", "monitor=train/loss"),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_images_are_measured_as_in_training(run_train, options: tuple[str, ...]) -> None:
    assert_equal_to_the_last_digit(finished(run_train(*DIGITS, *options)))


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [
        ("trainer.precision=bf16-mixed", "model.gradient_checkpointing=true"),
        ("freezing=lora", "callbacks=ema", "task.class_weights=balanced"),
    ],
    ids=lambda options: options[0],
)
def test_texts_are_measured_as_in_training(run_train, tmp_path: Path, options: tuple[str, ...]) -> None:
    root = write(tmp_path / "data", sentences(60))
    assert_equal_to_the_last_digit(finished(run_train(*TEXT, root, *options)))


@pytest.mark.parametrize("model", [MEL, (*MEL[:3], *SMALL, *MEL[4:])], ids=["mel", "deepspeech"])
def test_sounds_are_measured_as_in_training(run_train, tmp_path: Path, model: tuple[str, ...]) -> None:
    folders(tmp_path / "data", count=8)
    assert_equal_to_the_last_digit(finished(run_train(*model)))


@pytest.mark.medium
def test_neither_pretrained_weights_nor_the_place_of_the_data_are_needed(run_train, tmp_path: Path) -> None:
    from test_transformers import TINY
    from transformers import AutoConfig, AutoModel

    from thaw.model.tokenizer import byte_tokenizer

    weights = tmp_path / "weights"
    config = AutoConfig.for_model("bert", **TINY["bert"], vocab_size=258)
    AutoModel.from_config(config).save_pretrained(weights)
    byte_tokenizer().save(weights)
    root = write(tmp_path / "data", sentences(60))
    folder = finished(run_train(*TEXT[:1], "model=transformers", f"model.name={weights}", *QUICK, root))
    shutil.rmtree(weights)
    assert_equal_to_the_last_digit(folder)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data\.root"):
        evaluate(folder)
    found = evaluate(folder, [f"data.root={tmp_path / 'moved'}"])
    assert found.measured == {
        name: value
        for name, value in json.loads((folder / "run.json").read_text())["metrics"].items()
        if name.startswith("test/")
    }


@pytest.mark.medium
def test_other_data_keep_the_classes_of_the_run_by_name(run_train, run_script, tmp_path: Path) -> None:
    """A table with one class alone, the second of the run: its index must not become that of the first."""
    rows = sentences(60)
    folder = finished(run_train(*TEXT, write(tmp_path / "data", rows), "trainer.max_epochs=6"))
    sea = [row for row in rows[:-12] if row["label"] == "sea"]
    with open(tmp_path / "sea.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(sea)
    code, printed, errors = run_script("evaluate", folder, f"data.root={tmp_path / 'sea.csv'}", "--out", "measured")
    assert code == 0, errors
    assert "These data have no test split: all samples were measured" in printed
    told = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
    with open(tmp_path / "measured" / "predictions.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [row["sample"] for row in predicted] == [row["text"] for row in sea]
    assert {row["target"] for row in predicted} == {"sea"}
    right = sum(row["prediction"] == "sea" for row in predicted)
    assert told["samples"] == len(sea)
    assert told["metrics"]["test/accuracy"] == pytest.approx(right / len(sea))
    assert right > len(sea) / 2


@pytest.mark.medium
def test_what_cannot_be_measured_is_told_in_words(run_train, run_script, tmp_path: Path) -> None:
    folder = finished(run_train(*TEXT, write(tmp_path / "data", sentences(60))))
    other = write(tmp_path / "other", [row | {"label": "space"} for row in sentences(20, seed=1)], test=4)
    broken = shutil.copytree(folder, tmp_path / "runs" / "broken")
    (broken / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    for arguments, said in (
        ((tmp_path / "nothing",), "there is no run.json"),
        ((broken,), "must be a checkpoint of tensors and plain containers"),
        ((folder, other), "has classes that the run lacks: ['space']. The run has farm, sea"),
        ((folder, "data.rot=x"), "data.rot is no setting of thaw.data.text.Text. Did you mean 'root'?"),
        ((folder, "model.dropout=0"), "must set one value of data or paths"),
        ((folder, "data=images"), "conf/data/ has no 'images'"),
        ((folder, "data.root=a,b"), "must set one value of data or paths"),
    ):
        code, _, errors = run_script("evaluate", *arguments)
        assert code == 2, errors
        assert said in errors
        assert len(errors.splitlines()) <= 6, errors
        assert "Traceback" not in errors


@pytest.mark.medium
def test_nothing_is_written_unasked(run_train, run_script) -> None:
    folder = finished(run_train(*DIGITS))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, printed, _ = run_script("evaluate", folder, "--checkpoint", "last")
    assert code == 0
    assert "last.ckpt on 360 samples of test" in " ".join(printed.split())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
