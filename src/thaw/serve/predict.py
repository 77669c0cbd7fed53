"""Predictions for samples without labels, a row each; a sample that cannot be used is a row with the reason."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from thaw.data.inputs import Inputs
from thaw.errors import UserError, first_line
from thaw.serve.fitted import Fitted
from thaw.serve.sources import Sample

Row = dict[str, Any]
BATCH = 32  # samples


class Predictor:
    """Answers for one sample after the other, with the precision of the run, on the best device that there is.

    Args:
        run: a finished one.
        top: how many of the likeliest classes to tell; None tells the probability of each class.
        batch_size: samples at a time; what is kept in memory does not grow with their number.

    Raises:
        UserError: the task answers nothing that fits a row.
    """

    def __init__(self, run: Fitted, top: int | None = None, batch_size: int = BATCH) -> None:
        self.inputs: Inputs = run.inputs
        self.task, self.top, self.batch_size = run.task, top, batch_size
        known = run.settings["trainer"].get("accelerator", "auto")
        self.fabric = Fabric(accelerator=known, devices=1, precision=run.precision)
        run.network.lay_out(self.fabric.device)
        if not self._kinds():
            raise UserError(
                f"predict must be of a run that answers for each sample; task '{run.task.target}' does not."
            )
        if top is not None and (top < 1 or not self._ranks):
            raise UserError(f"--top must be 1 or more, of a run with one class for each sample; got {top}.")
        self.task = run.task.to(self.fabric.device)
        self.network: nn.Module = self.fabric.setup_module(run.network)
        self.network.train(False)

    @property
    def _ranks(self) -> bool:
        return self.task.target == "class"

    def _kinds(self) -> dict[str, type]:
        """Column of an answer → its type."""
        steps = torch.zeros(1, 1, dtype=torch.int64)
        device = next(self.task.buffers(), steps).device
        example: Any = torch.zeros(1, self.task.num_outputs or 1, device=device)
        if self.task.network_options.get("per_step"):
            example = example[None], torch.ones(1, dtype=torch.int64)
        rows = self.task.answers(example, steps)
        return {name: type(value) for row in rows for name, value in row.items()}

    @property
    def columns(self) -> dict[str, type]:
        """Name → type."""
        kinds = self._kinds()
        if self._ranks:
            each = {name: kind for name, kind in kinds.items() if name.startswith("probability/")}
            kinds = {"prediction": str, "probability": float}
            for rank in range(1, min(self.top or 0, len(each)) + 1):
                kinds |= {f"class_{rank}": str, f"probability_{rank}": float}
            kinds |= each if self.top is None else {}
        return {"sample": str, **kinds, "error": str}

    def rows(self, samples: Iterable[Sample]) -> Iterator[list[Row]]:
        """The rows of one batch after the other, in the order of the samples."""
        samples = iter(samples)
        while batch := list(islice(samples, self.batch_size)):
            prepared = [self._prepared(sample) for sample in batch]
            good = [one for one, error in prepared if not error]
            answers = iter(self._answers(good) if good else [])
            yield [
                {"sample": sample.name} | ({"error": error} if error else next(answers))
                for sample, (_, error) in zip(batch, prepared, strict=True)
            ]

    def _prepared(self, sample: Sample) -> tuple[Any, str]:
        if sample.error:
            return None, sample.error
        try:
            return self.inputs.prepare(sample.content), ""
        except UserError as error:
            return None, " ".join(str(error).split())
        except Exception as error:  # of whatever a stranger's file holds
            return None, f"{type(error).__name__}: {first_line(error)}"

    def _answers(self, prepared: Sequence[Any]) -> list[Row]:
        batch = self.fabric.to_device((self.inputs.collate(prepared), self.inputs.steps(prepared)))
        with torch.inference_mode():
            answers = self.task.answers(self.network(batch[0]), batch[1])
        return [self._ranked(answer) for answer in answers] if self._ranks else answers

    def _ranked(self, answer: Row) -> Row:
        each = {name.partition("/")[2]: share for name, share in answer.items() if name.startswith("probability/")}
        row = {"prediction": answer["prediction"], "probability": each[answer["prediction"]]}
        if self.top is None:
            return row | {f"probability/{name}": share for name, share in each.items()}
        best = sorted(each.items(), key=lambda pair: -pair[1])[: self.top]
        for rank, (name, share) in enumerate(best, start=1):
            row |= {f"class_{rank}": name, f"probability_{rank}": share}
        return row
