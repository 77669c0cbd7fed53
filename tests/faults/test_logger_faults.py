"""A logger that fails, hangs or loses its server costs a run nothing but a line on the screen."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from lightning.pytorch.loggers import CSVLogger

from thaw.console import console
from thaw.guarded_logger import GuardedLogger, guarded
from thaw.logger import FINISH_TIMEOUT, closing_wandb, csv_logger, started_wandb
from thaw.run.resume import Found
from thaw.run.run import Run

QUICK = ("data.train_size=64", "trainer=cpu", "trainer.max_epochs=2", "data.num_workers=0", "freezing=none")

# A whole run, logged to a server of its own, which dies at step 5.
RUN = """
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REAL = {
    "serverInfo": {"serverInfo": {"cliVersionInfo": {}, "features": []}},
    "upsertBucket": {"upsertBucket": {"inserted": True, "bucket": {
        "id": "id", "name": "id", "displayName": "name", "config": "{}", "historyLineCount": 0,
        "project": {"id": "p", "name": "thaw", "entity": {"id": "e", "name": "me"}}}}},
    "createRunFiles": {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": []}},
    "bucket(": {"model": {"id": "p", "name": "thaw", "entity": {"id": "e", "name": "me"}, "bucket": None}},
}
heard = []

class Server(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        heard.append(self.path)
        answer = next(({"data": found} for word, found in REAL.items() if word in body), {"data": {}})
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
    do_HEAD = do_GET = do_PUT = do_POST

server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.server_address[1]}"

import wandb
import train
from thaw import command, config, logger
from thaw.run import record

measure = record.Recorder.on_train_batch_end
def dying(self, trainer, *rest):
    measure(self, trainer, *rest)
    if trainer.global_step == 5 and trainer.is_global_zero:
        time.sleep(1)  # the service has sent something by now
        server.shutdown()
        server.server_close()
        print("dead after", len(heard), "requests", wandb.run.settings.mode)
record.Recorder.on_train_batch_end = dying
close = logger._close
def timed(*arguments):
    began = time.monotonic()
    close(*arguments)
    print("finish", time.monotonic() - began)
logger._close = timed
command.main(train.train)
"""


@pytest.mark.slow
@pytest.mark.fault("F3")
def test_a_server_that_dies_in_the_midst_of_a_run_costs_a_bounded_time_at_its_end(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    result = subprocess.run(
        [sys.executable, "-c", RUN, *QUICK, "data.batch_size=8", "trainer.log_every_n_steps=1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    assert int(words[words.index("after") + 1]) >= 3  # it was online
    assert "online" in words
    assert float(words[words.index("finish") + 1]) < FINISH_TIMEOUT + 5 <= 20  # it waits for the whole of it
    [folder] = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    with open(folder / "metrics.csv", newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["val/loss"]]) == 2
    assert list(folder.glob("wandb/run-*/*.wandb"))  # what `wandb sync` takes


class Failing(CSVLogger):
    """Writes nothing, and raises wherever Lightning calls it."""

    def __init__(self, folder: Path, error: Exception) -> None:
        super().__init__(folder)
        self.error, self.calls = error, 0

    def fail(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        raise self.error

    log_metrics = log_hyperparams = log_graph = after_save_checkpoint = save = finalize = fail


@pytest.mark.medium
@pytest.mark.fault("F5")
def test_a_logger_that_raises_is_said_once_and_the_run_goes_on(run_train, monkeypatch, tmp_path: Path) -> None:
    failing = Failing(tmp_path / "none", RuntimeError("the [red]server[/] said 500"))
    monkeypatch.setattr("thaw.config.build_each", lambda nodes, **_: [failing] if "logger" in nodes else [])
    outcome = run_train(*QUICK)
    assert outcome.code == 0, outcome.errors
    assert outcome.record["status"] == "finished"
    assert failing.calls > 10
    said = [line for line in outcome.printed.splitlines() if "not all is logged" in line]
    assert len(said) == 1
    assert said[0].startswith("Failing: not all is logged (RuntimeError: the [red]server[/] said 500)")
    with open(outcome.folders[-1] / "metrics.csv", newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["val/loss"]]) == 2


def test_the_death_of_a_worker_is_not_taken_for_a_fault_of_the_logger_it_interrupts(tmp_path: Path) -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="worker"):
        guarded([Failing(tmp_path, error)])[0].log_metrics({}, 1)


@pytest.mark.fault("F5")
def test_metrics_csv_that_cannot_be_written_is_said_too_and_goes_on_where_it_can(run_train, monkeypatch) -> None:
    from lightning.fabric.loggers import csv_logs

    write, calls = csv_logs._ExperimentWriter.save, []

    def full_once(self: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(self)

    monkeypatch.setattr(csv_logs._ExperimentWriter, "save", full_once)
    outcome = run_train(*QUICK, "logger=none")
    assert outcome.code == 0, outcome.errors
    assert outcome.printed.count("metrics.csv: not all is logged (OSError: [Errno 28] No space left on device)") == 1
    with open(outcome.folders[-1] / "metrics.csv", newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["val/loss"]]) == 2  # kept until there was room


def test_ctrl_c_within_a_logger_still_ends_the_run(tmp_path: Path) -> None:
    [logger] = guarded([Failing(tmp_path, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({}, 1)


def test_a_guarded_logger_hands_everything_on(tmp_path: Path) -> None:
    calls: list[Any] = []
    inner = SimpleNamespace(
        name="n", version="v", save_dir="s", experiment=3,
        **{m: lambda *a, m=m: calls.append((m, *a)) for m in
           ("log_metrics", "log_hyperparams", "log_graph", "after_save_checkpoint", "save", "finalize")},
    )  # fmt: skip
    logger = GuardedLogger(inner)
    assert (logger.name, logger.version, logger.save_dir, logger.experiment) == ("n", "v", "s", 3)
    logger.log_metrics({"a": 1.0}, 2)
    logger.log_hyperparams({"b": 1})
    logger.log_graph("net")
    logger.after_save_checkpoint("callback")
    logger.save()
    logger.finalize("success")
    assert [call[0] for call in calls] == [
        "log_metrics", "log_hyperparams", "log_graph", "after_save_checkpoint", "save", "finalize"
    ]  # fmt: skip
    assert calls[0][1:] == ({"a": 1.0}, 2)


@pytest.mark.fault("F3")
@pytest.mark.parametrize("where", ["summary", "finish"])
def test_a_service_that_died_is_said_and_fails_no_run(tmp_path: Path, monkeypatch, where: str) -> None:
    def dead(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    summary = SimpleNamespace(update=dead if where == "summary" else lambda _: None)
    fake = SimpleNamespace(summary=summary, finish=dead, dir=str(tmp_path / "wandb" / "run-1" / "files"))
    monkeypatch.setattr("wandb.run", fake)
    monkeypatch.chdir(tmp_path)
    with console.capture() as captured, closing_wandb(Run(tmp_path, {"metrics": {"test/loss": 1.0}})):
        pass
    assert "not all is logged (ConnectionResetError: Connection lost). Later: wandb sync wandb/run-1" in captured.get()


@pytest.mark.parametrize("fails", [("online",), ("online", "offline")])
def test_whatever_starting_wandb_raises_the_run_goes_on(tmp_path: Path, monkeypatch, fails: tuple[str, ...]) -> None:
    modes: list[str] = []

    def init(mode: str, **_: Any) -> Any:
        modes.append(mode)
        if mode in fails:
            raise AssertionError("the service did not start")
        return SimpleNamespace(dir=str(tmp_path / "wandb" / "run-1" / "files"), _attach_id=None)

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setattr("thaw.logger._why_offline", lambda: None)
    monkeypatch.setattr("thaw.logger.WandbLogger", lambda experiment, log_model: experiment)
    monkeypatch.setenv("WANDB_MODE", "online")
    with console.capture() as captured:
        assert started_wandb(str(tmp_path), "name") is not None
    assert modes == ["online", "offline", "disabled"][: len(fails) + 1]
    assert ("W&B: off (the service" if len(fails) == 2 else "W&B: offline (the service") in captured.get()


@pytest.mark.parametrize("torn", [b"0.5,3,0.1,9,0.7\r\n", b"0.001,3,0.", b"\xff\x00,x,y\r\n", b"1\r\n", b",,\r\n"])
def test_lines_of_metrics_that_a_kill_or_a_full_disk_has_torn_are_left_out_on_resume(
    tmp_path: Path, torn: bytes
) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"lr,step,val/loss\r\n,1,0.1\r\n,2,0.2\r\n" + torn)
    run = Run(tmp_path)
    run.found = Found(step=3)
    logger = csv_logger(run)
    logger.log_metrics({"val/loss": 0.5}, 4)
    logger.save()
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [(row["step"], row["val/loss"]) for row in csv.DictReader(file)]
    assert rows == [("1", "0.1"), ("2", "0.2"), ("4", "0.5")]
