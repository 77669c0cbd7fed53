"""Several processes: which one this is, one run directory for all, and gradients exchanged for what trains alone."""

import contextlib
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard

from thaw.errors import UserError
from thaw.launcher import Launcher
from thaw.model.network import Network
from thaw.model.partition import modules_within
from thaw.run.checkpoint import load_checkpoint
from thaw.run.run import Run

# Tells the processes that Lightning starts where the first of them, their parent, writes: "process:folder".
RUN_VARIABLE = "THAW_RUN"
Seconds = Annotated[int, Field(ge=1)]


class World(NamedTuple):
    """The place of this process among all.

    Args:
        external: whether torchrun, SLURM or the like started this process; also true of what Lightning started.
    """

    rank: int = 0
    size: int = 1
    external: bool = False


def world(trainer: L.Trainer) -> World:
    """Known before the processes have met, and before Lightning has started the others."""
    size = trainer.num_nodes * trainer.num_devices
    if size == 1 or not isinstance(trainer.strategy, ParallelStrategy):
        return World()
    place = trainer.strategy.cluster_environment
    rank = place.node_rank() * trainer.num_devices + place.local_rank()
    return World(rank, size, place.creates_processes_externally)


def conflicts(trainer: L.Trainer, settings: Mapping[str, Any], sweep: bool) -> list[str]:
    """What cannot work together in several processes, in words.

    Args:
        settings: the whole configuration, as plain containers.
        sweep: whether this process walks a sweep by itself.
    """
    processes = trainer.num_nodes * trainer.num_devices
    if processes == 1:
        return []
    problems = []
    if not settings["trainer"].get("strategy"):
        problems.append(f"trainer must have a strategy for {processes} processes; it has none. Write trainer=ddp.")
    if sweep:
        problems.append(
            f"A sweep (-m) must run in one process: each of the {processes} ranks would walk it, and draw parameters, "
            "by itself. Write hydra/launcher=isolated, where each job has a process of its own."
        )
    if settings["data"].get("streaming"):
        problems.append(f"data.streaming must be false with {processes} processes. Write data.streaming=false.")
    if isinstance(trainer.strategy, FSDP):
        if settings["trainer"].get("compile"):
            problems.append("trainer.compile must be false with trainer=fsdp. Write trainer=ddp.")
        if settings["freezing"].get("groups") == "auto":
            problems.append("freezing.groups must be named with trainer=fsdp; got auto. Write trainer=ddp.")
        if not settings["regularization"]["_target_"].endswith(".Regularization"):
            problems.append("regularization must be none with trainer=fsdp, where no rank has whole weights.")
        averages = [name for name, node in settings["callbacks"].items() if "averaging" in str(node.get("_target_"))]
        problems += [f"callbacks.{name} must go without trainer=fsdp. Write trainer=ddp." for name in averages]
    place = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and not (place and place.creates_processes_externally):
        problems.append(
            "trainer.num_nodes above 1 must be started by torchrun or SLURM. On each machine write e.g. "
            f"torchrun --nnodes {trainer.num_nodes} --nproc-per-node {trainer.num_devices} train.py …"
        )
    return problems


class Together(ParallelStrategy):
    """What our strategies share: processes that end together, and equal statistics for every evaluation."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if self._launcher:
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def on_validation_start(self) -> None:
        share_statistics(self)


class DDP(Together, DDPStrategy):
    """Lightning's DDP, where each rank evaluates its own share of the samples without waiting for the others.

    Args:
        timeout: seconds that a process waits for another before it ends with an error.
    """

    def __init__(self, timeout: Seconds = 600) -> None:
        super().__init__(timeout=timedelta(seconds=timeout))

    def meet(self) -> None:
        """Wait for all processes; Lightning does it again and finds it done."""
        self.setup_environment()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        # Wrapped, a forward pass would exchange the statistics of BatchNorm, and hang where a rank has a batch more.
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


class FSDP(Together, ModelParallelStrategy):
    """Fully sharded data parallel (arXiv:2304.11277, FSDP2): each process keeps its part of every parameter.

    Checkpoints hold whole tensors in one file, and can be read by one process or by any number.

    Args:
        timeout: see `DDP`.
    """

    def __init__(self, timeout: Seconds = 600) -> None:
        options = {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}
        super().__init__(**options, timeout=timedelta(seconds=timeout))

    def meet(self) -> None:
        """As of DDP; the mesh of devices waits for a module."""
        self._setup_distributed()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # torch asks for a state of all that requires a gradient, and what was frozen so far has none. The strategy sets
        # at the next epoch's start what trains.
        saved = load_checkpoint(self.broadcast(checkpoint_path))["optimizer_states"]
        trained = {number for state in saved for number in state["state"]}
        for number, parameter in enumerate(self.model.parameters()):
            parameter.requires_grad_(number in trained)
        return super().load_checkpoint(checkpoint_path, weights_only)

    def shard(self, network: Network) -> None:
        """Shard each layer group by itself, and then what is left."""
        for parameters in network.groups.values():
            ids, size = {id(p) for p in parameters.values()}, sum(p.numel() for p in parameters.values())
            for module in modules_within(network, ids):
                if (
                    2 * sum(p.numel() for p in module.parameters()) > size
                    and type(module).forward is not nn.Module.forward
                ):
                    fully_shard(module, mesh=self.device_mesh["data_parallel"])
        # By default what is left would stay whole after a validation, and so would be other objects than are trained.
        fully_shard(network, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state of whole tensors, also where the module's are sharded."""
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


def share_statistics(strategy: Strategy) -> None:
    """Give every rank the statistics of the first, as DDP does before each forward pass but not after the last."""
    if isinstance(strategy, (DDPStrategy, FSDP)):
        for held in strategy.lightning_module.network.buffers():
            distributed.broadcast(held, 0)


def rewrap(strategy: Strategy) -> None:
    """Let DDP exchange the gradients of what requires one now; it only looks when it wraps."""
    if not isinstance(strategy, DDPStrategy):
        return
    # First let go of the old wrapper, whose hooks hang on the parameters.
    strategy.model = strategy.lightning_module
    strategy.configure_ddp()


def open_together(place: World, trainer: L.Trainer, open_run: Callable[[], Run]) -> Run:
    """Let the first process open the run, and all others follow it.

    Raises:
        UserError: the first process could not open it.
    """
    leader, _, folder = os.environ.get(RUN_VARIABLE, "").partition(":")
    if place.rank and leader == str(os.getppid()):  # an environment may also carry what an earlier run has left
        return Run.following(folder)
    if not place.external:
        run = open_run()
        os.environ[RUN_VARIABLE] = f"{os.getpid()}:{run.folder}"
        return run
    trainer.strategy.meet()
    told: list[Any] = [None]
    if place.rank == 0:
        try:
            run = open_run()
            told = [str(run.folder)]
        except UserError as error:
            told = [error.problems]
    distributed.broadcast_object_list(told)
    if isinstance(told[0], tuple):
        # Who ends must not close the connection before all have heard; once they have, it may break.
        with contextlib.suppress(RuntimeError):
            distributed.barrier()
        raise UserError(*told[0])
    return run if place.rank == 0 else Run.following(told[0])


def gathered(rows: list[Any]) -> list[Any]:
    """The rows of all processes, in the order of their ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    every: list[list[Any]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(every, rows)
    return [row for part in every for row in part]
