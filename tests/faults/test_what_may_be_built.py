"""A configuration builds what the execution whitelist names, and nothing widens that list but code."""

from pathlib import Path

import pytest
from test_config import composed

from thaw import config
from thaw.errors import UserError

REFUSED = [
    # commands and code
    "os.system", "posix.system", "os.popen", "os.execv", "os.remove", "os.kill", "subprocess.run", "subprocess.Popen",
    "builtins.eval", "builtins.exec", "builtins.open", "builtins.__import__", "runpy.run_path", "code.interact",
    "pty.spawn", "ctypes.CDLL", "importlib.import_module", "multiprocessing.Process", "webbrowser.open",
    # files and addresses
    "pathlib.Path.write_text", "pathlib.Path.unlink", "shutil.rmtree", "urllib.request.urlretrieve", "tarfile.open",
    # what unpickles
    "pickle.loads", "pickle.load", "torch.load", "torch.hub.load", "torch.jit.load", "joblib.load", "numpy.load",
    "yaml.unsafe_load", "pandas.read_pickle", "lightning.pytorch.LightningModule.load_from_checkpoint",
    # what calls something else, and names that only begin like an allowed one
    "functools.partial", "hydra.utils.instantiate", "hydra.utils.get_method", "operator.attrgetter",
    "lightning.Trainer.fit", "lightning.Trainers", "lightning.pytorch.callbacks.EarlyStopping.__init__", "lightning",
    "thaw", "thawing.evil", "thaw.run.run.os.system", "thaw.config.os.system", "thaw.run.lock.os.remove",
    "thaw.run.checkpoint.torch.load", "thaw..os", "", ".", "eval", "__main__.x",
]  # fmt: skip
PLACES = ["task", "model", "data", "optimizer", "scheduler", "freezing", "regularization", "trainer", "logger"]


@pytest.fixture(scope="module")
def settings() -> str:
    cfg = composed()
    return config.OmegaConf.to_yaml(cfg)


@pytest.mark.fault("S6")
@pytest.mark.parametrize("target", REFUSED)
def test_it_is_refused_wherever_it_stands(tmp_path, monkeypatch, settings: str, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    for place in PLACES:
        cfg = config.OmegaConf.create(settings)
        cfg[place]._target_ = target
        assert any(place in problem and "must be a target" in problem for problem in config.validate(cfg)), place
        with pytest.raises(Exception, match=r"whitelist|WHITELIST|_target_|target|import"):
            config.build(cfg[place])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("S6")
@pytest.mark.parametrize(
    "override",
    [
        "+model.options={a:{_target_:os.mkdir,path:marker}}",
        "+model.options={a:[{_target_:os.mkdir,path:marker}]}",
        "+callbacks.evil={_target_:os.mkdir,path:marker}",
        "+callbacks.evil._target_=${where} +callbacks.evil.path=marker +where=os.mkdir",
        "+callbacks.early_stopping.x={_target_:os.mkdir,path:marker}",
        "optimizer.options={foreach:{_target_:os.mkdir,path:marker}}",
        "optimizer.options={foreach:[{_target_:os.mkdir,path:marker}]}",
        "+task.metrics.evil={_target_:os.mkdir,path:marker}",
        "+task.metrics.evil={name:os.mkdir,path:marker}",
        "+hydra.callbacks.evil={_target_:os.mkdir,path:marker}",
        "hydra.job_logging={version:1,formatters:{evil:{'()':os.mkdir,path:marker}}}",
        "+hydra.callbacks.evil._target_=hydra.experimental.callbacks.PickleJobInfoCallback",
    ],
)
def test_nothing_below_a_setting_is_built(run_train, tmp_path: Path, override: str) -> None:
    outcome = run_train(*override.split(), "logger=none", "trainer=debug", "data.train_size=64", "run.dir=runs/x")
    assert not (tmp_path / "marker").exists()
    assert not list(tmp_path.rglob("*.pickle"))
    assert outcome.code == 2, outcome.printed + outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.fault("S6")
@pytest.mark.parametrize(
    "override",
    [
        "model._target_=thaw.model.timm.hf_hub_download",
        "data._target_=thaw.run.run.subprocess",
        "task._target_=thaw.model.timm.load_file",
        "task._target_=thaw.run.run.Run",
        "task._target_=thaw.run.provenance.PACKAGES",
        "model={_target_:thaw.run.lock.unlock,folder:.}",
        "model={_target_:thaw.defaults.default_epochs,steps:3}",
        "freezing={_target_:thaw.defaults.default_epochs,steps:3}",
        "data={_target_:thaw.run.lock.unlock,folder:.}",
    ],
)
def test_what_is_only_imported_there_or_is_of_another_kind_is_refused(run_train, override: str) -> None:
    key, _, value = override.partition("=")
    words = [override] if "{" not in value else [f"~{key}", f"+{override}"]
    outcome = run_train(*words, "logger=none")
    assert outcome.code == 2, outcome.errors
    assert outcome.errors.startswith("error: ")
    assert "Traceback" not in outcome.errors
    assert not outcome.folders


@pytest.mark.fault("S7")
@pytest.mark.parametrize(
    "override",
    [
        "+model._execution_whitelist_=[os.*]",
        "+_execution_whitelist_=[os.*]",
        "+hydra._execution_whitelist_=[os.*]",
        "+EXECUTION_WHITELIST=[os.*]",
    ],
)
def test_the_list_is_not_widened_by_a_configuration_or_the_environment(
    run_train, monkeypatch, tmp_path: Path, override: str
) -> None:
    for variable in ("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "HYDRA_EXECUTION_WHITELIST", "EXECUTION_WHITELIST"):
        monkeypatch.setenv(variable, "os.*,os.mkdir,*")
    outcome = run_train(override, "model._target_=os.mkdir", "++model.path=marker")
    assert outcome.code == 2
    assert "Traceback" not in outcome.errors
    cfg = composed()
    cfg.task = {"_target_": "os.mkdir", "path": str(tmp_path / "marker"), "_execution_whitelist_": ["os.*"]}
    with pytest.raises(Exception, match="whitelist"):
        config.build(cfg.task)
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("S15")
@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental", "--e"])
def test_hydras_rerun_from_a_pickle_is_refused_in_plain_words(run_train, tmp_path: Path, flag: str) -> None:
    import pickle

    from hostile import Payload

    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.pickle").write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
    for place in (tmp_path, tmp_path / ".hydra" / "config.pickle"):
        outcome = run_train(flag, str(place))
        assert outcome.code == 2
        assert outcome.errors.startswith("error: --experimental-rerun must not be used")
        assert len(outcome.errors.splitlines()) == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("S18")
@pytest.mark.parametrize("resolver", ["eval", "python", "exec", "import", "call", "load", "pickle"])
def test_no_resolver_evaluates_what_a_configuration_says(run_train, resolver: str) -> None:
    assert not config.OmegaConf.has_resolver(resolver)
    outcome = run_train(f"optimizer.lr=${{{resolver}:1+1}}")
    assert outcome.code == 2
    assert "optimizer.lr must refer to what is there" in outcome.errors
    assert "Traceback" not in outcome.errors


def test_an_argument_that_was_deleted_is_named(run_train) -> None:
    with pytest.raises(UserError, match=r"must have all its settings.*'name'"):
        config.build(config.OmegaConf.create({"_target_": "thaw.model.timm.timm_network"}), num_outputs=2)
