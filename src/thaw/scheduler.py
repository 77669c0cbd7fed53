"""Learning rates: a factor of the share of the run done, times a short re-warm for each group that thaws."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Share = Annotated[float, Field(ge=0, lt=1)]
Level = Annotated[float, Field(ge=0, le=1)]


class Schedule:
    """A multiple of every group's own rate, after a linear warm-up.

    Args:
        shape: share of the run after the warm-up, in [0, 1] → factor.
        warmup: share of the run over which the factor rises from zero.
    """

    def __init__(self, shape: Callable[[float], float], warmup: float = 0.0) -> None:
        self.shape, self.warmup = shape, warmup

    def __call__(self, share: float) -> float:
        if share < self.warmup:
            return share / self.warmup
        return self.shape((share - self.warmup) / (1 - self.warmup))

    def observe(self, value: float, mode: str) -> None:
        """Take note of the monitored metric after an epoch; `plateau` alone acts on it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def cosine(warmup: Share = 0.05, end: Level = 0.0) -> Schedule:
    """Half a cosine from 1 to `end` (arXiv:1608.03983, without restarts)."""
    return Schedule(lambda share: end + (1 - end) * (1 + math.cos(math.pi * share)) / 2, warmup)


def linear(warmup: Share = 0.05, end: Level = 0.0) -> Schedule:
    """A straight line from 1 to `end` (arXiv:1810.04805)."""
    return Schedule(lambda share: 1 - (1 - end) * share, warmup)


def constant(warmup: Share = 0.05) -> Schedule:
    """1 to the end."""
    return Schedule(lambda share: 1.0, warmup)


def polynomial(warmup: Share = 0.05, power: Annotated[float, Field(gt=0)] = 2.0, end: Level = 0.0) -> Schedule:
    """From 1 to `end` as a power of the share that is left."""
    return Schedule(lambda share: end + (1 - end) * (1 - share) ** power, warmup)


def step(warmup: Share = 0.05, steps: Annotated[int, Field(ge=1)] = 3, factor: Level = 0.1) -> Schedule:
    """`steps` equal stretches, each at `factor` times the rate of the one before."""
    return Schedule(lambda share: factor ** min(int(share * steps), steps - 1), warmup)


def one_cycle(peak: Annotated[float, Field(gt=0, lt=1)] = 0.3, start: Level = 0.04, end: Level = 4e-6) -> Schedule:
    """A cosine up from `start` to 1 at share `peak`, and a cosine down to `end` (arXiv:1708.07120)."""

    def shape(share: float) -> float:
        up = share < peak
        low, part = (start, share / peak) if up else (end, 1 - (share - peak) / (1 - peak))
        return low + (1 - low) * (1 - math.cos(math.pi * part)) / 2

    return Schedule(shape)


def warmup_stable_decay(warmup: Share = 0.05, decay: Annotated[float, Field(gt=0, le=1)] = 0.2) -> Schedule:
    """1 until the last share `decay` of the run, then a straight line to 0 (arXiv:2404.06395)."""
    return Schedule(lambda share: min(1.0, (1 - share) / decay), warmup)


class plateau(Schedule):  # noqa: N801  (a schedule's name is a word, whether function or class)
    """Times `factor` whenever the monitored metric has not improved for `patience` epochs."""

    def __init__(
        self,
        warmup: Share = 0.05,
        factor: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        patience: Annotated[int, Field(ge=0)] = 3,
    ) -> None:
        # torch's own rule watches the metric; a shadow optimizer of rate 1 holds the factor it arrives at.
        self._shadow = SGD([torch.zeros(1)], lr=1.0)
        self._options = {"factor": factor, "patience": patience}
        self._rules = {mode: ReduceLROnPlateau(self._shadow, mode=mode, **self._options) for mode in ("min", "max")}
        super().__init__(lambda share: self._shadow.param_groups[0]["lr"], warmup)

    def observe(self, value: float, mode: str) -> None:
        self._rules[mode].step(value)

    def state_dict(self) -> dict[str, Any]:
        rules = {mode: {"best": rule.best, "bad": rule.num_bad_epochs} for mode, rule in self._rules.items()}
        return {"factor": self._shadow.param_groups[0]["lr"], "rules": rules}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shadow.param_groups[0]["lr"] = state["factor"]
        for mode, rule in self._rules.items():
            rule.best, rule.num_bad_epochs = state["rules"][mode]["best"], state["rules"][mode]["bad"]


class GroupSchedule(LRScheduler):
    """Sets each torch group to its own rate × the schedule's factor × its re-warm; a frozen group to 0.

    Stepped once an optimizer step. The share of the run at step s of S is (s + 1) / (S + 1), so that neither the
    first nor the last step is lost to a rate of zero.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, steps: int = 1) -> None:
        self.schedule, self.steps = schedule, steps
        self._thawed: Mapping[str, int] | None = None
        self._rewarm, self._scale = 0.0, 1.0
        super().__init__(optimizer)

    def set_steps(self, steps: int) -> None:
        """Say how many optimizer steps the whole run has."""
        self.steps = steps
        self._apply()

    def set_thawed(self, thawed: Mapping[str, int], rewarm: float, lr: float | None = None) -> None:
        """Apply from now on which layer groups train, since which optimizer step, and `lr` in place of `optimizer.lr`.

        A group that starts at step 0 shares the run's warm-up. One that thaws later rises over `rewarm` (share of the
        run), because Adam's second moment is still empty and its first steps would be of full size.
        """
        self._thawed, self._rewarm = thawed, rewarm
        self._scale = lr / self.optimizer.defaults["lr"] if lr else 1.0
        self._apply()

    def get_lr(self) -> list[float]:
        factor = self._scale * self.schedule(min(1.0, (self.last_epoch + 1) / (self.steps + 1)))
        groups = zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        return [rate * factor * self._warmth(group["name"].partition("/")[0]) for rate, group in groups]

    def _warmth(self, layer: str) -> float:
        if self._thawed is None:
            return 1.0
        if layer not in self._thawed:
            return 0.0
        since, ramp = self._thawed[layer], self._rewarm * self.steps
        return 1.0 if since == 0 or ramp < 1 else min(1.0, max(0.0, (self.last_epoch - since + 1) / ramp))

    def _apply(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self.schedule.load_state_dict(state_dict["schedule"])
        self._apply()
