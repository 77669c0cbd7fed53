"""Text that is read as it comes: what an epoch holds, where the next one goes on, and what cannot be had that way."""

import gc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_text import BYTES, said, texts, write
from test_train_text import BERT, QUICK, finished, sentences
from test_train_text import write as write_splits

from thaw.data import stream
from thaw.data.stream import Stream
from thaw.data.text import Text
from thaw.errors import UserError
from thaw.run.checkpoint import load_checkpoint

# datasets leaves a file open that is not read to its end.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    gc.collect()


def numbers(count: int, epoch_size: int, batch_size: int = 4, seed: int = 0) -> tuple[Stream, list[int]]:
    """A stream over the numbers below `count`, again and again, and where reading began each time."""
    began: list[int] = []
    at = [0]

    def read(start: int):
        began.append(start)
        number = start
        while True:
            yield number % count, number % 2, 1 + number % 7
            number += 1

    made = Stream(read, epoch_size, batch_size, seed, lambda: at[0], list)
    made.at = at
    return made, began


def epoch_of(made: Stream, epoch: int) -> list[list[int]]:
    made.at[0] = epoch
    return [[number for number, _ in batch] for batch in made]


@pytest.mark.parametrize("pool", [5, 12, 10_000])
def test_an_epoch_goes_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch, pool: int) -> None:
    monkeypatch.setattr(stream, "POOL", pool)
    made, began = numbers(50, 30)
    for epoch, expected in enumerate([range(30), [*range(30, 50), *range(10)], range(10, 40)]):
        found = epoch_of(made, epoch)
        assert sorted(number for batch in found for number in batch) == sorted(expected)
        assert len(found) == len(made)
        assert max(map(len, found)) <= 4
    assert began == [0]


def test_an_epoch_is_the_same_whether_it_follows_another_or_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "POOL", 12)
    through, _ = numbers(50, 30)
    epochs = [epoch_of(through, epoch) for epoch in range(3)]
    resumed, began = numbers(50, 30)
    assert epoch_of(resumed, 2) == epochs[2]
    assert began == [60]
    resumed.skip = 3
    assert epoch_of(resumed, 1) == epochs[1][3:]
    assert epochs[0] != [sorted(batch) for batch in epochs[0]]
    assert epoch_of(numbers(50, 30, seed=1)[0], 0) != epochs[0]


def load(root: Path, **options: object) -> Text:
    data = Text(str(root), streaming=True, num_workers=0, **options)
    data.preprocess(kind="text", tokenizer=BYTES, max_length=None)
    return data


def test_train_is_read_as_it_comes_and_val_is_its_head(tmp_path: Path) -> None:
    rows = texts(60)
    data = load(write(tmp_path / "a.csv", rows), train_size=40, val_size=0.25, batch_size=8)
    known = {row["text"]: row["label"] for row in rows}
    assert data.sizes == {"train": 40, "val": 10}
    assert list(data.names(data.splits["val"])) == [row["text"] for row in rows[:10]]
    seen = []
    for batch, targets in data.train_dataloader():
        seen += [said(batch, row) for row in range(len(targets))]
        assert [known[text] for text in seen[-len(targets) :]] == [data.classes[target] for target in targets]
    assert sorted(seen) == sorted(row["text"] for row in rows[10:50])
    for start in (45, 95, 145, 50, 100):  # fifty rows, again and again
        found = [BYTES.decode(sample["input_ids"]) for sample, _, _ in islice(data._stream(start), 10)]
        assert found == [rows[10 + (start + number) % 50]["text"] for number in range(10)], start


@pytest.mark.parametrize(
    "options",
    [{}, {"train_size": 0.5}]
    + [{"train_size": 20} | one for one in ({"shots": 2}, {"sampler": "balanced"}, {"max_tokens": 600})],
)
def test_what_needs_all_of_the_data_is_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(UserError, match=r"data\.streaming=true must come with data\.train_size"):
        load(write(tmp_path / "a.csv", texts()), **options)


def test_a_sample_without_a_label_is_told_when_it_is_met(tmp_path: Path) -> None:
    rows = texts(60)
    rows[55]["label"] = ""
    data = load(write(tmp_path / "a.csv", rows), train_size=40, val_size=0.25)
    with pytest.raises(UserError, match="must have a text and a label"):
        list(islice(data._stream(0), 50))


@pytest.mark.medium
def test_a_run_over_a_stream_stopped_and_resumed_is_the_same_run(
    run_train, tmp_path: Path, stopped_after_epoch
) -> None:
    rows = sentences(80)
    command = (
        "data=text_csv", write_splits(tmp_path / "data", rows), "data.streaming=true", "data.train_size=40",
        *BERT, *QUICK, "trainer.max_epochs=3", "model.dropout=0.3",
    )  # fmt: skip
    outcome = run_train(*command, "run.dir=runs/straight")
    finished(outcome, [row["text"] for row in rows[-12:]])
    assert outcome.record["data"]["sizes"] == {"train": 40, "val": 4, "test": 12}
    with stopped_after_epoch(1):
        assert run_train(*command, "run.dir=runs/stopped", "resume=auto").code == 130
    assert run_train(*command, "run.dir=runs/stopped", "resume=auto").code == 0
    first, second = (
        load_checkpoint(tmp_path / "runs" / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("straight", "stopped")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("content", "said"),
    [("text,label\n" + "a,b\n" * 3, "must hold more than the"), ("text,label\nü,b\nc,d\n", "must be a table in UTF-8")],
)
def test_a_stream_that_cannot_be_read_is_named(run_train, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1"))
    outcome = run_train("data=text_csv", "data.root=a.csv", "data.streaming=true", "data.train_size=60", *BERT, *QUICK)
    assert outcome.code == 2, outcome.errors
    assert said in outcome.errors
    assert "Traceback" not in outcome.errors
