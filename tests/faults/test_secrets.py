"""API keys, tokens and the user part of an address reach no file, no screen and no W&B record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import composed

from thaw import config
from thaw.errors import UserError
from thaw.redaction import REDACTED, redacted, secret
from thaw.run.restore import restore
from thaw.run.run import Run

QUICK = ("data.train_size=64", "trainer.max_epochs=2", "trainer=cpu", "callbacks=none", "data.num_workers=0")
SECRETS = ("SECRET-OVERRIDE-1", "SECRET-ENVIRONMENT-2", "SECRET-ADDRESS-3", "SECRET-PLAIN-4", "0123456789" * 4)

# A template's user adds a setting of their own; W&B itself runs as it does outside of tests.
CODE = """
import sys
from thaw import command, config, logger
kept = logger.wandb_logger
def with_key(folder: str, name: str, project: str = "thaw", entity: str | None = None, mode: str = "auto",
             api_key: str | None = None, hub_token: str | None = None):
    assert (api_key, hub_token) == ("SECRET-OVERRIDE-1", "SECRET-ENVIRONMENT-2")
    return kept(folder, name, project, entity, mode)
with_key.__module__, with_key.__qualname__ = "thaw.logger", "wandb_logger"
logger.wandb_logger = with_key
import train
if {fail}:
    from thaw.task.classification import Classification
    loss, calls = Classification.loss, []
    def broken(*arguments):
        calls.append(1)
        if len(calls) > 30:  # in the second epoch: W&B starts with the metrics of the first
            raise RuntimeError("no answer for SECRET-ENVIRONMENT-2 from https://me:SECRET-ADDRESS-3@host/x")
        return loss(*arguments)
    Classification.loss = broken
command.main(train.train)
"""
PLANTED = (
    "+logger.api_key=SECRET-OVERRIDE-1",
    "+logger.hub_token=${oc.env:HF_TOKEN}",
    "paths.data='https://me:SECRET-ADDRESS-3@host/x?token=SECRET-PLAIN-4'",
)


def leaks(folder: Path, *texts: str) -> list[str]:
    """Where a secret stands in any file below a folder, in a file's name, or in a text."""
    places = [(str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    places += [("a file's name", str(path).encode()) for path in folder.rglob("*")]
    places += [("the screen", text.encode()) for text in texts]
    return [f"{word} in {place}" for place, content in places for word in SECRETS if word.encode() in content]


@pytest.mark.medium
@pytest.mark.fault("S16")
@pytest.mark.parametrize("fail", [pytest.param(False, marks=pytest.mark.slow), True])
def test_planted_secrets_are_in_no_file_and_not_on_the_screen(tmp_path: Path, fail: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path / "home"), "HF_TOKEN": "SECRET-ENVIRONMENT-2", "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    (tmp_path / "home").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(fail=fail), *QUICK, *PLANTED],
        cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=200,
    )  # fmt: skip
    assert result.returncode == fail, result.stderr
    (run,) = tmp_path.glob("runs/*")
    assert next(run.rglob("*.wandb")).stat().st_size > 1000
    assert list(run.glob("checkpoints/*.ckpt")) or fail
    assert leaks(tmp_path, result.stdout, result.stderr) == []
    record = json.loads((run / "run.json").read_text())
    assert f"+logger.api_key={REDACTED}" in record["overrides"]
    assert f"https://{REDACTED}@host/x" in record["command"]
    written = config.read(run / "config.yaml")
    assert written.logger.api_key == written.logger.hub_token == REDACTED
    if fail:
        assert REDACTED in record["reason"]
        assert REDACTED in (run / "error.log").read_text()


@pytest.mark.medium
@pytest.mark.fault("S16")
def test_a_sweep_and_a_mistake_show_no_secret(run_train, tmp_path: Path) -> None:
    for words in (
        ("-m", "seed=0,1", "+logger.api_key=SECRET-OVERRIDE-1"),
        ("+logger.api_key=SECRET-OVERRIDE-1",),
        ("model.options={hub_token:SECRET-OVERRIDE-1}",),
        ("data.root=https://me:SECRET-ADDRESS-3@host/x", "data=image_folder"),
        ("model.weights=https://me:SECRET-ADDRESS-3@host/x",),
        ("optimizer.lr=${x}", "+x_password='SECRET-PLAIN-4 with words'"),
    ):
        outcome: Outcome = run_train(*words, *QUICK)
        assert outcome.code == 2
        assert leaks(tmp_path, outcome.printed, outcome.errors) == []


@pytest.mark.fault("S16")
def test_the_same_command_with_another_secret_goes_on_with_its_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = Run.open(None, "name", ["seed=1", "+logger.api_key=OLD-KEY-1"])
    first.update()
    first.release()
    with pytest.raises(UserError, match="needs an earlier run"):
        Run.open(None, "name", ["seed=2", "+logger.api_key=OLD-KEY-1"], "must")
    again = Run.open(None, "name", ["seed=1", "+logger.api_key=NEW-KEY-2"], "auto")
    assert again.folder == first.folder
    assert "KEY-1" not in again.resume_command

    cfg = composed("+logger.api_key=OLD-KEY-1", "paths.data='https://me:one@host/x'")
    config.write(cfg, tmp_path / "config.yaml")
    cfg.logger.api_key, cfg.paths.data = "NEW-KEY-2", "https://me:two@host/x"
    assert config.changes(cfg, tmp_path / "config.yaml") == []
    cfg.paths.data = "https://me:two@elsewhere/x"
    assert config.changes(cfg, tmp_path / "config.yaml") != []


@pytest.mark.fault("S16")
def test_a_run_is_not_built_again_with_a_secret_left_out(tmp_path: Path) -> None:
    config.write(composed("trainer=cpu", "paths.data='https://me:one@host/x'"), tmp_path / "config.yaml")
    (tmp_path / "run.json").write_text('{"status": "finished", "data": {"fingerprint": ""}}')
    with pytest.raises(UserError, match=r"paths\.data must be given: a secret is kept out"):
        restore(tmp_path)


SECRET_NAMES = "api_key hub_token logger.api_key token HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY password apiKey"
SECRET_NAMES += " clientSecret db_password_2 credentials secret.value PASSPHRASE aws-secret-key"
HARMLESS = (
    "tokenizer max_tokens token_dropout pad_token_id pad_token eos_token num_key_value_heads monkey keyboard keys"
)
HARMLESS += " author lr model.name sort_key class_token tokens secretary passwordless key_column full_key"


@pytest.mark.fault("S16")
def test_what_counts_as_a_secret() -> None:
    assert [name for name in SECRET_NAMES.split() if not secret(name.removesuffix(".value"))] == []
    assert [name for name in HARMLESS.split() if secret(name)] == []


def test_no_setting_that_is_shipped_counts_as_a_secret() -> None:
    for path in config.CONF.rglob("*.yaml"):
        content = config.OmegaConf.to_container(config.read(path))
        assert redacted(content) == content, path


WORDS = st.text(st.characters(categories=("L", "N"), max_codepoint=0x24F), min_size=8, max_size=30)


@pytest.mark.medium
@pytest.mark.fault("S16")
@settings(max_examples=150, deadline=None)
@given(word=WORDS.filter(lambda word: word not in "redacted"), name=st.sampled_from(SECRET_NAMES.split()[:9]))
def test_any_secret_under_any_secret_name_is_hidden_in_any_form(word: str, name: str) -> None:
    forms = [
        f"{name}={word}", f"+{name}='{word} and more'", f"model.options={{{name}:{word},b:2}}",
        f'{{"{name}": "{word}"}}', f"https://{word}@host/x", f"postgresql+x://me:{word}@host:5432/x",
        f"https://host/x?a=1&{name}={word}&b=2", f"{name}: {word}", f"{name} = {word}",
    ]  # fmt: skip
    hidden = [redacted(form) for form in forms]
    assert [form for form in hidden if word in form.replace(REDACTED, "").replace(name, "")] == []
    assert [redacted(form) for form in hidden] == hidden, "what was written is compared with what would be"
    nested = redacted({name.rpartition(".")[2]: {"a": [word, 7]}, "b": [f"https://{word}@host"], "n": 1, "s": None})
    assert word not in str(nested)
    assert (nested["n"], nested["s"]) == (1, None)


@pytest.mark.medium
@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS, st.lists))
def test_what_is_no_secret_is_not_touched(value) -> None:
    assert redacted({"lr": value, "tokenizer": value, "max_tokens": value}) == {
        "lr": value,
        "tokenizer": value,
        "max_tokens": value,
    }
