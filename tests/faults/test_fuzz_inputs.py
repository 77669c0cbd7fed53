"""Random overrides and damaged files: each works or is a plain user error; none hangs, and none shows a traceback."""

import io
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import pytest
import timm
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from test_config import composed

from thaw import command, config, schema
from thaw.errors import UserError
from thaw.model.timm import timm_network
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint

SECONDS = 60  # for one input, on a machine that is busy with others

VALUES = [
    "", "null", "true", "0", "-1", "1", "2.5", "1e400", "-1e-400", "nan", "inf", "1_000", "0x10", "9" * 5000,
    "abc", "''", '""', "'", '"', "[", "]", "{", "}", "[]", "{}", "[1,2]", "{a:1}", "{a:{b:[1,{c:2}]}}",
    "[" * 50, "{a:" * 50, ",", "1,2", "a,b", "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)",
    "shuffle(1,2)", "${", "${}", "${x}", "${.}", "${..}", "${oc.env:X}", "${oc.env:HOME}", "${oc.decode:1+}",
    "${eval:1}", "${seed}", "${model}", "${model.name}", "${now:%Y}", "???", "$", "\\", "\\n", "a b", "a=b",
    "=", "==", "#", "%", "@", "*", "~", "-", "--", "../x", "/", "/dev/null", "a/b", "é", "冰", "\u202e", "\x00",
    "\x1b[31m", "\t", "os.system", "thaw", "thaw.nothing", "thaw.run.run.Run", "lightning.Trainer",
    "{_target_:os.system}", "[{_target_:os.system}]", "{_target_:thaw.run.run.Run}", "str(1)", "int(x)",
    "float(nan)", "json_str({})", "extend_list(1)", "sort(3,1)", "cast(int)", "<redacted>", "x" * 3000,
]  # fmt: skip
LETTERS = "abcxyz019_.-+=,:;'\"()[]{}$@~/\\ \t%#!?*&|<>éß冰\x00\x07"


@contextmanager
def limited(what: str) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"{what!r} still runs after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Overrides


@hydra.main(config_path=str(config.CONF), config_name="config", execution_whitelist=config.EXECUTION_WHITELIST)
@command.reports_errors
def checked(cfg: DictConfig) -> None:
    """All of a run that depends on what was typed, up to the network."""
    config.preflight(cfg)
    config.recorded(cfg)


def overrides(number: int) -> list[str]:
    """The words of the command with this number: the same in every process."""
    draw = random.Random(number)
    known = list(schema.flat(config.OmegaConf.to_container(composed())))
    groups = [path.name for path in config.CONF.iterdir() if path.is_dir()]

    def text() -> str:
        return "".join(draw.choices(LETTERS, k=draw.randrange(12)))

    def word() -> str:
        key = draw.choice(
            [draw.choice(known), draw.choice(known), draw.choice(groups), f"{draw.choice(known)}.{text()}"]
        )
        if draw.random() < 0.15:
            key = draw.choice(
                [text(), key[:-1], f"{key}x", key.replace(".", "/"), f"{key}@{text()}", f"hydra.{text()}"]
            )
        value = draw.choice([draw.choice(VALUES), draw.choice(VALUES), text()])
        sign = draw.choice(["", "", "", "+", "++", "~"])
        return sign + key if sign == "~" and draw.random() < 0.7 else f"{sign}{key}={value}"

    words = [word() for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    return [word for word in words if not word.startswith("-")]


def try_overrides(run_task: Callable, numbers: range) -> None:
    codes = {run_task(checked, "train.py", "logger=none").code}  # that not all is refused
    assert codes == {0}
    for number in numbers:
        words = overrides(number)
        with limited(f"{number}: {words}"):
            outcome = run_task(checked, "train.py", *words, "logger=none")
        assert "Traceback" not in outcome.errors, (number, words, outcome.errors[-3000:])
        assert outcome.code in (0, 2), (number, words, outcome.code, outcome.errors[-3000:])
        assert outcome.code == 0 or outcome.errors.startswith(("error: ", "usage: ")), (number, words, outcome.errors)
        codes.add(outcome.code)
    assert codes == {0, 2}


@pytest.mark.fault("H5")
@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=${nope}"],
        ["+model.options={a:[{b:'${nope}'}]}"],
        ["+callbacks.unused=${x.y.z}"],
        ["optimizer.lr=${oc.env:THAW_NO_SUCH_VARIABLE}"],
        ["data.image_size=${model}"],
        ["task={_target_:thaw.run.run.Run}"],
        ["task.metrics.top5.top_k=many"],
        ["~model"],
        ["~optimizer._target_"],
        ["~run.dir"],
        ["~logger"],
        ["monitor=nan"],
        ["seed=" + "9" * 5000],
        ["seed=" + "f" * 5000],
        ["hydra.run.dir=/proc/x"],
        ["--resolve"],
        ["--multirun", "--cfg", "job"],
        ["-m", "hydra.launcher._target_=os.mkdir"],
        ["-m", "hydra.sweeper._target_=os.mkdir"],
        ["-m", "seed=glob(*)"],
        ["\udcff=1"],
    ],
)
def test_what_hydra_tells_by_a_traceback_is_told_in_words(run_train, tmp_path: Path, words: list[str]) -> None:
    outcome = run_train(*words, "run.name.is.no.setting=1") if words[0].startswith("-m") else run_train(*words)
    assert outcome.code == 2, outcome.errors
    assert outcome.errors.startswith("error: ")
    assert "Traceback" not in outcome.errors
    assert len(outcome.errors.splitlines()) <= 6
    assert len(outcome.errors) < 6000
    assert not outcome.folders


@pytest.mark.medium
@pytest.mark.fault("H3", "H4", "H5", "H8")
def test_random_overrides_work_or_are_a_plain_user_error(run_task) -> None:
    try_overrides(run_task, range(25))


@pytest.mark.slow
@pytest.mark.fault("H3", "H4", "H5", "H8")
def test_many_random_overrides_work_or_are_a_plain_user_error(run_task) -> None:
    try_overrides(run_task, range(25, 2025))


# Files


def damaged(content: bytes, number: int) -> bytes:
    """The file with a random fault, mostly where its directory and its header are."""
    draw, found = random.Random(number), bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        ends = [draw.randrange(min(len(found), 4000)), -1 - draw.randrange(min(len(found), 3000))]
        at = draw.choice([*ends, draw.randrange(len(found))]) % len(found)
        kind = draw.randrange(6)
        if kind == 0:
            found[at] = draw.randrange(256)
        elif kind == 1:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del found[at : at + draw.choice([1, 8, 500])]
        elif kind == 3:
            found[at:at] = draw.randbytes(draw.choice([1, 8, 500]))
        elif kind == 4:
            found[at : at + 8] = draw.choice([b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", b"\x00\x00\x00\x40" * 2])
        else:
            other = draw.randrange(len(found))
            found[at : at + 64] = found[other : other + 64]
        if not found:
            return b""
    return bytes(found)


def damaged_within(content: bytes, number: int) -> bytes:
    """The archive whole, with sums that fit, around a pickle with a fault: what a checksum does not tell."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as other:
        for entry in archive.infolist():
            held = archive.read(entry)
            other.writestr(entry.filename, damaged(held, number) if entry.filename.endswith("data.pkl") else held)
    return made.getvalue()


def try_checkpoints(folder: Path, numbers: range) -> None:
    state = {"w": torch.arange(300.0).reshape(20, 15), "n": torch.tensor(3), "h": torch.zeros(5, dtype=torch.bfloat16)}
    whole = {"state_dict": state, "epoch": 1, "loops": {"a": [1, (2, None)]}, "hyper_parameters": {"lr": 0.1, "x": "é"}}
    AtomicCheckpointIO().save_checkpoint(whole, folder / "whole.ckpt")
    content, path = (folder / "whole.ckpt").read_bytes(), folder / "damaged.ckpt"
    for number in numbers:
        path.write_bytes((damaged_within if number % 2 else damaged)(content, number))
        with limited(f"checkpoint {number}"):
            try:
                load_checkpoint(path)
            except UserError as error:
                assert len(str(error).splitlines()) <= 6  # noqa: PT017


def try_weights(folder: Path, numbers: range) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "whole.safetensors")
    content, path = (folder / "whole.safetensors").read_bytes(), folder / "damaged.safetensors"
    for number in numbers:
        path.write_bytes(damaged(content, number))
        with limited(f"weights {number}"):
            try:
                timm_network("test_resnet", 3, weights=str(path))
            except UserError as error:
                assert len(str(error).splitlines()) <= 6  # noqa: PT017


@pytest.mark.fault("S9", "S23")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("attempt", [try_checkpoints, try_weights])
def test_a_file_damaged_anywhere_loads_or_is_a_plain_user_error(tmp_path: Path, attempt: Callable) -> None:
    attempt(tmp_path, range(150))


@pytest.mark.slow
@pytest.mark.fault("S9", "S23")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("attempt", [try_checkpoints, try_weights])
def test_many_damaged_files_load_or_are_plain_user_errors(tmp_path: Path, attempt: Callable) -> None:
    attempt(tmp_path, range(150, 4150))
