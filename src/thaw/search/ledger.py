"""The ledger: one row a run, read from the runs' own records, with the command that repeats it."""

import csv
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thaw.errors import UserError
from thaw.redaction import redacted
from thaw.run.run import read_record
from thaw.run.unfinished import replacing


@dataclass(frozen=True)
class Row:
    """A run.

    Args:
        settings: its overrides, without the seed's and those that all runs of the ledger share.
        status: `finished`, `failed`, `interrupted`, `running` or `pruned`.
        objective: the best epoch's monitored metric.
        metrics: all of the best epoch.
        history: the monitored metric, epoch by epoch.
        seconds: of training and measuring.
        overrides: all of its overrides.
    """

    folder: Path
    settings: Mapping[str, str]
    seed: str
    status: str
    reason: str
    monitor: str
    mode: str
    objective: float | None
    metrics: Mapping[str, float]
    history: Sequence[float | None]
    epochs: int
    best_epoch: int | None
    seconds: float
    overrides: Sequence[str]

    @classmethod
    def absent(cls, folder: Path, overrides: Sequence[str], reason: str) -> "Row":
        """A run that ended before it had a directory."""
        overrides = redacted(list(overrides))
        settings = dict(text.partition("=")[::2] for text in overrides)
        seed = settings.pop("seed", "0")
        return cls(folder, settings, seed, "failed", reason, "", "max", None, {}, [], 0, None, 0.0, overrides)

    @property
    def read_test(self) -> bool:
        return any(name.startswith("test/") for name in self.metrics)

    @property
    def command(self) -> str:
        """What repeats the run from nothing."""
        return shlex.join(["python", "train.py", *self.overrides])


def read_rows(folders: Iterable[Path], status: Mapping[str, tuple[str, str]] | None = None) -> list[Row]:
    """The runs at, or directly below, the folders.

    Args:
        status: (status, reason) of runs by the name of their folder, where somebody knows better than their records.

    Raises:
        UserError: a folder holds no run.
    """
    runs: list[Path] = []
    for folder in folders:
        here = [folder] if (folder / "run.json").is_file() else sorted(p.parent for p in folder.glob("*/run.json"))
        if not here:
            raise UserError(
                f"A run, or a folder of runs, must lie at '{folder}'; no run.json is there. Write e.g. runs."
            )
        runs += here
    records = [(folder, record) for folder in dict.fromkeys(runs) if (record := read_record(folder))]
    split = [_settings(record) for _, record in records]
    shared = set.intersection(*({*settings.items()} for settings in split)) if len(split) > 1 else set()
    rows = []
    for (folder, record), settings in zip(records, split, strict=True):
        own = {key: value for key, value in settings.items() if (key, value) not in shared and key != "seed"}
        known = (status or {}).get(folder.name)
        metrics = {key: value for key, value in record.get("metrics", {}).items() if isinstance(value, (int, float))}
        rows.append(
            Row(
                folder=folder,
                settings=own,
                seed=str(record.get("seed", 0)),
                status=known[0] if known else record.get("status", "running"),
                reason=(known and known[1]) or record.get("reason") or "",
                monitor=record.get("monitor", ""),
                mode=record.get("mode", "max"),
                objective=metrics.get(record.get("monitor")),
                metrics=metrics,
                history=record.get("history", []),
                epochs=record.get("epochs", 0),
                best_epoch=record.get("best_epoch"),
                seconds=record.get("seconds", 0.0),
                overrides=[text for text in record.get("overrides", []) if not text.startswith(("test=", "report"))],
            )
        )
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows with all of their settings and metrics, a column each."""
    settings = list(dict.fromkeys(key for row in rows for key in row.settings))
    metrics = list(dict.fromkeys(key for row in rows for key in row.metrics))
    total = sum(row.seconds for row in rows) or 1.0
    columns = [
        "status",
        *settings,
        "seed",
        "monitor",
        "objective",
        *metrics,
        "epochs",
        "best_epoch",
        "seconds",
        "share",
    ]
    with replacing(path) as file:
        writer = csv.DictWriter(file, [*columns, "reason", "folder", "command"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            told = {
                name: getattr(row, name) for name in ("status", "seed", "monitor", "objective", "epochs", "seconds")
            }
            told |= {"best_epoch": row.best_epoch, "share": round(row.seconds / total, 4), "reason": row.reason}
            told |= {"folder": row.folder.name, "command": row.command}
            writer.writerow(told | dict(row.settings) | dict(row.metrics))


def _settings(record: Mapping) -> dict[str, str]:
    pairs = (text.partition("=") for text in record.get("overrides", []))
    return {key: value for key, _, value in pairs if key not in ("test", "report", "report.depth", "run.dir", "resume")}
