"""`data.batch_size=auto`: what it chooses, what it tries, and that the run does not notice."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sweeping import sweep
from test_config import composed

import thaw.batch_size
from scripts import plan
from thaw import config
from thaw.batch_size import candidates, fastest, find, largest
from thaw.build import fine_tuner
from thaw.errors import UserError
from thaw.memory import advice
from thaw.module import FineTuner
from thaw.plan.plan import trainer_for
from thaw.run.checkpoint import load_checkpoint

__all__ = ["sweep"]  # a fixture
QUICK = ("logger=none", "trainer.max_epochs=2", "trainer=cpu", "data.train_size=300")


def test_sizes_are_powers_of_two_or_parts_of_a_target() -> None:
    assert candidates(70) == [1, 2, 4, 8, 16, 32, 64]
    assert candidates(8) == [1, 2, 4, 8]
    assert candidates(70, 96) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    assert candidates(70, 7) == [1, 7]


def test_the_fastest_is_the_smallest_that_is_nearly_as_fast_and_no_more_is_tried_than_needed() -> None:
    rates = {8: 100.0, 16: 150.0, 32: 196.0, 64: 200.0, 128: 180.0, 256: 170.0, 512: 900.0}
    tried = []

    def rate(size: int) -> float:
        tried.append(size)
        return rates[size]

    assert fastest(candidates(512), rate) == 32
    assert tried == [8, 16, 32, 64, 128]
    assert fastest([1, 7], {1: 5.0, 7: 5.0}.get) == 7


@pytest.mark.parametrize(("most", "found"), [(100, 64), (1000, 256), (8, 8), (5, 4), (1, 1)])
def test_the_largest_is_the_last_that_fits_upwards_or_downwards(most: int, found: int) -> None:
    assert largest(candidates(256), lambda size: size <= most) == found


def test_where_nothing_fits_it_is_said() -> None:
    with pytest.raises(UserError, match="at least one sample"):
        largest(candidates(256), lambda size: False)


def made(*words: str) -> tuple:
    cfg = composed(*QUICK, *words)
    data, task, _ = config.preflight(cfg)
    module, freezing = fine_tuner(cfg, data, task, task.monitor)
    return module, freezing, data, trainer_for(config.builder(cfg.trainer), "32-true", 1)


@pytest.mark.medium
def test_on_a_gpu_it_doubles_until_the_memory_is_spent_or_nearly_so(monkeypatch, capsys) -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")), target_batch_size=None)
    data = SimpleNamespace(splits={"train": range(100_000)}, ranks=1)
    tried = []

    def seconds(*arguments: object) -> float:
        tried.append(arguments[-1])
        if tried[-1] > 512:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.1

    monkeypatch.setattr(thaw.batch_size, "step_seconds", seconds)
    assert find(None, None, data, lambda: trainer) == 512
    assert tried == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert "data.batch_size=auto: 512, the largest that fits" in capsys.readouterr().out
    monkeypatch.setattr(thaw.batch_size, "_share_of_memory", lambda: 0.95 if tried[-1] > 128 else 0.5)
    assert find(None, None, data, lambda: trainer) == 128

    def broken(*arguments: object) -> float:
        raise RuntimeError("something else")

    monkeypatch.setattr(thaw.batch_size, "step_seconds", broken)
    with pytest.raises(RuntimeError, match="something else"):
        find(None, None, data, lambda: trainer)


@pytest.mark.parametrize(
    ("strategy", "trains"),
    [("gradual", 6), ("linear_probe", 1), ("surgical", 2), ("probe_then_tune", 6)],
)
def test_it_tries_the_longest_samples_with_all_that_ever_trains_on_copies(
    monkeypatch: pytest.MonkeyPatch, strategy: str, trains: int
) -> None:
    module, freezing, data, make_trainer = made(f"freezing={strategy}", "data.augment=none")
    lengths = np.random.default_rng(0).permutation(len(data.splits["train"]))
    data.lengths = lambda split: lengths
    seen: list[tuple[set[str], torch.Tensor, int]] = []
    step = FineTuner.training_step

    def spy(self: FineTuner, batch: tuple, index: int) -> torch.Tensor:
        groups = {g for g, ps in self.network.groups.items() if all(p.requires_grad for p in ps.values())}
        seen.append((groups, batch[0], id(self)))
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", spy)
    before = {name: held.clone() for name, held in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()]
    drawn = torch.get_rng_state()
    size = find(module, freezing, data, make_trainer)
    assert size in (8, 16)  # 300 samples, fifteen steps
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(held, module.state_dict()[name]) for name, held in before.items())
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(p.grad is None for p in module.parameters())
    assert getattr(freezing, "relative_norms", {}) == {}
    assert {len(groups) for groups, _, _ in seen} == {trains}
    assert id(module) not in {owner for _, _, owner in seen}
    dataset = data.train_dataloader().dataset
    longest = torch.stack([dataset[(0, int(index))][0] for index in np.argsort(-lengths)[:8]])
    normalised, _ = data.on_after_batch_transfer((longest, torch.zeros(8)), 0)
    assert torch.equal(next(inputs for _, inputs, _ in seen if len(inputs) == 8), normalised)


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def choose(size: int) -> None:
        seconds = lambda *arguments: arguments[-1] * (1.0 if arguments[-1] == size else 2.0)  # noqa: E731
        monkeypatch.setattr(thaw.batch_size, "step_seconds", seconds)

    return choose


@pytest.mark.medium
def test_a_run_is_that_of_the_number_and_a_resumed_one_keeps_it(run_train, stopped_after_epoch, choosing) -> None:
    choosing(16)
    plain = run_train(*QUICK, "data.batch_size=16", "trainer.accumulate_grad_batches=2", "run.dir=runs/plain")
    words = (*QUICK, "data.batch_size=auto", "trainer.target_batch_size=32", "run.dir=runs/auto")
    with stopped_after_epoch(0):
        begun = run_train(*words)
    assert "data.batch_size=auto: 16, the fastest" in begun.printed
    choosing(8)
    again = run_train(*words, "resume=must")
    assert again.code == 0, again.errors
    assert again.record["settled"]["batch_size"] == 16
    assert "batches of 16" in again.printed
    assert "the fastest" not in again.printed
    one, other = (load_checkpoint(run.folders[-1] / "checkpoints" / "last.ckpt") for run in (plain, again))
    assert all(torch.equal(held, other["state_dict"][name]) for name, held in one["state_dict"].items())


def test_measured_for_real_it_ends_in_a_run(run_train) -> None:
    outcome = run_train(*QUICK, "data.batch_size=auto", "trainer.max_epochs=1", "data.train_size=120")
    assert outcome.code == 0, outcome.errors
    assert outcome.record["settled"]["batch_size"] == 8


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data=docstrings", "model=minilm", "data.max_tokens=512"), "must not be auto with data.max_tokens"),
        (("data.batch_size=automatic",), "data.batch_size must be a whole number"),
    ],
)
def test_what_cannot_be_is_said_before_the_run(run_train, words: tuple[str, ...], said: str) -> None:
    outcome = run_train("logger=none", "data.batch_size=auto", *words)
    assert outcome.code == 2
    assert said in outcome.errors


def test_in_a_sweep_it_is_refused(sweep) -> None:
    outcome = sweep("optimizer.lr=1e-3,2e-3", "data.batch_size=auto")
    assert outcome.code == 2
    assert "data.batch_size must be a number in a sweep" in outcome.errors


def test_a_plan_tells_what_it_comes_to(run_task, choosing) -> None:
    choosing(16)
    outcome = run_task(plan.plan, "plan.py", *QUICK, "freezing=none", "data.batch_size=auto")
    assert outcome.code == 0, outcome.errors
    assert "batches of 16" in outcome.printed


def test_advice_on_memory_counts_from_what_it_came_to() -> None:
    settings = {"data": {"batch_size": "auto"}, "trainer": {}}
    assert any("data.batch_size=8 " in line for line in advice(settings, {"batch_size": 16}))
    assert any("data.batch_size=16 " in line for line in advice(settings, {}))
