"""What stays frozen runs once: a linear probe and gradual unfreezing, beside the same without that and beside peers."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import DATA, FOLDER, ROOT, WEIGHTS, interleaved, table

# Runs train.py, and writes how long all of `trainer.fit` took: epochs, validations, checkpoints, the cache.
TIMED = """
import json, sys, time, train
from thaw import command
from thaw.run import record
fit = record.fit
def timed(trainer, *arguments):
    began = time.perf_counter()
    fit(trainer, *arguments)
    told = dict(seconds=time.perf_counter() - began, accuracy=float(trainer.callback_metrics["val/accuracy"]))
    with open({path!r}, "w") as file:
        json.dump(told, file)
record.fit = timed
command.main(train.train)
"""
PROBE = (
    "experiment=hymenoptera",
    f"paths.data={DATA}",
    f"model.weights={WEIGHTS}/mobilenetv2_100.safetensors",
    "data.augment=none",
    "freezing=linear_probe",
)
# Six phases from the head to the stem, one rate for all, no warm-up and no clipping, as finetuning-scheduler does it.
THAWS = ("head", "block06,block07", "block04,block05", "block02,block03", "block00,block01", "stem")
EPOCHS = 30
PHASES = ",".join(f"{{at:{n * EPOCHS // 6},groups:[{','.join(THAWS[: n + 1])}]}}" for n in range(6))
GRADUAL = (
    "data=image_folder",
    f"data.root={DATA}/cifar10_sub",
    "data.augment=none",
    "data.train_size=1000",
    "data.val_size=0.2",
    "data.batch_size=64",
    "data.num_workers=0",
    "data.image_size=32",
    "model=timm",
    "model.name=resnet18",
    "model.weights=none",
    "optimizer.lr=1e-3",
    "optimizer.head_lr_scale=1",
    "scheduler=constant",
    "scheduler.warmup=0",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.gradient_clip_val=null",
)
SCHEDULE = ("freezing=schedule", "freezing.rewarm=0", f"freezing.phases=[{PHASES}]")


def thaw(*words: str) -> Callable[[], float]:
    """Seconds of `trainer.fit` in train.py, with an empty cache."""

    def arguments(folder: Path, told: Path) -> list[str]:
        run = [f"run.dir={folder}/run", f"cache.dir={folder}/cache", "logger=none", "test=false", "callbacks=none"]
        return ["-c", TIMED.replace("{path!r}", repr(str(told))), *run, *words]

    return _measured(arguments)


def peer(freezing: str, *words: str) -> Callable[[], float]:
    """The same of a peer, see `peers.py`."""
    return _measured(lambda folder, told: ["-m", "benchmarks.peers", freezing, str(told), *words])


def _measured(arguments: Callable[[Path, Path], list[str]]) -> Callable[[], float]:
    def measure() -> float:
        place = ROOT / FOLDER / "features"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        told = place / "told.json"
        search = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": search}
        seed = f"seed={len(measure.accuracy)}"  # of each round its own: one seed says little of an accuracy
        words = [sys.executable, *arguments(place, told), seed]
        subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(told.read_text())
        measure.accuracy.append(found["accuracy"])
        return found["seconds"]

    measure.accuracy = []
    return measure


def _compare(title: str, ways: dict[str, Callable[[], float]], reference: str, rounds: int) -> None:
    found = interleaved(ways, rounds)
    print(table(title, "seconds", found, reference))
    for name, way in ways.items():
        print(f"val/accuracy of {name}, a seed each: {', '.join(f'{value:.3f}' for value in way.accuracy)}")


def probe() -> None:
    """Hymenoptera has 244 training and 153 validation photographs."""
    ways = {
        "Thaw": thaw(*PROBE),
        "Thaw, `cache=none`": thaw(*PROBE, "cache=none"),
        "Lightning's BackboneFinetuning": peer("backbone_finetuning", *PROBE),
    }
    _compare("linear probe, 10 epochs, MobileNetV2 160 px, hymenoptera", ways, "Thaw", rounds=3)


def gradual() -> None:
    """Random weights: what is compared is the time of the same training, and that it comes to the same."""
    ways = {
        "Thaw": thaw(*GRADUAL, *SCHEDULE),
        "Thaw, `cache=none`": thaw(*GRADUAL, *SCHEDULE, "cache=none"),
    }
    if importlib.util.find_spec("finetuning_scheduler"):
        ways["Lightning with finetuning-scheduler"] = peer("finetuning_scheduler", *GRADUAL)
    _compare("6 phases of 5 epochs, ResNet-18 32 px, 1,000 images of CIFAR-10", ways, "Thaw", rounds=3)
