"""Metrics by name: any metric of torchmetrics, and those of `present.py`."""

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import torchmetrics
from pydantic import AfterValidator
from torchmetrics import Metric, MetricCollection

from thaw.errors import UserError, did_you_mean, first_line
from thaw.task import present

PLACES = (torchmetrics, torchmetrics.classification, torchmetrics.regression, torchmetrics.text, present)


@cache
def known_metrics() -> dict[str, type[Metric]]:
    """Class name → class, of every metric that a task may have."""
    found = {
        name: member
        for place in PLACES
        for name, member in vars(place).items()
        if inspect.isclass(member) and issubclass(member, Metric)
    }
    return found


def _known(metric: Any) -> Any:
    name = metric.get("name") if isinstance(metric, Mapping) else metric
    if not isinstance(name, str) or name not in known_metrics():
        raise ValueError("must be a metric of torchmetrics", did_you_mean(str(name), known_metrics()))
    return metric


Metrics = Mapping[str, Annotated[Any, AfterValidator(_known)]]


def build_metrics(metrics: Metrics, **sizes: int) -> MetricCollection:
    """Build every metric, with those of the sizes (num_classes, num_labels, num_outputs) that it asks for.

    Args:
        metrics: own name → class name, or `{name: class name, argument: value}`.

    Raises:
        UserError: a metric lacks an argument, or does not have one.
    """
    built = {}
    for own, metric in metrics.items():
        arguments = {"name": metric} if isinstance(metric, str) else dict(metric)
        target = known_metrics()[arguments.pop("name")]
        # Of few classes, the best five tell nothing.
        best = arguments.get("top_k")
        if isinstance(best, int) and best * 2 > sizes.get("num_classes", 2 * best):
            continue
        asked = inspect.signature(target.__init__).parameters
        given = {name: size for name, size in sizes.items() if name in asked}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric `.*` will save all targets")  # so it is meant
            try:
                built[own] = target(**(given | arguments))
            except (TypeError, ValueError) as error:
                raise UserError(f"task.metrics.{own} must fit {target.__name__}: {first_line(error)}.") from None
    return collected(built)


def collected(metrics: Mapping[str, Metric]) -> MetricCollection:
    """A collection in the given order; torchmetrics' own is by the alphabet."""
    collection = MetricCollection({}, compute_groups=False)
    for name, metric in metrics.items():
        collection.add_metrics({name: metric})
    return collection


def keeps_everything(metric: Metric) -> bool:
    """Whether a metric holds every prediction until it is computed, too many of them in training."""
    return any(isinstance(default, list) for default in metric._defaults.values())


def counts(metric: Metric) -> bool:
    """Whether a metric keeps whole numbers, or the predictions themselves: of batches put together it tells the same.

    One that keeps a sum of fractions does not, to the last bit.
    """
    return all(isinstance(default, list) or not default.is_floating_point() for default in metric._defaults.values())
