"""A finished run as files that others load: adapters merged, classes and preprocessing inside, checked when loaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thaw.errors import RunError, UserError
from thaw.model.files import settings
from thaw.model.network import Network
from thaw.run.restore import restore
from thaw.run.unfinished import replacing_folder
from thaw.serve.fitted import Fitted, fitted
from thaw.serve.graph import example_inputs

TOLERANCE = 1e-5  # of the largest output in float32, or of 1
SAMPLES = 8
Loaded = Callable[[Any], Any]  # inputs → outputs
# Each has `write(exported, folder)`, which writes its files and returns what runs the network as they hold it.
FORMATS = {name: f"thaw.serve.{name}_format" for name in ("safetensors", "onnx", "hf", "torch_export")}


@dataclass(frozen=True)
class Export:
    """What is written.

    Args:
        network: in eval mode on the CPU in float32, its adapters merged.
        inputs: a batch that it reads.
    """

    run: Fitted
    network: Network
    inputs: Any

    @property
    def description(self) -> dict[str, str]:
        """What goes along with the weights: each of them JSON."""
        run, task = self.run, self.run.task
        model = dict(run.settings["model"])
        if Path(model.get("name") or "").is_absolute():  # the folder of a transformer's files, which go along
            model["name"] = "."
        told = {
            "task": task.target,
            "classes": task.classes,
            "preprocessing": settings(self.network.preprocessing),
            "inputs": {name: value for name, value in run.inputs.known.items() if name != "preprocessing"},
            "model": model,
            "given": run.inputs.network_arguments | task.network_arguments,
            "metrics": run.record["metrics"],
        }
        # Of regression, whose outputs are in standard deviations.
        told |= {name: getattr(task, name).tolist() for name in ("mean", "std") if hasattr(task, name)}
        return {name: json.dumps(value) for name, value in told.items()}


@dataclass(frozen=True)
class Exported:
    """Where it lies.

    Args:
        difference: the largest between an output of the checkpoint and of what was written and loaded again, as a share
            of the largest output, or of 1 where all are smaller: float32 itself is no finer.
        real: whether the samples it was checked on are the run's own.
    """

    folder: Path
    difference: float
    real: bool
    samples: int


def export(folder: Path, form: str, out: Path | None = None, role: str = "best") -> Exported:
    """Write a checkpoint in a format, load it again and compare; nothing is left where it does not hold.

    Args:
        form: one of `FORMATS`.
        out: None takes `export/<format>` in the run's directory.

    Raises:
        UserError: no finished run, or a network that the format cannot hold.
        RunError: what was written gives other outputs than the checkpoint.
    """
    run = fitted(folder, role)
    network = run.network.float()
    inputs, real = _samples(run, folder)
    batches = inputs, _first(inputs)  # and one sample alone: sizes must not be those of the example
    with torch.no_grad():
        expected = [_values(network(batch)) for batch in batches]
        if run.settings["freezing"]["_target_"].endswith(".Lora"):
            from thaw.model.lora import merge_lora  # peft takes seconds to import

            merge_lora(network)
        network.train(False)
    out = out or folder / "export" / form
    with replacing_folder(out) as written:
        loaded = import_module(FORMATS[form]).write(Export(run, network, inputs), written)
        pairs = zip(expected, batches, strict=True)
        difference = max(_difference(want, loaded(batch)) for want, batch in pairs)
        if not difference <= TOLERANCE:
            raise RunError(
                f"What is exported must give the outputs of the checkpoint to {TOLERANCE:g}; as {form} it gives "
                f"others, by up to {difference:.2g}.\nNothing was written. Choose another format: {', '.join(FORMATS)}."
            )
    return Exported(out, difference, real, len(expected[0][0]))


def _samples(run: Fitted, folder: Path) -> tuple[Any, bool]:
    """(a batch, whether it is of the split that the run was measured on)."""
    try:
        restored = restore(folder, weights=False)
    except UserError:  # the data need not be there
        return example_inputs(run.network.preprocessing, SAMPLES), False
    split = run.record["split"]
    keys = [(0, index) for index in range(min(SAMPLES, len(restored.data.splits[split])))]
    restored.data.trainer = None
    return restored.data.on_after_batch_transfer(restored.data.batch(split, keys), 0)[0], True


def _first(inputs: Any) -> Any:
    return inputs[:1] if isinstance(inputs, Tensor) else {name: values[:1] for name, values in inputs.items()}


def _values(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _difference(expected: Sequence[Tensor], found: Any) -> float:
    """The largest difference, of steps only those that are real."""
    want, have = expected[0], _values(found)[0]
    if len(expected) > 1:
        steps = min(want.shape[1], have.shape[1])
        real = torch.arange(steps) < expected[1][:, None].clamp(max=steps)
        want, have = want[:, :steps][real], have[:, :steps][real]
    if want.shape != have.shape:
        return float("inf")
    return float((want - have).abs().max() / want.abs().max().clamp(min=1))
