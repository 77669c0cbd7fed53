"""Sweeps that share a study in PostgreSQL, as machines do that have a disk in common."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
from processes import free_port
from sweeping import ledger, script
from test_sweeps import finished

from thaw.search.study import storage_at

QUICK = ("trainer.max_epochs=1", "data.train_size=60", "logger=none", "hydra.launcher.workers=1", "search.dir=sweep")
RANDOM = ("search=random", "search.n_trials=40")


def programs() -> Path | None:
    """Where the newest PostgreSQL's own programs lie."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found and os.getuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
            subprocess.run(["apt-get", *words], capture_output=True, timeout=300)
        return programs() if any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) else None
    return found[-1].parent if found else None


@pytest.fixture
def postgres() -> Iterator[str]:
    """Address of a server of its own."""
    pytest.importorskip("psycopg", reason="pip install .[postgres]")
    place = programs()
    if place is None:
        pytest.skip("no PostgreSQL here, and none can be installed by this user")
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # it refuses to be root's
    folder, port = Path(tempfile.mkdtemp(prefix="thaw-postgres-")), free_port()
    shutil.chown(folder, user)

    def call(*words: str) -> Sequence[str]:
        return [str(place / words[0]), "-D", str(folder / "data"), *words[1:]]

    try:
        options = {"user": user} if os.getuid() == 0 else {}
        made = call("initdb", "--auth=trust", f"--username={user}", "--encoding=UTF8", "--locale=C")
        subprocess.run(made, cwd=folder, check=True, capture_output=True, timeout=120, **options)
        words = call("postgres", "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-p", str(port))
        with open(os.devnull, "w") as nothing:
            server = subprocess.Popen(words, cwd=folder, stdout=nothing, stderr=nothing, **options)
        try:
            ready = [str(place / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            deadline = time.monotonic() + 60
            while subprocess.run(ready, capture_output=True).returncode and time.monotonic() < deadline:
                time.sleep(0.2)
            yield f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for its clients
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.fault("G8")
def test_of_two_sweeps_on_one_server_one_is_killed_and_no_trial_is_lost_or_doubled(
    tmp_path: Path, postgres: str
) -> None:
    path = script(tmp_path, "print('job begins', os.getppid(), flush=True)")
    swept = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
    words = [sys.executable, str(path), "-m", *QUICK, *RANDOM, f"search.storage={postgres}", swept]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with contextlib.ExitStack() as files:
        said = [files.enter_context(open(tmp_path / f"said{number}.txt", "w")) for number in range(2)]
        two = [subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=file, stderr=file) for file in said]
        for process in two:
            files.callback(process.kill)
        deadline = time.monotonic() + 300
        while finished(tmp_path) < 20 and time.monotonic() < deadline:
            time.sleep(0.2)
        two[0].kill()
        two[0].wait()
        half = finished(tmp_path)
        assert two[1].wait(600) == 0, (tmp_path / "said1.txt").read_text()
    assert 20 <= half < 40
    storage = storage_at(postgres)
    study = optuna.load_study(study_name="sweep", storage=storage)
    ended = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    storage.engine.dispose()
    assert len(ended) == 40
    assert len({trial.params["optimizer.lr"] for trial in ended}) == 40
    assert Counter(row["status"] for row in ledger(tmp_path)) == {"finished": 40}
    begun = Counter({log.stem: log.read_text().count("job begins") for log in (tmp_path / "sweep" / "logs").iterdir()})
    assert len(begun) == 40
    # What the killed one was at, and the chosen one for the test split, were begun once more; nothing else was.
    assert sum(begun.values()) in (41, 42)
