"""What Lightning's own BackboneFinetuning does where ours keeps its promise: strict, so that a mended one is told.

Each probe is one assertion on a small network, expected to fail on the stock callback, and to hold on ours.
"""

import os
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy
from processes import on_two_ranks
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from thaw.distributed import DDP
from thaw.freezing.by_group import Gradual
from thaw.model.network import Network
from thaw.module import FineTuner
from thaw.scheduler import Schedule, constant, one_cycle
from thaw.task.classification import Classification

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
LENGTH, EPOCHS = 4, 3  # steps an epoch


def data(rank: int = 0, ranks: int = 1, shift: float = 0.0) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(32 * ranks, 4, generator=generator) + shift, torch.arange(32 * ranks) % 2
    return DataLoader(TensorDataset(inputs[rank::ranks], targets[rank::ranks]), batch_size=8)


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


class Stock(L.LightningModule):
    """A network as the documentation of BackboneFinetuning wants it."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.backbone = body()
        self.head = nn.Linear(4, 2)
        self.schedule = schedule

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def stock(schedule: Callable[[Any], Any] | None = None, thaw: int = 1) -> tuple[L.LightningModule, L.Callback]:
    return Stock(schedule), BackboneFinetuning(unfreeze_backbone_at_epoch=thaw, backbone_initial_lr=0.1, verbose=False)


class Ours(FineTuner):
    @property
    def backbone(self) -> nn.Module:
        return self.network.body

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pass


def ours(schedule: Schedule | None = None, thaw: int = 1) -> tuple[L.LightningModule, L.Callback]:
    groups = {"stem": ["0.weight", "0.bias", "1.weight", "1.bias"]}
    network = Network(body(), nn.Linear(4, 2), groups)

    def optimizer(network: Network) -> torch.optim.Optimizer:
        named = [{"name": f"{group}/decay", "params": list(ps.values())} for group, ps in network.groups.items()]
        return torch.optim.SGD(named, lr=0.1)

    task = Classification(["no", "yes"])
    return Ours(network, task, optimizer, schedule or constant(warmup=0.0)), Gradual(every=thaw, rewarm=0.0)


class Notes(L.Callback):
    """The body after each epoch, and whether its modules trained in it."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.modes: list[list[bool]] = []

    def note(self, module: Any) -> None:
        self.states.append({n: held.clone() for n, held in module.backbone.state_dict().items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        if trainer.is_last_batch:
            self.modes.append([m.training for m in pl_module.backbone])
            self.note(pl_module)


def fit(made: tuple[L.LightningModule, L.Callback], epochs: int = EPOCHS, shift: float = 0.0, **options: Any) -> Notes:
    module, callback = made
    notes, start = Notes(), options.pop("ckpt_path", None)
    rank, ranks = int(os.environ.get("LOCAL_RANK", 0)), options.get("devices", 1)
    trainer = L.Trainer(
        **{"accelerator": "cpu", "max_epochs": epochs, "callbacks": [callback, notes], "logger": False}
        | {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        | {"use_distributed_sampler": False, "gradient_clip_val": 1.0}
        | options
    )
    trainer.fit(module, data(rank, ranks, shift), ckpt_path=start, **({"weights_only": True} if start else {}))
    notes.trainer = trainer
    return notes


def stock_fails(raises: type[Exception], reason: str) -> Any:
    return pytest.param(stock, marks=pytest.mark.xfail(strict=True, raises=raises, reason=reason), id="stock")


def moved(notes: Notes, epoch: int, name: str) -> bool:
    return not torch.equal(notes.states[epoch][name], notes.states[epoch + 1][name])


def assert_probe_thaws(notes: Notes, epoch: int) -> None:
    """Another error than the one that is expected of the stock callback, so that only the claim itself can fail."""
    if not moved(notes, epoch, "0.weight"):
        raise RuntimeError("The probe must thaw.")


def on_ranks(make: Callable[..., Any], strategy: type[DDPStrategy]) -> list[Any]:
    notes = fit(make(), devices=2, strategy=strategy())
    return [{n: held.tolist() for n, held in state.items() if not n.startswith("1.")} for state in notes.states]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "strategy"),
    [
        pytest.param(
            stock,
            DDPStrategy,
            marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason="DDP never hears of what thaws"),
            id="stock",
        ),
        pytest.param(ours, DDP, id="ours"),
    ],
)
def test_ranks_stay_equal_after_a_thaw(make: Callable[..., Any], strategy: type[DDPStrategy]) -> None:
    first, second = on_two_ranks(on_ranks, make, strategy)
    if first[-1] == first[0]:
        raise RuntimeError("The probe must thaw.")
    assert first == second


@pytest.mark.parametrize(
    ("make", "schedule"),
    [
        pytest.param(
            stock,
            lambda optimizer: LambdaLR(optimizer, lambda step: 1.0),
            marks=pytest.mark.xfail(strict=True, raises=ValueError, reason="a rate for each group it was made with"),
            id="stock, LambdaLR",
        ),
        pytest.param(
            stock,
            lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=LENGTH * EPOCHS),
            marks=pytest.mark.xfail(strict=True, raises=KeyError, reason="the new group has no max_lr"),
            id="stock, OneCycleLR",
        ),
        pytest.param(ours, constant(), id="ours, constant"),
        pytest.param(ours, one_cycle(), id="ours, one_cycle"),
    ],
)
def test_a_schedule_outlives_the_thaw(make: Callable[..., Any], schedule: Any) -> None:
    notes = fit(make(schedule))
    assert [moved(notes, epoch, "0.weight") for epoch in range(EPOCHS)] == [False, True, True]


@pytest.mark.parametrize("make", [stock_fails(AssertionError, "train_bn trains it, even while frozen"), ours])
def test_a_frozen_batch_norm_stands_still(make: Callable[..., Any]) -> None:
    notes = fit(make(thaw=2), shift=3.0)
    assert_probe_thaws(notes, 2)
    frozen = ("1.running_mean", "1.running_var", "1.weight", "1.bias")
    assert not [name for name in frozen if moved(notes, 0, name)]
    assert notes.modes[0][1] is False


@pytest.mark.parametrize("make", [stock_fails(AssertionError, "it is frozen again, silently"), ours])
def test_what_has_thawed_trains_on_after_a_resume(make: Callable[..., Any], tmp_path: Any) -> None:
    path = tmp_path / "last.ckpt"
    before = fit(make(), epochs=2)
    assert_probe_thaws(before, 1)
    before.trainer.save_checkpoint(path)
    after = fit(make(), epochs=3, ckpt_path=path)
    assert moved(after, 0, "0.weight")


@pytest.mark.parametrize("make", [stock_fails(AssertionError, "it stays in eval mode to the end"), ours])
def test_a_module_handed_over_in_eval_mode_trains_once_it_thaws(make: Callable[..., Any]) -> None:
    module, callback = make()
    module.backbone.eval()  # as from_pretrained returns it
    notes = fit((module, callback))
    assert_probe_thaws(notes, 2)
    assert notes.modes[2] == [True, True, True]
