"""What memory a run has taken, and what to write where it is not enough."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

# What torch says of a CPU that has no more; for a GPU it has a type.
SPENT = ("can't allocate memory", "Cannot allocate memory", "out of memory")


def peak_memory() -> int:
    """Bytes: of the GPU where one is used, else the largest resident size of this process so far."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_short(error: BaseException) -> bool:
    """Whether the error says that memory is spent."""
    spent = isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in SPENT)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or spent


def advice(settings: Mapping[str, Any], settled: Mapping[str, Any]) -> list[str]:
    """What was given, the measured peak, and three overrides that need less, in five lines at most.

    Args:
        settings: the whole configuration, as plain containers.
        settled: what the run has chosen where the configuration leaves it open.
    """
    data, trainer = settings.get("data", {}), settings.get("trainer", {})
    batch = settled.get("batch_size") or (data.get("batch_size") if data.get("batch_size") != "auto" else None)
    precision = settled.get("precision") or trainer.get("precision")
    sizes = {name: data.get(name) for name in ("image_size", "max_length", "max_tokens", "max_seconds")}
    given = [f"data.batch_size={batch or 'null (at most 32)'}", f"trainer.precision={precision or 'null'}"]
    given += [f"data.{name}={value or 'null (of the model)'}" for name, value in sizes.items() if name in data]
    parts = 2 * trainer.get("accumulate_grad_batches", 1)
    half = max((batch or 32) // 2, 1)
    halves = {name: value // 2 if isinstance(value, int) else value / 2 for name, value in sizes.items() if value}
    possible = {
        f"data.batch_size={half} trainer.accumulate_grad_batches={parts} (as many samples a step)": (batch or 2) > 1,
        "model.gradient_checkpointing=true (activations are computed twice)": (
            settings.get("model", {}).get("gradient_checkpointing") is False
        ),
        "freezing=linear_probe (the head alone trains)": settings.get("freezing", {}).get("n", 1) != 0,
        "trainer.precision=bf16-mixed": precision in (None, "32-true", 32, "32"),
        **{f"data.{name}={value}": True for name, value in halves.items()},
        "data.num_workers=0 (fewer processes)": data.get("num_workers") != 0,
        "optimizer=sgd (no second moments)": True,
    }
    lines = [f"Given: {', '.join(given)}. Peak: {peak_memory() / 2**30:.2f} GiB. Write one or more of:"]
    return lines + [f"  {text}" for text in [text for text, fits in possible.items() if fits][:3]]
