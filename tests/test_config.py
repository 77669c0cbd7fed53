"""Every YAML composes and binds; every mistake is named, all at once, in words."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Outcome
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from thaw import config

CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted((ROOT / "conf").glob("*/*.yaml"))
    if (path.parent.name, path.stem) != ("trainer", "mps")
]
# What a choice cannot know by itself.
NEEDED = {
    ("model", "timm"): ["model.name=resnet18"],
    ("optimizer", "timm"): ["optimizer.name=lamb"],
    ("model", "transformers"): ["model.name=bert"],
    ("data", "text_hub"): ["data.hub=owner/name"],
    **{("data", name): [f"data.root={ROOT}"] for name in ("image_folder", "image_csv", "speech_folder", "speech_csv")},
    ("data", "text_csv"): [f"data.root={ROOT}"],
}


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.CONF)):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_yaml_composes_and_binds_to_its_targets_signature(group: str, choice: str) -> None:
    cfg = composed(f"{group}={choice}", *NEEDED.get((group, choice), []))
    if group == "experiment" and cfg.data.get("root") is not None:
        assert cfg.data.root.startswith(f"{cfg.paths.data}/"), "every experiment takes its data from one place"
        cfg.data.root = str(ROOT)
    assert config.validate(cfg) == []


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_short_and_opens_with_what_it_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    if path.name != "config.yaml":
        assert len(lines) <= 20


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] in ("optimizer", "scheduler", "freezing")])
def test_what_composes_also_builds(group: str, choice: str) -> None:
    cfg = composed(f"{group}={choice}", *NEEDED.get((group, choice), []))
    if group == "optimizer":
        network = config.build(cfg.model, num_outputs=2)
        rates = {entry["name"]: entry["lr"] for entry in config.build(cfg.optimizer, network=network).param_groups}
        assert rates["head/decay"] == pytest.approx((cfg.optimizer.lr or network.lr) * cfg.optimizer.head_lr_scale)
    else:
        assert callable(getattr(config.build(cfg[group]), "trains" if group == "freezing" else "observe"))


@pytest.mark.fault("H3", "H4", "H7", "H11")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lrr=1", "Did you mean 'optimizer.lr'?"),
        ("optimiser.lr=1", "Did you mean 'optimizer.lr'?"),
        ("model=resnt", "Did you mean 'resnet'?"),
        ("modle=resnet", "Did you mean 'model'?"),
        ("optimizer.lr=-1", "optimizer.lr must be greater than 0.0; got -1."),
        ("optimizer.lr=abc", "optimizer.lr must be a number; got 'abc'."),
        ("trainer.max_epochs=2.5", "trainer.max_epochs must be a whole number; got 2.5."),
        ("model.name=resnet5", "Did you mean 'resnet50'?"),
        ("model.name=resnet18.a1_in2k", "Did you mean 'resnet18.a1_in1k'?"),
        ("model.weights=/nowhere.safetensors", "model.weights must be 'pretrained', 'none' or the path"),
        ("optimizer.name=adamww", "Did you mean 'adamw'?"),
        ("monitor=val/acc", "Did you mean 'val/accuracy'?"),
        ("data.train_size=3", "data.train_size must leave every class"),
        ("data.augment=medium", "must be one of none, default, strong; got 'medium'."),
        ("trainer.limit_train_batches=2", "Write +trainer.limit_train_batches=2"),
        ("+optimizer.beta=1", "optimizer.beta is no setting of thaw.optimizer.create_optimizer."),
        ("run.dir=/proc/nowhere/run", "run.dir must be a folder that can be written"),
        ("data=image_folder", "data.root must be given."),
        ("trainer.devices=2", "trainer must have a strategy for 2 processes"),
        ("trainer.precision=7", "trainer.precision must be"),
        ("trainer.accelerator=abacus", "trainer must suit this machine"),
        ("trainer.max_epochs=0", "trainer.max_epochs must be greater than or equal to 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs must be greater than or equal to 1"),
        ("monitor=test/accuracy", "which chooses nothing"),
        ("+sede=5", "Did you mean 'seed'?"),
        ("+checkpoint.every_n_step=2", "Did you mean 'checkpoint.every_n_steps'?"),
        ("model.mean=[0.5,0.5]", "model.mean must have one value, or one for each"),
        ("model.interpolation=foo", "must be one of nearest"),
        ("model.in_channels=2", "model.in_channels must be 1 or 3"),
        ("optimizer.name=adahessian", "must need first derivatives only"),
        ("run.dir=.", "run.dir must name a directory of its own"),
        ("optimizer.options={foo:1}", "optimizer.options must fit 'adamw'"),
        ("seed=-1", "seed must be greater than or equal to 0; got -1."),
        ("resume=yes", "resume must be one of never, auto, must; got 'yes'."),
        ("optimizer", "must be written as key=value"),
        ("scheduler.warmup=1.5", "scheduler.warmup must be less than 1"),
        ("+data.mean={_target_:os.getcwd}", "must be a target that Thaw may build"),
    ],
)
def test_a_mistake_is_named_with_what_to_write_instead(run_train, override: str, said: str) -> None:
    outcome: Outcome = run_train(override)
    assert outcome.code == 2
    assert said in outcome.errors
    assert "Traceback" not in outcome.errors
    assert len(outcome.errors.strip().splitlines()) <= 6
    assert not outcome.folders


@pytest.mark.fault("H3", "H4", "H8")
def test_all_mistakes_come_at_once(run_train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = run_train(
        "optimizer.lrr=1", "trainer.max_epochs=2.5", "data=image_folder", "data.root=empty", "model=resnt"
    )
    assert outcome.code == 2
    for said in ("'optimizer.lr'", "trainer.max_epochs", "'resnet'"):
        assert said in outcome.errors
    outcome = run_train("model.interpolation=foo", "optimizer.name=adamm", "monitor=val/acc")
    for said in ("model.interpolation", "'adam'", "'val/accuracy'"):
        assert said in outcome.errors
    outcome = run_train("optimizer.lr=-1", "data=image_folder", "data.root=empty", "run.dir=/proc/nowhere")
    for said in ("optimizer.lr must", "found none in 'empty'", "run.dir must"):
        assert said in outcome.errors


def test_a_mistake_in_one_job_of_a_multirun_is_named(run_train) -> None:
    outcome = run_train("-m", "freezing=none,gradul")
    assert outcome.code == 2
    assert "Did you mean 'gradual'?" in outcome.errors


@pytest.mark.fault("S6")
@pytest.mark.parametrize("target", ["os.system", "pathlib.Path.write_text", "torch.load", "builtins.eval"])
def test_nothing_outside_the_whitelist_is_built(target: str) -> None:
    cfg = composed()
    cfg.task._target_ = target
    assert "must be a target that Thaw may build" in config.validate(cfg)[0]
    with pytest.raises(Exception, match="whitelist"):
        config.build(cfg.task)


@pytest.mark.medium
def test_validation_does_not_depend_on_the_order_of_overrides() -> None:
    overrides = ["data=image_folder", "data.root=.", "optimizer=sgd", "optimizer.lr=0.1"]
    configs = {str(composed(*order)) for order in itertools.permutations(overrides)}
    assert len(configs) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_looking_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['train.py', *{arguments!r}]\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'lightning', 'timm', 'wandb', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "freezing" in result.stdout
