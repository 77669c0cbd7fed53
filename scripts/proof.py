"""Prove the freeze contract: every strategy × schedule × network, straight and resumed, in one process, DDP and FSDP.

`python scripts/proof.py [strategy …]` trains every cell for four epochs without a stop, and again stopped after each
epoch and resumed from the files alone. It prints the table of the README: the largest difference of any weight,
statistic or optimizer state, over the schedules. Exit code 1 where one is not 0. Eight minutes on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from rich.progress import track

from thaw import config, console, distributed
from thaw.build import TRAINER
from thaw.data.digits import Digits
from thaw.model.timm import timm_network
from thaw.module import FineTuner
from thaw.optimizer import create_optimizer
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint
from thaw.run.kept_checkpoints import checkpoints
from thaw.task.classification import Classification

PLATEAU = "gradual, on=plateau, roll_back"
STRATEGIES = {path.stem: [f"freezing={path.stem}"] for path in sorted((config.CONF / "freezing").glob("*.yaml"))}
STRATEGIES["gradual"].append("freezing.every=1")
STRATEGIES[PLATEAU] = ["freezing=gradual", "freezing.on=plateau", "freezing.patience=1", "freezing.roll_back=true"]
SCHEDULERS = {"cosine": [], "one_cycle": [], "plateau": ["scheduler.patience=0"]}  # so that it acts in four epochs
NETWORKS = {
    "BatchNorm": {"name": "resnet_glyphs", "dropout": 0.1},
    "LayerNorm": {"name": "test_vit", "weights": "none", "image_size": 32, "dropout": 0.1},
}
WAYS = {"DDP": distributed.DDP, "FSDP": distributed.FSDP}
ONLY_NAMED = {("surgical", "FSDP"): ["freezing.groups=[block01]"]}  # no rank has whole gradients to choose by
EPOCHS = 4


def fit(
    strategy: str, scheduler: str, network: str, folder: Path, world: distributed.World, way: str, stop: int
) -> tuple[dict, float]:
    """Train from the folder's last checkpoint to the epoch `stop`; return what is saved, and how far ranks differ."""
    cfg = compose(
        "config",
        overrides=[
            f"scheduler={scheduler}",
            *SCHEDULERS[scheduler],
            *STRATEGIES[strategy],
            *ONLY_NAMED.get((strategy, way), []),
        ],
    )
    L.seed_everything(0, workers=True, verbose=False)
    data = Digits(train_size=48, batch_size=8 // world.size, num_workers=0)
    data.share(world.rank, world.size)
    net = timm_network(num_outputs=10, **NETWORKS[network])
    data.preprocess(**net.preprocessing)
    freezing = config.build(cfg.freezing)
    freezing.prepare(net)
    module = FineTuner(net, Classification(data.classes), create_optimizer, config.build(cfg.scheduler))
    ends = L.pytorch.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, _: setattr(trainer, "should_stop", trainer.current_epoch + 1 == stop)
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world.size,
        strategy=WAYS[way]() if world.size > 1 else "auto",
        max_epochs=EPOCHS,
        callbacks=[freezing, ends, *checkpoints(folder, "val/accuracy", "max")],
        plugins=[AtomicCheckpointIO()],
        limit_val_batches=2,
        logger=False,
        **TRAINER,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
    saved = load_checkpoint(last)
    state = {"weights": saved["state_dict"], "optimizer": saved["optimizer_states"]}
    whole = net.state_dict() if way == "DDP" else {}  # under FSDP each rank has its part, and they add up by nature
    held = distributed.gathered([whole])  # also waits until every rank has read the file
    return state, max(difference(held[0], other) for other in held)


def difference(one: object, two: object) -> float:
    """The largest difference of any number in two nested containers of the same shape; infinite where they are not."""
    if isinstance(one, torch.Tensor):
        same = one.shape == two.shape
        if not same or not one.numel():
            return 0.0 if same else torch.inf
        apart = float((one.double() - two.double()).abs().max())
        return torch.inf if apart != apart else apart  # max() would pass over a NaN
    if isinstance(one, dict):
        pairs = [(one[key], two[key]) for key in one] if one.keys() == two.keys() else [(0, 1)]
        return max((difference(a, b) for a, b in pairs), default=0.0)
    if isinstance(one, (list, tuple)):
        return difference(dict(enumerate(one)), dict(enumerate(two)))
    return 0.0 if one == two else torch.inf


def cell(strategy: str, scheduler: str, network: str, world: distributed.World, way: str) -> tuple[float, float]:
    """The largest difference between a straight run and one resumed at every epoch, and between the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        [place] = distributed.gathered([folder])[:1]
        straight, ranks = fit(strategy, scheduler, network, Path(place) / "straight", world, way, stop=EPOCHS)
        for epoch in range(1, EPOCHS + 1):
            resumed, apart = fit(strategy, scheduler, network, Path(place) / "resumed", world, way, stop=epoch)
            ranks = max(ranks, apart)
        return difference(straight, resumed), ranks


def measure(names: list[str], world: distributed.World, way: str = "DDP") -> dict[str, dict[str, list[float]]]:
    """Network → strategy → [resumed, between ranks], the largest over the schedules."""
    with initialize_config_dir(str(config.CONF)):
        cells = [(name, network) for network in NETWORKS for name in names]
        found: dict[str, dict[str, list[float]]] = {network: {} for network in NETWORKS}
        for name, network in track(
            cells, f"{way}, 2 ranks" if world.size > 1 else "one process", disable=world.rank > 0
        ):
            chosen = SCHEDULERS if way == "DDP" else ["cosine"]  # what FSDP changes is the same under all
            pairs = [cell(name, scheduler, network, world, way) for scheduler in chosen]
            found[network][name] = [max(values) for values in zip(*pairs, strict=True)]
    return found


def main() -> None:
    console.quiet_lightning()
    names = sys.argv[1:] or list(STRATEGIES)
    if "LOCAL_RANK" in os.environ:
        world = distributed.World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), external=True)
        torch.distributed.init_process_group("gloo")
        found = {way: measure(names, world, way) for way in WAYS}
        if world.rank == 0:
            Path(os.environ["PROOF"]).write_text(json.dumps(found))
        return
    alone = measure(names, distributed.World())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "proof.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, *names]
        subprocess.run(command, check=True, env=os.environ | {"PROOF": str(out), "OMP_NUM_THREADS": "1"})
        ddp, fsdp = json.loads(out.read_text()).values()
    columns = ("one process", "DDP", "between ranks", "FSDP")
    print("| strategy | " + " | ".join(f"{net}: {column}" for net in NETWORKS for column in columns) + " |")
    print("|---" * (1 + len(columns) * len(NETWORKS)) + "|")
    rows = {
        name: [v for net in NETWORKS for v in (*alone[net][name][:1], *ddp[net][name], *fsdp[net][name][:1])]
        for name in names
    }
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.1g}" if value else "0.0" for value in values) + " |")
    sys.exit(any(map(any, rows.values())))


if __name__ == "__main__":
    main()
