"""Whole runs over sound and over images from a table: every task that reads them, and mistakes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_speech import RATE, save, tone
from test_train_text import finished, table

QUICK = ("logger=none", "trainer=cpu", "trainer.max_epochs=2", "freezing=none", "data.num_workers=0")
SMALL = ("model=deepspeech", "model.width=16", "model.layers=1", "model.n_mels=20")
WAV2VEC2 = (
    "model=wav2vec2", "model.name=wav2vec2", "model.weights=none",
    "model.options={hidden_size:16,num_hidden_layers:2,num_attention_heads:2,intermediate_size:32,"
    "conv_dim:[16,16,16],conv_kernel:[10,3,2],conv_stride:[5,2,2],num_feat_extract_layers:3,"
    "num_conv_pos_embeddings:16,num_conv_pos_embedding_groups:2}",
)  # fmt: skip
TASK = "task=speech_recognition"
LETTERS = {"a": 300, "b": 900, "c": 2000}


def recordings(folder: Path, count: int = 36) -> list[tuple[str, str]]:
    """(path, what is said) of tones, one for each letter, 60 ms each, with a manifest for train and one for test."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        said = "".join(draw.choice(list(LETTERS), size=draw.integers(1, 4)))
        wave = np.concatenate([tone(LETTERS[letter], 0.06) for letter in said])
        save(folder / "clips" / f"{number:02d}.wav", wave + draw.normal(0, 0.01, len(wave)).astype(np.float32))
        rows.append((f"clips/{number:02d}.wav", said))
    for split, part in (("train", rows[:-8]), ("test", rows[-8:])):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("path", "label"), *part])
    return rows


def folders(root: Path, count: int = 16) -> None:
    for split, some in (("train", count), ("test", 6)):
        for name, frequency in (("high", 1500), ("low", 300)):
            for number in range(some):
                wave = tone(frequency + 7 * number + len(split), 0.1 + number / 100)
                save(root / split / name / f"{number:02d}.wav", wave)


@pytest.mark.medium
@pytest.mark.parametrize(
    "model",
    [(*SMALL, "optimizer.lr=0.01"), (*WAV2VEC2, "optimizer.lr=0.01"), ("model=resnet",)],
    ids=lambda model: model[0],
)
def test_sounds_are_classified(run_train, tmp_path: Path, model: tuple[str, ...]) -> None:
    """From waves by a network of one's own or a transformer, and from log-mel images by the bundled image network."""
    folders(tmp_path / "data")
    outcome = run_train(
        "data=speech_folder", "data.root=data", "data.val_size=0.2", *model, *QUICK, "trainer.max_epochs=4"
    )
    names = [f"data/test/{name}/{number:02d}.wav" for name in ("high", "low") for number in range(6)]
    rows = finished(outcome, names)
    assert [row["target"] for row in rows] == ["high"] * 6 + ["low"] * 6
    right = sum(row["target"] == row["prediction"] for row in rows) / 12
    assert outcome.record["metrics"]["test/accuracy"] == pytest.approx(right)
    if "wav2vec2" not in model[0]:
        assert right >= 0.75
    assert outcome.record["data"]["quality"]["unit"] == "seconds"
    assert [row["class"] for row in table(outcome.folders[-1] / "per_class.csv")] == ["high", "low"]
    assert "seconds" in outcome.printed


@pytest.mark.medium
@pytest.mark.parametrize("freezing", ["surgical", "linear_probe"])
def test_log_mel_images_are_read_in_the_precision_of_the_weights(run_train, tmp_path: Path, freezing: str) -> None:
    folders(tmp_path / "data", count=6)
    words = ("data=speech_folder", "data.root=data", "data.val_size=0.25", "model=resnet")
    words += (*QUICK, f"freezing={freezing}")
    outcome = run_train(*words, "trainer.precision=bf16-true", "trainer.max_epochs=3", "cache.dir=cache")
    assert outcome.code == 0, outcome.errors
    if freezing == "linear_probe":
        assert "data.time_shift=0" in outcome.printed  # and not what images would need
        assert "data.views" not in outcome.printed
        assert {entry["split"] for entry in outcome.record["features"]} == {"val", "test"}


@pytest.mark.medium
def test_random_weights_that_are_kept_frozen_are_told(run_train, tmp_path: Path) -> None:
    folders(tmp_path / "data", count=6)
    data = ("data=speech_folder", "data.root=data", "data.val_size=0.25", *QUICK, "trainer.max_epochs=1")
    for override, said in (("freezing=gradual", True), ("freezing=none", False)):
        outcome = run_train(*data, *SMALL, override)
        assert ("starts from random weights" in outcome.printed) == said
    assert "random weights" not in run_train(*data, "model=resnet", "freezing=gradual").printed


@pytest.mark.medium
@pytest.mark.parametrize("model", [SMALL, WAV2VEC2], ids=lambda model: model[0])
def test_letters_are_recognised(run_train, tmp_path: Path, model: tuple[str, ...]) -> None:
    (tmp_path / "data").mkdir()
    said = recordings(tmp_path / "data")
    outcome = run_train("task=speech_recognition", "data=speech_csv", "data.root=data", *model, *QUICK)
    rows = finished(outcome, [f"data/{path}" for path, _ in said[-8:]])
    assert [row["target"] for row in rows] == [text for _, text in said[-8:]]
    record = outcome.record
    assert record["monitor"] == "val/cer"
    assert record["data"]["classes"] == ["a", "b", "c"]
    assert {"test/cer", "test/wer", "test/loss"} <= set(record["metrics"])
    assert "train/cer" not in record["metrics"]
    assert not (outcome.folders[-1] / "per_class.csv").exists()


@pytest.mark.medium
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_images_come_from_a_table(run_train, tmp_path: Path, task: str) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    labels = {"classification": lambda grey: "dark" if grey < 128 else "light", "regression": lambda grey: grey / 10}
    labels["multilabel"] = lambda grey: ";".join(name for name, on in (("dark", grey < 90), ("mid", grey < 170)) if on)
    rows = []
    for number, grey in enumerate(np.random.default_rng(0).permutation(np.arange(10, 250, 6))):
        Image.new("L", (36, 32), int(grey)).save(tmp_path / "data" / "images" / f"{number}.png")
        rows.append({"file": f"images/{number}.png", "is": labels[task](int(grey))})
    with open(tmp_path / "data" / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "is"])
        writer.writeheader()
        writer.writerows(rows)
    outcome = run_train(
        f"task={task}", "data=image_csv", "data.root=data/train.csv", "data.path_column=file", "data.label_column=is",
        "data.test_size=0.2", *QUICK,
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    found = table(outcome.folders[-1] / "predictions.csv")
    known = {f"data/{row['file']}": str(row["is"]) for row in rows}
    target = "target/value" if task == "regression" else "target"
    assert len(found) == 8
    for row in found:
        assert known[row["sample"]] == row[target] or float(known[row["sample"]]) == pytest.approx(float(row[target]))
    positions = [list(known).index(row["sample"]) for row in found]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=transformers", "model.name=bert", "model.weights=none", TASK],
            "task must suit the model: it asks for waveform inputs.",
        ),
        (["model=resnet", TASK], "Write e.g. model=bert or model=deepspeech."),
        ([*SMALL, "task=language_modeling"], "Write e.g. model=gpt2."),
        ([*SMALL, "data.path_column=file"], "data.path_column must be a column of the table; got 'file'."),
        ([*SMALL, "data.label_column=labels"], "Did you mean 'label'?"),
        ([*SMALL, "data.root=nowhere"], "data.root must be an existing folder or table"),
        (
            [*SMALL, "data.transcripts={a:x}", TASK],
            "data.transcripts must have an entry",
        ),
        ([*SMALL, "data.noise=loud"], "data.noise must be a number"),
        ([*SMALL, "task=regression"], "is no number), train[1] "),
    ],
)
def test_a_mistake_over_sound_is_named(run_train, tmp_path: Path, overrides: list[str], said: str) -> None:
    (tmp_path / "data").mkdir()
    recordings(tmp_path / "data", count=12)
    outcome = run_train("data=speech_csv", "data.root=data", "logger=none", *overrides)
    assert outcome.code == 2, outcome.errors
    assert said in outcome.errors
    assert "Traceback" not in outcome.errors
    assert len(outcome.errors.strip().splitlines()) <= 6
    assert not outcome.folders


def test_ten_seconds_of_silence_are_no_reason_to_fail(run_train, tmp_path: Path) -> None:
    folders(tmp_path / "data", count=6)
    save(tmp_path / "data" / "train" / "low" / "silence.wav", np.zeros(10 * RATE, np.float32))
    outcome = run_train("data=speech_folder", "data.root=data", "data.val_size=0.25", *SMALL, *QUICK, "data.noise=10")
    assert outcome.code == 0, outcome.errors
    assert np.isfinite(outcome.record["metrics"]["train/loss"])
