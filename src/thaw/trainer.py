"""Lightning's Trainer with two settings more: a compiled network, and how many samples an optimizer step takes."""

import importlib.util
import math
import signal
import sysconfig
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field

from thaw.console import say
from thaw.data.datamodule import DataModule
from thaw.distributed import world
from thaw.errors import UserError
from thaw.model.network import Network
from thaw.module import FineTuner

Count = Annotated[int, Field(ge=1)]
BACKEND = "inductor"
# Each stage of freezing, mode and size of a batch has code of its own; after eight, torch would silently go on without.
MOST_VARIANTS = 1024


class Trainer(L.Trainer):
    """Everything else is Lightning's own.

    Args:
        compile: whether the network trains as code compiled for it. Weights and checkpoints are those of the plain one.
        target_batch_size: samples an optimizer step, of all processes together; what a batch lacks is accumulated.
        accumulate_grad_batches: batches an optimizer step, where it has no such target.

    Raises:
        UserError: no compiler, or both of the last two.
    """

    def __init__(
        self,
        compile: bool = False,
        target_batch_size: Count | None = None,
        accumulate_grad_batches: Count = 1,
        **lightning: Any,
    ) -> None:
        if target_batch_size and accumulate_grad_batches > 1:
            raise UserError(
                "trainer.target_batch_size must go without trainer.accumulate_grad_batches, which follows from it; got "
                f"{target_batch_size} and {accumulate_grad_batches}. Write trainer.accumulate_grad_batches=1."
            )
        super().__init__(accumulate_grad_batches=accumulate_grad_batches, **lightning)
        self.compiles, self.target_batch_size = compile, target_batch_size
        if compile:
            assert_compiler(self.strategy.root_device.type)

    def fill_target(self, data: DataModule) -> None:
        """Accumulate as many batches as the target has.

        Raises:
            UserError: it is no multiple of what the processes read at once, or batches have no size of their own.
        """
        if not (target := self.target_batch_size):
            return
        if data.max_tokens:
            raise UserError(
                "trainer.target_batch_size must go without data.max_tokens, which counts no samples. "
                "Write trainer.accumulate_grad_batches."
            )
        processes = max(world(self).size, data.ranks)  # a plan tries one of several
        at_once = data.batch_size * processes
        if target % at_once:
            parts = f"{data.batch_size} × {processes} processes" if processes > 1 else f"{at_once}"
            raise UserError(
                f"trainer.target_batch_size must be a multiple of data.batch_size; got {target} for {parts}. "
                f"Write e.g. trainer.target_batch_size={max(target // at_once, 1) * at_once}."
            )
        self.accumulate_grad_batches = target // at_once

    def steps_an_epoch(self, data: DataModule) -> int:
        """Optimizer steps of an epoch over all of the training samples."""
        return math.ceil(len(data.batches("train")) / self.accumulate_grad_batches)

    def fit(self, model: FineTuner, datamodule: DataModule, **options: Any) -> None:
        self.fill_target(datamodule)
        if self.compiles:
            compile_in_place(model.network, dynamic=datamodule.lengths("train") is not None)
        super().fit(model, datamodule=datamodule, **options)

    def try_out(self, model: FineTuner, datamodule: DataModule) -> None:
        """Fit only to measure something.

        Raises:
            KeyboardInterrupt: after Ctrl-C, which Lightning turns into a plain exit.
        """
        asked: list[int] = []

        def end(number: int, frame: Any) -> None:
            asked.append(number)
            self.should_stop = True  # the exception was once seen to be dropped on its way
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, end)
        try:
            self.fit(model, datamodule)
        except SystemExit:
            if not asked:
                raise
        finally:
            signal.signal(signal.SIGINT, before)
        if asked:
            raise KeyboardInterrupt


def compile_in_place(network: Network, dynamic: bool) -> None:
    """Let the network run as compiled code from the next call on; no parameter gets another name.

    A thaw changes what requires a gradient, and the next step is compiled for that. Dropout then draws other numbers
    than in the plain network, after a resume the same.

    Args:
        dynamic: whether one code is to serve inputs of all sizes, rather than one for each size. Left to itself torch
            would change from the one to the other on the way. One for each size is the same code after a resume, bit
            for bit; one for all is shaped by the size that comes first, and a resumed run may differ in rounding.
    """
    if network._compiled_call_impl is not None:
        return
    limits = torch._dynamo.config
    limits.recompile_limit = limits.accumulated_recompile_limit = MOST_VARIANTS
    network.compile(backend=BACKEND, dynamic=dynamic)
    say("Compiling: the first steps, and those after each thaw, wait for it; a later run finds most of it done.")


def assert_compiler(device: str) -> None:
    """Check that what torch generates can be compiled here.

    Raises:
        UserError: it cannot.
    """
    if BACKEND != "inductor":
        return
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "trainer.compile needs Triton on a GPU. Write pip install triton, or trainer.compile=false."
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        raise UserError(
            "trainer.compile needs a C++ compiler, and none is found. Install g++, or write trainer.compile=false."
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UserError(
            "trainer.compile needs the headers of Python, and there is no Python.h. Install python3-dev, or write "
            "trainer.compile=false."
        )
