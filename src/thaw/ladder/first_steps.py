"""The first rungs: the loss before any step, one batch learnt by heart, and where gradients go."""

import math

import torch
from torch import nn

from thaw.errors import FreezeContractError
from thaw.ladder.bench import Bench
from thaw.ladder.rung import Outcome, fails, passes, silent
from thaw.module import FineTuner
from thaw.plan.plan import enter, make_plan

SAMPLES, FEW = 64, 8  # to measure a loss on, and to learn by heart
NEAR = 0.25  # share of the loss that says nothing, by which the first may differ from it
STEPS, LEARNT = 300, 0.1  # and the share of its first value that the loss must come down to


def initial_loss(bench: Bench) -> Outcome:
    """A new head must say nothing yet: its loss is that of outputs all zero, for classification ln(classes)."""
    module, _ = bench.copies()
    network, task = module.network, module.task
    network.train(False)
    inputs, targets = bench.batch(SAMPLES)
    with torch.no_grad(), bench.context():
        outputs = network(inputs)
        loss, expected = float(task.loss(outputs, targets)), float(task.loss(silent(outputs), targets))
    nothing = f"{expected:.3f}{_logarithm(expected, module)}, the loss of outputs that say nothing"
    if network.pretrained and not network.new_head:
        if loss < expected:
            return passes(f"{loss:.3f}, below {nothing}: the pretrained head knows something")
        return fails(
            f"{loss:.3f} is not below {nothing}, though head and body are pretrained",
            "Look at whether the inputs are prepared as in the pretraining: tokenizer, normalisation, size.",
        )
    if abs(loss - expected) <= NEAR * expected:
        return passes(f"{loss:.3f}, near {nothing}")
    return fails(
        f"{loss:.3f} is far from {nothing}",
        "Begin the head with small weights (std 0.02) and zero biases, and look at how large its inputs are: "
        "a normalisation that does not suit the weights makes them large or NaN.",
    )


def _logarithm(expected: float, module: FineTuner) -> str:
    count = module.task.num_outputs
    return f" = ln({count})" if count and math.isclose(expected, math.log(count), rel_tol=1e-3) else ""


def one_batch(bench: Bench) -> Outcome:
    """Everything trains, without dropout, augmentation, decay of the rate or label smoothing, on a few samples."""
    module, _ = bench.copies()
    network, task = module.network, module.task
    network.train_groups(network.groups)
    network.train(False)
    task.train(False)
    if bench.device.type == "cuda":  # its recurrent layers have no gradient in eval mode
        for layer in network.modules():
            layer.training = isinstance(layer, nn.RNNBase)
    optimizer = module.optimizer(network)
    inputs, targets = bench.batch(FEW)
    first = loss = math.inf
    for step in range(STEPS + 1):
        with bench.context():
            current = task.loss(network(inputs), targets)
        loss = float(current.detach())
        first = loss if step == 0 else first
        bench.tell(f"step {step} of {STEPS}, loss {loss:.3f}")
        if loss <= LEARNT * first or not math.isfinite(loss):
            break
        optimizer.zero_grad()
        current.backward()
        optimizer.step()
    told = f"{len(targets)} samples, loss {first:.3f} → {loss:.3f} in {step} step{'s' * (step != 1)}"
    if math.isfinite(loss) and loss <= LEARNT * first:
        return passes(told)
    return fails(
        f"{told}: it does not learn {len(targets)} samples by heart",
        "Write a larger optimizer.lr (scripts/find_lr.py finds one)"
        + (", or a smaller one, for it has exploded." if loss > first or loss != loss else ".")
        + " If that does not help: do targets belong to their inputs, and does the loss read the outputs?",
    )


def gradients(bench: Bench) -> Outcome:
    """In each stage of the freezing strategy, gradients reach all that trains, and nothing that is frozen."""
    module, freezing = bench.copies()
    try:
        plan = make_plan(module, freezing, bench.data, bench.make_trainer)
    except FreezeContractError as error:
        return fails(str(error), "Look at what the strategy or the network changes after it is built.")
    module.to(bench.device)
    inputs, targets = bench.batch(FEW)
    wrong: list[str] = []
    for phase in plan.phases:
        enter(module.network, freezing, phase.stage)
        module.network.zero_grad(set_to_none=True)
        with bench.context():
            loss = module.task.loss(module.network(inputs), targets)
        if loss.requires_grad:
            loss.backward()
        wrong += [
            f"{problem} in {phase.epochs}" for problem in _misled(module, phase.stage.groups, freezing.batch_norm)
        ]
    if wrong:
        return fails(
            "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            "Look for detach(), no_grad() or .data in the forward pass, and for a part that it does not run.",
        )
    last = plan.phases[-1].states
    count, trainable = len(plan.phases), sum(state.trainable for state in last)
    return passes(
        f"in {'each of ' * (count > 1)}{count} stage{'s' * (count > 1)} they reach all groups that train and no frozen "
        f"one; {trainable:,} parameters at the end"
    )


def _misled(module: FineTuner, trains: list[str], batch_norm: str) -> list[str]:
    found = []
    for group, parameters in module.network.groups.items():
        held = [p.grad for p in parameters.values() if p.grad is not None]
        if group in trains:
            if not any(bool(gradient.any()) for gradient in held):
                found.append(f"no gradient reaches {group}")
            elif not all(bool(gradient.isfinite().all()) for gradient in held):
                found.append(f"the gradient of {group} is not finite")
        elif held and batch_norm != "train":
            found.append(f"a gradient reaches {group}, which is frozen")
    return found
