"""Text as a network gets it: columns, pairs, tags and blocks in tokens, batches by length, and samples without text."""

import csv
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from thaw.data.targets import IGNORED
from thaw.data.text import Text
from thaw.errors import UserError
from thaw.model.tokenizer import Tokenizer, byte_tokenizer
from thaw.model.transformers import transformers_network

BYTES = byte_tokenizer()
PAIRS = byte_tokenizer(token_types=True)
END = BYTES.end_id


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def texts(count: int = 40, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    return [
        {"text": f"{number} " + "x" * draw.randint(0, 30), "label": draw.choice(["a", "b"])} for number in range(count)
    ]


def load(root: Path, tokenizer: Tokenizer = BYTES, reads: int | None = None, **options: Any) -> Text:
    """With a network that reads at most so many tokens."""
    data = Text(str(root), **{"num_workers": 0} | options)
    data.preprocess(kind="text", tokenizer=tokenizer, max_length=reads)
    return data


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


def ids(text: str) -> list[int]:
    return BYTES.encode([text])["input_ids"][0]


def said(batch: dict[str, torch.Tensor], row: int) -> str:
    """The text of one row of a batch."""
    return BYTES.decode(batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist())


# What is read


def test_a_sample_is_the_tokens_of_its_row(tmp_path: Path) -> None:
    rows = texts()
    data = load(write(tmp_path / "a.csv", rows), test_size=0.2)
    known = {row["text"]: row["label"] for row in rows}
    seen = {}
    for split, samples in data.splits.items():
        names = list(data.names(samples))
        for index, (sample, target) in enumerate(samples):
            assert sample["input_ids"] == ids(names[index])
            assert samples.name(index) == names[index]
            seen[names[index]] = data.classes[target]
        assert data.lengths(split).tolist() == [len(ids(name)) for name in names]
    assert seen == known


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_padded_to_their_longest_with_a_mask(tmp_path: Path, split: str) -> None:
    rows = texts(60)
    data = load(write(tmp_path / "a.csv", rows), val_size=0.3, batch_size=8)
    known, seen, sizes = {row["text"]: row["label"] for row in rows}, [], []
    for batch, targets in getattr(data, f"{split}_dataloader")():
        mask = batch["attention_mask"]
        assert set(batch) == {"input_ids", "attention_mask"}
        assert mask.dtype == batch["input_ids"].dtype == torch.int64
        assert mask.sum(dim=1).max() == mask.shape[1]
        assert (batch["input_ids"][mask == 0] == BYTES.pad_id).all()
        assert (mask.diff(dim=1) <= 0).all()
        seen += [said(batch, row) for row in range(len(targets))]
        sizes.append(mask.shape[1])
        assert [known[text] for text in seen[-len(targets) :]] == [data.classes[target] for target in targets]
    assert sorted(seen) == sorted(data.names(data.splits[split]))
    assert len(set(sizes)) > 1


def test_a_budget_of_tokens_bounds_every_batch(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.csv", texts(100)), max_tokens=90, max_length=36, batch_size=32)
    assert data.max_tokens == 90
    lengths = data.lengths("train")
    assert all(len(rows) * lengths[rows].max() <= 90 for rows in data.in_order("train"))
    for epoch in range(3):
        progress = SimpleNamespace(current=SimpleNamespace(processed=epoch))
        data.trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_progress=progress))
        batches = [batch["input_ids"] for batch, _ in data.train_dataloader()]
        assert max(batch.numel() for batch in batches) <= 90
        assert sum(map(len, batches)) == 90
        assert len(batches) == len(data.train_dataloader())


def test_without_a_batch_size_the_budget_alone_bounds_a_batch(tmp_path: Path) -> None:
    rows = [{"text": f"{number:03d}", "label": "ab"[number % 2]} for number in range(200)]
    data = load(write(tmp_path / "a.csv", rows), max_tokens=400, max_length=4)
    assert sorted(len(batch) for batch in data.batches("train").batches(0)) == [80, 100]


@pytest.mark.parametrize("kind", [BYTES, PAIRS])
def test_pairs_are_two_texts_between_ends_and_told_apart_where_the_model_can(tmp_path: Path, kind: Tokenizer) -> None:
    rows = [{"a": f"first {n}", "b": "second" * (n % 3), "label": "xy"[n % 2]} for n in range(20)]
    data = load(write(tmp_path / "a.csv", [r for r in rows if r["b"]]), kind, text_column="a", pair_column="b")
    sample, _ = data.splits["train"][0]
    name = data.splits["train"].name(0)
    first, second = name.split(" | ")
    assert sample["input_ids"] == [*ids(first), *ids(second)]
    batch, _ = next(iter(data.train_dataloader()))
    assert ("token_type_ids" in batch) == (kind is PAIRS)
    if kind is PAIRS:
        assert sample["token_type_ids"] == [0] * len(ids(first)) + [1] * len(ids(second))
        assert batch["token_type_ids"].shape == batch["input_ids"].shape
        assert (batch["token_type_ids"][batch["attention_mask"] == 0] == 0).all()


def test_what_is_too_long_is_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "x" * length, "label": "ab"[length % 2]} for length in range(1, 41)]
    data = load(write(tmp_path / "a.csv", rows), max_length=16, val_size=0.25)
    long = {split: sum(len(n) + 1 > 16 for n in data.names(data.splits[split])) for split in data.splits}
    assert data.truncated == long
    assert sum(long.values()) == 25
    assert max(data.lengths("train")) == 16
    assert all(len(sample["input_ids"]) <= 16 and sample["input_ids"][-1] == END for sample, _ in data.splits["train"])
    assert data.quality().truncated == long


@pytest.mark.parametrize(
    ("reads", "chosen", "expected"),
    [(None, None, 512), (128, None, 128), (8192, None, 512), (8192, 1000, 1000), (128, 64, 64)],
)
def test_length_is_what_the_network_reads_at_most_512(tmp_path: Path, reads: int, chosen: int, expected: int) -> None:
    rows = [{"text": "x" * 5000, "label": "ab"[number % 2]} for number in range(20)]
    data = load(write(tmp_path / "a.csv", rows), reads=reads, max_length=chosen)
    assert set(data.lengths("train")) == {expected}


def test_a_length_beyond_the_network_is_refused(tmp_path: Path) -> None:
    said = refusal(write(tmp_path / "a.csv", texts()), reads=128, max_length=200)
    assert "data.max_length must be at most 128 for this model; got 200" in said


def test_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later run finds them on disk, unless something decides the tokens otherwise."""
    calls = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, batch: list[str], *rest: Any) -> dict[str, list]:
        calls.append(len(batch))
        return encode(self, batch, *rest)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    path = write(tmp_path / "a.csv", texts(seed=7))
    first = load(path)
    assert sum(calls) == 40
    again = load(path, byte_tokenizer(), seed=3, shots=2, batch_size=4)
    assert sum(calls) == 40
    assert first.splits["train"][0][0] in [sample for split in load(path).splits.values() for sample, _ in split]
    assert again.lengths("train").max() <= first.lengths("train").max()
    load(path, max_length=20)
    assert sum(calls) == 80
    load(path, PAIRS)
    assert sum(calls) == 120
    load(write(tmp_path / "a.csv", texts(30, seed=8)))
    assert sum(calls) == 150


def test_class_folders_of_texts(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(10):
                (tmp_path / split / label / f"{number}.txt").write_text(f"{split} {label}\n{number} ü")
    data = load(tmp_path, val_size=0.2)
    assert data.sizes == {"train": 16, "val": 4, "test": 20}
    assert data.classes == ["neg", "pos"]
    for index, (sample, target) in enumerate(data.splits["test"]):
        assert BYTES.decode(sample["input_ids"]) == f"test {data.classes[target]}\n{index % 10} ü"


@pytest.mark.fault("E15")
def test_a_text_file_that_cannot_be_read_is_a_sample_without_text(tmp_path: Path) -> None:
    for label in ("neg", "pos"):
        (tmp_path / label).mkdir()
        for number in range(5):
            (tmp_path / label / f"{number}.txt").write_bytes(
                f"{number} ü".encode("latin-1" if number == 3 else "utf-8")
            )
    assert "2 cannot be used" in refusal(tmp_path)


# Targets


def test_numbers_and_labels_come_from_one_column_or_several(tmp_path: Path) -> None:
    held = {n: {"a": n % 2, "b": n % 3 // 2} for n in range(30)}
    rows = [{"text": f"t{n}", **of, "both": ";".join(name for name in of if of[name])} for n, of in held.items()]
    path = write(tmp_path / "a.csv", rows)
    one = load(path, target="labels", label_column="both")
    several = load(path, target="labels", label_column=["a", "b"])
    assert one.classes == several.classes == ["a", "b"]
    for split in one.splits:
        assert np.array_equal(one.splits[split].targets, several.splits[split].targets)
    numbers = load(path, target="number", label_column=["b", "a"])
    assert numbers.classes == ["b", "a"]
    batch, targets = next(iter(numbers.val_dataloader()))
    shown = [int(said(batch, row)[1:]) for row in range(len(targets))]
    assert targets.tolist() == [[held[n]["b"], held[n]["a"]] for n in shown]
    single = load(path, target="number", label_column="a")
    assert next(iter(single.val_dataloader()))[1].shape == (3, 1)
    assert single.task_arguments["mean"] == [pytest.approx(float(np.mean(single.splits["train"].targets)))]


@pytest.mark.parametrize("as_lists", [False, True])
def test_tags_stand_at_the_first_token_of_each_word(tmp_path: Path, as_lists: bool) -> None:
    rows = [{"text": f"the cow {n} moos", "label": "O ANIMAL NUMBER O"} for n in range(20)]
    if as_lists:
        Dataset.from_list([{k: v.split() for k, v in row.items()} for row in rows]).to_parquet(tmp_path / "a.parquet")
    path = tmp_path / "a.parquet" if as_lists else write(tmp_path / "a.csv", rows)
    data = load(path, target="tags", batch_size=4)
    assert data.classes == ["ANIMAL", "NUMBER", "O"]
    for batch, targets in data.train_dataloader():
        assert targets.shape == batch["input_ids"].shape
        assert (targets[batch["attention_mask"] == 0] == IGNORED).all()
        for row, tags in enumerate(targets):
            begins = [i for i, tag in enumerate(tags.tolist()) if tag != IGNORED]
            assert [data.classes[tags[i]] for i in begins] == ["O", "ANIMAL", "NUMBER", "O"]
            parts = zip(begins, [*begins[1:], None], strict=True)
            found = [BYTES.decode(batch["input_ids"][row, i:j].tolist()).strip() for i, j in parts]
            assert (found[:2], found[3]) == (["the", "cow"], "moos")
            assert found[2].isdigit()
    assert data.splits["train"].name(0).split()[::3] == ["the", "moos"]


def test_tags_of_words_that_are_cut_off_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": "one two three four", "label": "A B A B"} for _ in range(20)]
    data = load(write(tmp_path / "a.csv", rows), target="tags", max_length=8)
    _, targets = next(iter(data.train_dataloader()))
    assert {tuple(row[row != IGNORED].tolist()) for row in targets} == {(0, 1)}  # "one two" and the end
    assert data.truncated["train"] == 18


def test_as_many_tags_as_words_are_asked_for(tmp_path: Path) -> None:
    rows = [{"text": "one two", "label": "A B"}] * 20 + [{"text": "three", "label": "A B"}]
    assert "train[20] 'three' (1 words and 2 tags)" in refusal(write(tmp_path / "a.csv", rows), target="tags")


def test_a_list_of_labels_is_no_class(tmp_path: Path) -> None:
    Dataset.from_list([{"text": f"t{n}", "label": ["ab"[n % 2]]} for n in range(20)]).to_json(tmp_path / "a.jsonl")
    said = refusal(tmp_path / "a.jsonl")
    assert "data.label_column must hold one class for each sample; got ['a']. Write task=multilabel" in said
    assert load(tmp_path / "a.jsonl", target="labels").classes == ["a", "b"]


# Language modelling


@pytest.mark.parametrize("documents", [40, 2500])
def test_blocks_hold_every_token_once_and_in_order(tmp_path: Path, documents: int) -> None:
    rows = [{"text": f"document {number} {'x' * (number % 17)}"} for number in range(documents)]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.csv", rows)
    write(tmp_path / "data" / "val.csv", rows[:7])
    data = load(tmp_path / "data", target="text", max_length=50)
    for split, own in (("train", rows), ("val", rows[:7])):
        blocks = [sample["input_ids"] for sample, _ in data.splits[split]]
        stream = [token for block in blocks for token in block]
        expected: list[int] = []
        for start in range(0, len(own), 1000):  # a last block of one token would have nothing to foretell
            part = [token for row in own[start : start + 1000] for token in ids(row["text"])]
            expected += part[:-1] if len(part) % 50 == 1 else part
        assert stream == expected
        assert sum(len(block) < 50 for block in blocks) <= 1 + len(own) // 1000
        assert data.lengths(split).tolist() == [len(block) for block in blocks]
    assert data.truncated == {"train": 0, "val": 0}
    assert data.quality().sizes == data.sizes


def test_each_block_is_its_own_target_but_for_the_padding(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"text": f"document {number}"} for number in range(30)])
    data = load(tmp_path / "a.csv", target="text", max_length=40, val_size=0.2, batch_size=64)
    batch, targets = next(iter(data.train_dataloader()))
    real = batch["attention_mask"] == 1
    assert torch.equal(targets[real], batch["input_ids"][real])
    assert (targets[~real] == IGNORED).all()


def test_text_to_be_modelled_needs_no_label_and_may_have_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\nfirst\n""\nsecond\nthird\nfourth\n')
    data = load(tmp_path / "a.csv", target="text", max_length=8, val_size=0.4)
    assert sum(data.lengths("train")) + sum(data.lengths("val")) >= len("first" + "second" + "third" + "fourth")


# Samples without text


def spoilt(tmp_path: Path, count: int, bad: int, **columns: str) -> Path:
    rows = texts(count)
    for row in rows[:bad]:
        row |= columns
    return write(tmp_path / "a.csv", rows)


@pytest.mark.fault("E15")
@pytest.mark.parametrize(
    ("columns", "reason"), [({"text": " "}, "no text"), ({"text": ""}, "no text"), ({"label": ""}, "no label")]
)
def test_samples_without_text_or_label_are_refused_or_left_out_up_to_one_in_a_hundred(
    tmp_path: Path, columns: dict[str, str], reason: str
) -> None:
    path = spoilt(tmp_path, 200, 2, **columns)
    message = refusal(path)
    assert f"2 cannot be used: train[0] '{'row 1' if 'text' in columns else '0 '}" in message
    assert f"({reason})" in message
    assert "data.on_bad_sample=skip" in message
    data = load(path, on_bad_sample="skip")
    assert sum(data.sizes.values()) == 198
    assert data.quality().skipped == {reason: 2}
    assert "3 cannot be used" in refusal(spoilt(tmp_path, 200, 3, **columns), on_bad_sample="skip")


def test_one_text_of_a_pair_is_not_enough(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "other": "" if n == 5 else "o", "label": "ab"[n % 2]} for n in range(20)]
    assert "train[5] 't5' (no text)" in refusal(write(tmp_path / "a.csv", rows), pair_column="other")


@pytest.mark.fault("E16")
def test_texts_that_stand_in_two_splits_are_found(tmp_path: Path) -> None:
    rows = texts()
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.csv", [*rows, {"text": rows[0]["text"].upper(), "label": "a"}])
    write(
        tmp_path / "data" / "test.csv", [{"text": rows[3]["text"] + " ", "label": "a"}, {"text": "new", "label": "a"}]
    )
    quality = load(tmp_path / "data", val_size=0.2).quality()
    assert [leak.samples for leak in quality.leaks if leak.later == "test"] == [1]
    assert sum(quality.duplicates.values()) + sum(leak.samples for leak in quality.leaks) == 2
    assert quality.lengths["test"]["max"] >= 4


# Together with a network


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_a_network_answers_the_same_whatever_else_stands_in_the_batch(tmp_path: Path, model: str) -> None:
    sizes = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "gpt2": {"n_embd": 16, "n_head": 2},
    }
    torch.manual_seed(0)
    pool = "last" if model == "gpt2" else "mean"
    network = transformers_network(model, 2, weights="none", pool=pool, options=sizes[model]).eval()
    data = Text(str(write(tmp_path / "a.csv", texts())), num_workers=0, batch_size=1)
    data.preprocess(**network.preprocessing)
    answers = {}
    for size in (1, 8):
        data.batch_size = size
        with torch.no_grad():
            found = torch.cat([network(batch) for batch, _ in data.val_dataloader()])
        order = [index for batch in data.batches("val").batches(0) for index in batch]
        answers[size] = found[np.argsort(order)]
    assert torch.allclose(answers[1], answers[8], atol=1e-5)
