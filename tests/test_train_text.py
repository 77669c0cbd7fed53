"""Whole runs over text, with tiny random models: every task, its files in the data's own order, and mistakes."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome

from thaw.run.checkpoint import load_checkpoint

SIZE = "hidden_size:16,num_hidden_layers:2,num_attention_heads:2,intermediate_size:32"
BERT = ("model=transformers", "model.name=bert", "model.weights=none", f"model.options={{{SIZE}}}")
GPT = ("model=gpt2", "model.name=gpt2", "model.weights=none", "model.options={n_embd:16,n_layer:2,n_head:2}")
QUICK = (
    "logger=none",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "freezing=none",
    "data.max_length=24",
    "optimizer.lr=0.01",
)

WORDS = {"farm": ["cow", "hay", "barn", "plough"], "sea": ["fish", "wave", "ship", "salt"]}


def sentences(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Of one to seven words of one of two classes, no two alike."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        label = draw.choice(sorted(WORDS))
        text = " ".join(draw.choices(WORDS[label], k=draw.randint(1, 7)))
        found[text] = label
    return [{"text": text, "label": label} for text, label in found.items()]


def write(folder: Path, rows: list[dict], test: int = 12) -> str:
    """The rows as train.csv, and the last of them as test.csv, in a folder."""
    folder.mkdir()
    for name, part in (("train", rows[:-test]), ("test", rows[-test:])):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(part)
    return f"data.root={folder}"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def finished(outcome: Outcome, names: list[str] | None) -> list[dict[str, str]]:
    """The rows of predictions.csv of a run that went well, and whose samples are these in this order."""
    assert outcome.code == 0, outcome.errors
    assert outcome.record["status"] == "finished"
    rows = table(outcome.folders[-1] / "predictions.csv") if names is not None else []
    assert [row["sample"] for row in rows] == (names or [])
    return rows


@pytest.mark.medium
@pytest.mark.parametrize("model", [BERT, (*GPT, "data.batch_size=5")])
def test_sentences_are_classified(run_train, tmp_path: Path, model: tuple[str, ...]) -> None:
    rows = sentences(80)
    root = write(tmp_path / "data", rows)
    outcome = run_train("data=text_csv", root, *model, *QUICK, "trainer.max_epochs=6")
    found = finished(outcome, [row["text"] for row in rows[-12:]])
    assert [row["target"] for row in found] == [row["label"] for row in rows[-12:]]
    assert {row["split"] for row in found} == {"test"}
    right = sum(row["target"] == row["prediction"] for row in found) / 12
    record = outcome.record
    assert record["metrics"]["test/accuracy"] == pytest.approx(right)
    assert right >= 0.75
    assert record["data"]["classes"] == ["farm", "sea"]
    assert record["data"]["sizes"] == {"train": 61, "val": 7, "test": 12}
    quality = record["data"]["quality"]
    assert quality["unit"] == "tokens"
    assert quality["truncated"]["train"] > 0
    assert quality["lengths"]["train"]["max"] == 24
    assert [row["class"] for row in table(outcome.folders[-1] / "per_class.csv")] == ["farm", "sea"]
    assert "tokens" in outcome.printed
    assert "truncated" in outcome.printed


def test_pairs_are_classified_in_batches_of_tokens(run_train, tmp_path: Path) -> None:
    left, right = sentences(60), sentences(60, seed=1)
    rows = [
        {"first": a["text"], "second": b["text"], "same": "yes" if a["label"] == b["label"] else "no"}
        for a, b in zip(left, right, strict=True)
    ]
    columns = ("data.text_column=first", "data.pair_column=second", "data.label_column=same")
    outcome = run_train("data=text_csv", write(tmp_path / "data", rows), *columns, "data.max_tokens=96", *BERT, *QUICK)
    finished(outcome, [f"{row['first']} | {row['second']}" for row in rows[-12:]])
    assert outcome.record["data"]["classes"] == ["no", "yes"]


@pytest.mark.medium
def test_several_labels_from_one_column_or_several(run_train, tmp_path: Path) -> None:
    rows = [
        {"text": row["text"], "both": ";".join(held), "cow": int("cow" in held), "fish": int("fish" in held)}
        for row in sentences(60)
        for held in [[name for name in ("cow", "fish") if name in row["text"]]]
    ]
    root = write(tmp_path / "data", rows)
    found = []
    for column in ("both", "[cow,fish]"):
        outcome = run_train("task=multilabel", "data=text_csv", root, f"data.label_column={column}", *BERT, *QUICK)
        found.append(finished(outcome, [row["text"] for row in rows[-12:]]))
        assert [row["target"] for row in found[-1]] == [row["both"] for row in rows[-12:]]
        assert outcome.record["monitor"] == "val/f1"
        assert {"test/average_precision", "test/auroc", "test/mcc", "test/accuracy"} <= set(outcome.record["metrics"])
    assert found[0] == found[1]


@pytest.mark.parametrize("columns", [["score"], ["score", "size"]])
def test_numbers_are_told_in_their_own_unit(run_train, tmp_path: Path, columns: list[str]) -> None:
    rows = [
        {"text": r["text"], "score": 1000 + 10 * (r["label"] == "sea"), "size": len(r["text"].split()) / 100}
        for r in sentences(80)
    ]
    outcome = run_train(
        "task=regression", "data=text_csv", write(tmp_path / "data", rows), f"data.label_column=[{','.join(columns)}]",
        *BERT, *QUICK, "trainer.max_epochs=6",
    )  # fmt: skip
    found = finished(outcome, [row["text"] for row in rows[-12:]])
    assert list(found[0])[2:] == [f"{kind}/{name}" for kind in ("target", "prediction") for name in columns]
    assert [float(row["target/score"]) for row in found] == [row["score"] for row in rows[-12:]]
    assert all(990 < float(row["prediction/score"]) < 1020 for row in found)
    record = outcome.record
    assert record["monitor"] == "val/mae"
    if columns == ["score"]:
        errors = [abs(float(row["target/score"]) - float(row["prediction/score"])) for row in found]
        assert record["metrics"]["test/mae"] == pytest.approx(sum(errors) / 12, rel=1e-4)
    assert {"test/rmse", "test/r2", "test/spearman"} <= set(record["metrics"])
    assert record["data"]["quality"]["numbers"]["train"]["min"] == (1000 if len(columns) == 1 else pytest.approx(0.01))


@pytest.mark.parametrize("model", [BERT, GPT])
def test_words_are_tagged(run_train, tmp_path: Path, model: tuple[str, ...]) -> None:
    rows = [
        {"text": row["text"], "label": " ".join("SEA" if w in WORDS["sea"] else "O" for w in row["text"].split())}
        for row in sentences(60)
    ]
    root = write(tmp_path / "data", rows)
    outcome = run_train("task=token_classification", "data=text_csv", root, *model, *QUICK, "data.max_length=64")
    found = finished(outcome, [row["text"] for row in rows[-12:]])
    assert [row["target"] for row in found] == [row["label"] for row in rows[-12:]]
    assert all(len(row["prediction"].split()) == len(row["target"].split()) for row in found)
    assert outcome.record["monitor"] == "val/f1"


def test_a_language_model_learns_from_the_embedded_text(run_train) -> None:
    outcome = run_train(
        "task=language_modeling", "data=docstrings", *GPT, *QUICK, "data.max_length=64",
        "+data.packages=[numpy,sklearn]", "+data.per_package=20",
    )  # fmt: skip
    finished(outcome, None)
    metrics, record = outcome.record["metrics"], outcome.record
    assert record["monitor"] == "val/perplexity"
    assert 1 < metrics["test/perplexity"] < 258
    assert metrics["test/perplexity"] == pytest.approx(2.718281828 ** metrics["test/loss"], rel=0.05)
    assert not (outcome.folders[-1] / "predictions.csv").exists()


def test_the_embedded_text_is_classified(run_train) -> None:
    packages = ("+data.packages=[numpy,sklearn]", "+data.per_package=40")
    outcome = run_train("data=docstrings", *BERT, *QUICK, *packages, "data.sampler=balanced")
    assert outcome.code == 0, outcome.errors
    assert outcome.record["data"]["classes"] == ["numpy", "sklearn"]
    assert outcome.record["data"]["quality"]["leaks"] == []


@pytest.mark.medium
@pytest.mark.parametrize("freezing", ["none", "gradual"])
def test_a_run_over_text_stopped_and_resumed_is_the_same_run(
    run_train, tmp_path: Path, stopped_after_epoch, freezing: str
) -> None:
    """Bit for bit, with dropout, batches by length and by tokens, and with the tokens found in the cache."""
    root = write(tmp_path / "data", sentences(80))
    command = (
        "data=text_csv", root, *BERT, *QUICK, "trainer.max_epochs=3", "data.max_tokens=96", f"freezing={freezing}",
        "model.dropout=0.3",
    )  # fmt: skip
    straight = run_train(*command, "run.dir=runs/straight").folders[-1]
    with stopped_after_epoch(1):
        assert run_train(*command, "run.dir=runs/stopped", "resume=auto").code == 130
    outcome = run_train(*command, "run.dir=runs/stopped", "resume=auto")
    assert outcome.code == 0, outcome.errors
    resumed = outcome.folders[-1]
    first, second = (load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (straight, resumed))
    assert first["epoch"] == second["epoch"] == 2
    assert all(torch.equal(first["state_dict"][name], second["state_dict"][name]) for name in first["state_dict"])
    assert str(first["optimizer_states"]) == str(second["optimizer_states"])
    records = [json.loads((folder / "run.json").read_text()) for folder in (straight, resumed)]
    assert records[0]["metrics"] == records[1]["metrics"]
    predictions = [(folder / "predictions.csv").read_text() for folder in (straight, resumed)]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=resnet"], "this one reads image inputs. Write e.g. model=bert."),
        ([*BERT, "data.text_column=txt"], "must be a column of the table; got 'txt'. Did you mean 'text'?"),
        ([*BERT, "data.label_column=[label,lable]"], "data.label_column must be a column of the table; got 'lable'."),
        ([*BERT, "data.pair_column=other"], "data.pair_column must be a column of the table; got 'other'."),
        ([*BERT, "task=language_modeling"], "Choose e.g. model=gpt2."),
        (["model=resnet", "task=language_modeling"], "Write e.g. model=gpt2."),
        ([*BERT, "task=token_classification"], "words and 1 tags"),
        ([*BERT, "task=regression"], "(label 'sea' is no number), train[1] "),
        ([*BERT, "data.max_length=9999"], "data.max_length must be at most"),
        ([*BERT, "data.max_tokens=20", "data.max_length=24"], "data.max_tokens must hold a sample"),
        ([*BERT, "data.max_tokens=64", "data.sampler=balanced"], "data.max_tokens must be null"),
        ([*BERT, "data.shots=999"], "data.shots must be no more than the samples of every class"),
        ([*BERT, "+task.metrics.mine=MulticlassAccurac"], "Did you mean 'MulticlassAccuracy'?"),
        ([*BERT, "task.class_weights=[1,2,3]"], "task.class_weights must have one number for each of the 2 classes"),
    ],
)  # fmt: skip
def test_a_mistake_over_text_is_named(run_train: Callable, tmp_path: Path, overrides: list[str], said: str) -> None:
    outcome = run_train("data=text_csv", write(tmp_path / "data", sentences(40)), "logger=none", *overrides)
    assert outcome.code == 2, outcome.errors
    assert said in outcome.errors
    assert "Traceback" not in outcome.errors
    assert len(outcome.errors.strip().splitlines()) <= 6
    assert not outcome.folders


@pytest.mark.fault("E2")
def test_samples_that_are_left_out_are_told_and_counted(run_train, tmp_path: Path) -> None:
    rows = sentences(312)
    rows[3]["text"] = ""
    outcome = run_train(*BERT, *QUICK, "data=text_csv", write(tmp_path / "data", rows), "data.on_bad_sample=skip")
    assert outcome.code == 0, outcome.errors
    data = outcome.record["data"]
    assert data["skipped"] == ["train 'row 4' (no text)"]
    assert data["quality"]["skipped"] == {"no text": 1}
    assert "skipped: 1 no text" in outcome.printed


@pytest.mark.fault("E13")
def test_a_run_does_not_go_on_with_other_samples(run_train, tmp_path: Path) -> None:
    overrides = [*BERT, *QUICK, "data=text_csv", write(tmp_path / "data", sentences(60)), "run.dir=runs/one"]
    assert run_train(*overrides, "trainer.max_epochs=2").code == 0
    record = json.loads((tmp_path / "runs/one/run.json").read_text())
    (tmp_path / "runs/one/run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    rows = table(tmp_path / "data" / "train.csv")
    rows[0]["text"] += " hay"
    with open(tmp_path / "data" / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    outcome = run_train(*overrides, "resume=must")
    assert outcome.code == 2
    assert "the samples or their labels are others than before" in outcome.errors


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=token_classification", "model=resnet", "data=digits"], "model must give what the task asks for"),
        (["+task.metrics.far=MeanAbsoluteError"], "task.metrics.far must read what this task predicts"),
        (["task.class_weights=[0,1]"], "task.class_weights"),
        (["model=hf_vit", "model.weights=none", "data=digits", "data.image_size=64"], "data.image_size must be null"),
    ],
)
def test_what_does_not_fit_together_is_refused(run_train, tmp_path: Path, overrides: list[str], said: str) -> None:
    root = write(tmp_path / "data", sentences(60))
    given = [*BERT, "data=text_csv", root] if "data=digits" not in overrides else []
    outcome = run_train(*given, "logger=none", *overrides)
    assert outcome.code == 2, outcome.errors
    assert said in outcome.errors
    assert "Traceback" not in outcome.errors


def test_weights_in_bfloat16_train(run_train, tmp_path: Path) -> None:
    root = write(tmp_path / "data", sentences(60))
    outcome = run_train(*BERT, *QUICK, "data=text_csv", root, "trainer.precision=bf16-true", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.errors
