"""Activations computed anew: the same gradients, statistics and weights, from less memory."""

import pytest
import torch
from tiny_networks import NETWORKS, inputs_of, tiny
from torch import nn

from thaw.errors import UserError
from thaw.model.gradient_checkpointing import checkpoint_activations
from thaw.model.network import Network, Steps
from thaw.run.checkpoint import load_checkpoint

ABLE = [name for name in NETWORKS if name not in ("deepspeech",)]


def step(network: Network) -> int:
    """One training step without an optimizer; the bytes that were kept for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network.train()
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(inputs_of(network, 3))
        loss = (outputs.values if isinstance(outputs, Steps) else outputs).square().mean()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("name", ABLE)
def test_gradients_and_statistics_are_the_same_bits_from_less_memory(name: str) -> None:
    stock, thrifty = tiny(name), tiny(name)
    checkpoint_activations(getattr(thrifty.body, "model", thrifty.body), name)
    assert step(thrifty) < step(stock)
    for (path, one), other in zip(stock.named_parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), path
    for (path, one), other in zip(stock.named_buffers(), thrifty.named_buffers(), strict=True):
        assert torch.equal(one, other[1]), path


@pytest.mark.medium
def test_a_run_is_the_same_and_may_change_its_mind_when_it_goes_on(run_train, stopped_after_epoch) -> None:
    options = ("logger=none", "data.train_size=64", "trainer.max_epochs=3", "trainer=cpu", "model.drop_path=0.2")
    stock = run_train(*options, "run.dir=runs/stock").folders[-1]
    with stopped_after_epoch(1):
        run_train(*options, "run.dir=runs/thrifty")
    again = run_train(*options, "run.dir=runs/thrifty", "resume=must", "model.gradient_checkpointing=true")
    assert again.code == 0, again.errors
    one, other = (load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (stock, again.folders[-1]))
    for name, held in one["state_dict"].items():
        assert torch.equal(held, other["state_dict"][name]), name


def test_a_model_that_cannot_is_named_with_what_to_do_instead() -> None:
    with pytest.raises(UserError, match=r"must be false for 'mine'.*trainer\.accumulate_grad_batches"):
        checkpoint_activations(nn.Linear(2, 2), "mine")
