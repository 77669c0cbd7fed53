"""Memory that is not enough: advice in words, where the error comes from a GPU, the CPU or Python itself."""

import resource
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from processes import in_a_process, train_here
from test_config import composed

from thaw import config, memory
from thaw.advice import in_words
from thaw.errors import MemoryShortError
from thaw.task.classification import Classification

QUICK = ("logger=none", "data.train_size=64", "trainer.max_epochs=1", "trainer=cpu")
ALLOCATIONS = {
    "python": lambda: bytearray(2**30),
    "torch": lambda: torch.empty(2**30, dtype=torch.uint8),
}


class Limited:
    """From the first loss on this process has 256 MB left, and something asks for 1 GB."""

    def __init__(self, allocation: str) -> None:
        self.allocation = allocation

    def __call__(self) -> None:
        loss, kept = Classification.loss, []

        def hungry(task: Classification, *given: torch.Tensor) -> torch.Tensor:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
            kept.append(ALLOCATIONS[self.allocation]())
            return loss(task, *given)

        Classification.loss = hungry


def advised(outcome: Outcome, *said: str) -> list[str]:
    """The overrides that are advised, of a message in at most six lines."""
    assert outcome.code == 1, outcome.errors
    lines = outcome.errors.strip().splitlines()
    assert len(lines) <= 6
    assert lines[0].startswith("error: Memory must be enough; it is not: ")
    assert "Traceback" not in outcome.errors
    assert all(text in outcome.errors for text in said), outcome.errors
    assert outcome.record["status"] == "failed"
    assert outcome.record["reason"].startswith("MemoryShortError: ")
    return [line.partition(" (")[0].strip() for line in lines if line.startswith("  ")]


@pytest.mark.fault("D5")
def test_a_gpu_that_is_full_ends_in_advice_that_composes(run_train, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8")

    monkeypatch.setattr(Classification, "loss", full)
    outcome = run_train(*QUICK, "data.batch_size=16")
    overrides = advised(outcome, "CUDA out of memory", "data.batch_size=16", "trainer.precision=32-true", "Peak: ")
    assert len(overrides) == 3
    assert overrides[0] == "data.batch_size=8 trainer.accumulate_grad_batches=2"
    for text in overrides:
        assert config.validate(composed(*shlex.split(text))) == [], text
    log = (outcome.folders[-1] / "error.log").read_text()
    assert "in full" in log  # where it happened
    assert outcome.record["settled"]["batch_size"] == 16  # nothing was changed in silence


@pytest.mark.fault("D6")
@pytest.mark.parametrize("where", ["preflight", "fit"])
def test_python_without_memory_ends_in_the_same_words(run_train, monkeypatch, where: str) -> None:
    """Also before there is a run."""
    from thaw.data.digits import Digits

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(
        Digits if where == "preflight" else Classification, "read" if where == "preflight" else "loss", full
    )
    outcome = run_train(*QUICK)
    assert outcome.code == 1
    assert outcome.errors.startswith("error: Memory must be enough; it is not: MemoryError.")
    assert len(outcome.errors.splitlines()) <= 6
    assert outcome.folders == [] or where == "fit"


@pytest.mark.medium
@pytest.mark.fault("D6")
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_process_at_its_limit_says_so(tmp_path: Path, allocation: str) -> None:
    """The limit holds for good, so that the advice must be given with what is left."""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("needs /proc")
    code, said = in_a_process(train_here, tmp_path, QUICK, Limited(allocation))
    outcome = Outcome(code, said, said[said.index("error: ") :], tmp_path)
    assert len(advised(outcome)) == 3
    assert 0.05 < float(said.partition("Peak: ")[2].split()[0]) < 8


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"data": {"batch_size": 1}, "trainer": {"precision": "bf16-mixed"}}, "freezing=linear_probe"),
        (
            {"data": {"batch_size": 8, "max_length": 512}, "trainer": {"accumulate_grad_batches": 3}},
            "data.batch_size=4 ",
        ),
        (
            {"data": {"batch_size": 1, "image_size": 224}, "trainer": {"precision": "16-mixed"}},
            "freezing=linear_probe",
        ),
        (
            {"data": {"batch_size": 1}, "model": {"gradient_checkpointing": False}},
            "model.gradient_checkpointing=true",
        ),
        ({"data": {"batch_size": 1}, "model": {"gradient_checkpointing": True}}, "freezing=linear_probe"),
    ],
)
def test_advice_is_never_what_is_done_already(settings, first: str) -> None:
    lines = memory.advice(settings | {"freezing": {"n": 1}}, {})
    assert len(lines) == 4
    assert lines[1].strip().startswith(first)
    assert "accumulate_grad_batches=6" in lines[1] or "batches" not in str(settings.get("trainer"))


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("mat1 and mat2 shapes"), KeyError("x")])
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, in_words(dict):
        raise error
    assert caught.value is error


def test_memory_is_told_also_where_clearing_up_fails_after_it() -> None:
    def fit() -> None:
        try:
            raise MemoryError
        finally:
            raise RuntimeError("Please call `iter(combined_loader)` first.")  # as Lightning does

    with pytest.raises(MemoryShortError), in_words(dict):
        fit()
