"""Compiled runs, and how many samples an optimizer step takes."""

from pathlib import Path

import pytest
import torch
from test_config import composed

import thaw.trainer
from thaw import config
from thaw.errors import UserError
from thaw.run.checkpoint import load_checkpoint
from thaw.trainer import Trainer, assert_compiler

QUICK = ("logger=none", "data.train_size=40", "trainer.max_epochs=3", "trainer=cpu", "freezing.every=1")
TEXT = ("data=docstrings", "model=transformers", "model.name=bert", "model.weights=none", "freezing=none")
TINY = "model.options={hidden_size:32,num_hidden_layers:2,num_attention_heads:2,intermediate_size:48}"
SAME = {
    "gradual": (),
    "lora": ("freezing=lora",),
    "surgical": ("freezing=surgical",),
    "text": (*TEXT, TINY, "data.train_size=40"),
}
STILL = TINY.replace("}", ",hidden_dropout_prob:0.0,attention_probs_dropout_prob:0.0}")
SLOW = [pytest.param(words, id=name, marks=[pytest.mark.slow] * (name != "gradual")) for name, words in SAME.items()]


def last(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs are traced as ever, noted, and run without a compiler."""
    graphs = []

    def run(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(thaw.trainer, "BACKEND", run)
    return graphs


@pytest.mark.medium
@pytest.mark.parametrize("options", SLOW)
def test_a_compiled_run_is_the_plain_run_and_goes_on_from_its_checkpoint(
    run_train, stopped_after_epoch, compiled, options: tuple[str, ...]
) -> None:
    words = [word for word in QUICK if "every" not in word or options == ()]
    stock = run_train(*words, *options)
    assert stock.code == 0, stock.errors
    assert not compiled
    with stopped_after_epoch(0):
        run_train(*words, *options, "run.dir=runs/mixed")
    mixed = run_train(*words, *options, "run.dir=runs/mixed", "resume=must", "trainer.compile=true")
    assert mixed.code == 0, mixed.errors
    assert "Compiling" in mixed.printed
    assert compiled
    one, other = last(stock.folders[-1]), last(mixed.folders[-1])
    assert one.keys() == other.keys()
    for name, held in one.items():
        torch.testing.assert_close(held, other[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.medium
def test_every_stage_runs_compiled_however_many_there_are(run_train, compiled) -> None:
    """The six layer groups thaw one by one, each with a last batch of its own size, in training and in validation."""
    phases = [
        f"{{at:{n},groups:[{group},head]}}" for n, group in enumerate(["stem", *(f"block0{k}" for k in range(4))])
    ]
    words = ("trainer.max_epochs=5", "trainer.compile=true", "freezing=schedule", "data.train_size=40")
    outcome = run_train(*QUICK[:1], "trainer=cpu", *words, f"freezing.phases=[{','.join(phases)}]")
    assert outcome.code == 0, outcome.errors
    # In each stage 32 and 8 samples to train; once 32 and 16 to validate, and 32 and 8 to test.
    assert len(compiled) >= 2 * 5


@pytest.mark.medium
def test_a_compiled_run_goes_on_bit_for_bit(run_train, stopped_after_epoch, compiled) -> None:
    words = (*QUICK, "trainer.compile=true")
    whole = run_train(*words, "run.dir=runs/whole").folders[-1]
    with stopped_after_epoch(1):
        run_train(*words, "run.dir=runs/halves")
    again = run_train(*words, "run.dir=runs/halves", "resume=must")
    assert again.code == 0, again.errors
    one, other = last(whole), last(again.folders[-1])
    assert all(torch.equal(held, other[name]) for name, held in one.items())


def test_without_a_compiler_it_is_said_before_the_run(run_train, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    outcome = run_train(*QUICK, "trainer.compile=true")
    assert outcome.code == 2
    assert "error: trainer.compile needs a C++ compiler, and none is found." in outcome.errors
    assert not outcome.folders
    cpp_builder.cpp_compiler_search.cache_clear()


def test_without_the_headers_of_python_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    with pytest.raises(UserError, match=r"no Python\.h"):
        assert_compiler("cpu")


@pytest.mark.medium
def test_a_target_is_filled_by_accumulation(run_train) -> None:
    plain = run_train(*QUICK, "data.batch_size=8", "run.dir=runs/plain", "trainer.accumulate_grad_batches=3")
    target = run_train(*QUICK, "data.batch_size=8", "run.dir=runs/target", "trainer.target_batch_size=24")
    assert target.code == 0, target.errors
    assert target.record["steps"] == 6
    one, other = last(plain.folders[0]), last(target.folders[-1])
    assert all(torch.equal(held, other[name]) for name, held in one.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer.target_batch_size=40",), "got 40 for 16. Write e.g. trainer.target_batch_size=32"),
        (("trainer.target_batch_size=8",), "got 8 for 16. Write e.g. trainer.target_batch_size=16"),
        (
            ("trainer.target_batch_size=32", "trainer.accumulate_grad_batches=2"),
            "must go without trainer.accumulate_grad_batches, which follows from it; got 32 and 2.",
        ),
        (("trainer.target_batch_size=0",), "trainer.target_batch_size must be greater than or equal to 1; got 0"),
        (("trainer.compile=yes",), "trainer.compile must be true or false; got 'yes'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_the_run(run_train, words: tuple[str, ...], said: str) -> None:
    outcome = run_train(*QUICK, "data.batch_size=16", *words)
    assert outcome.code == 2
    assert said in outcome.errors
    assert not outcome.folders


def test_all_processes_share_the_target() -> None:
    trainer = Trainer(target_batch_size=96, accelerator="cpu", devices=2, strategy="ddp", logger=False)
    cfg = composed("data.batch_size=16")
    data = config.build(cfg.data)
    trainer.fill_target(data)
    assert trainer.accumulate_grad_batches == 3
    alone = Trainer(target_batch_size=96, accelerator="cpu", devices=1, logger=False)
    data.ranks = 2  # as a plan tries one of two
    alone.fill_target(data)
    assert alone.accumulate_grad_batches == 3
    data.batch_size = 32
    with pytest.raises(UserError, match=r"got 96 for 32 × 2 processes\. Write e\.g\. trainer\.target_batch_size=64\."):
        trainer.fill_target(data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["gradual", "text", "text without dropout"])
def test_really_compiled_runs_go_on_bit_for_bit_and_are_the_plain_run(
    run_train, stopped_after_epoch, kind: str
) -> None:
    words = [word for word in QUICK if "every" not in word or kind == "gradual"] + [*SAME[kind.partition(" ")[0]]]
    if "without" in kind:
        words = [STILL if word == TINY else word for word in words] + ["model.dropout=0"]
    plain = run_train(*words, "run.dir=runs/plain")
    whole = run_train(*words, "trainer.compile=true", "run.dir=runs/whole")
    assert whole.code == 0, whole.errors
    with stopped_after_epoch(1):
        run_train(*words, "trainer.compile=true", "run.dir=runs/halves")
    torch._dynamo.reset()  # as in a process of its own
    again = run_train(*words, "trainer.compile=true", "run.dir=runs/halves", "resume=must")
    assert again.code == 0, again.errors
    kept = {folder.name: last(folder) for folder in again.folders}
    for name, held in kept["whole"].items():
        if kind != "text":  # whose dropout draws other numbers once it is compiled
            torch.testing.assert_close(held, kept["plain"][name], rtol=1e-3, atol=1e-4)
        if "text" in kind:  # code for all lengths is shaped by the first
            torch.testing.assert_close(held, kept["halves"][name])
        else:
            assert torch.equal(held, kept["halves"][name]), name
    assert plain.record["metrics"]["val/accuracy"] == pytest.approx(whole.record["metrics"]["val/accuracy"], abs=0.02)
