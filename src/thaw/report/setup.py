"""With what a run was made, and how it is made again: configuration, data, code, commands."""

import shlex
from collections.abc import Mapping
from typing import Any

from thaw.report.evidence import Evidence
from thaw.report.section import Section, Table
from thaw.run.run import resume_command


def configuration(evidence: Evidence) -> Section:
    """Only what differs from the defaults, with the default beside it."""
    options = [(g, shown(now), shown(usual)) for g, (now, usual) in evidence.choices.items() if now != usual]
    values = [(key, shown(now), shown(usual)) for key, (now, usual) in evidence.departures.items()]
    tables = []
    if options:
        tables.append(Table(("group", "chosen", "default"), options, "Chosen options"))
    if values:
        beside = "of the chosen options" if options else ""
        tables.append(
            Table(("setting", "value", "default"), values, f"Settings that differ from the defaults {beside}".strip())
        )
    text = [] if tables else ["The default configuration, as it is."]
    settled = evidence.record.get("settled", {})
    if settled:
        text.append(
            f"Left open by the configuration and settled by the run: batches of {settled['batch_size']}, "
            f"{settled['max_epochs']} epochs, precision {settled['precision']}. All settings are in config.yaml."
        )
    return Section("Configuration", text, tables)


def shown(value: Any) -> str:
    """As in a YAML."""
    known = {None: "–", True: "true", False: "false", "???": "to be given"}
    return known[value] if isinstance(value, (bool, str, type(None))) and value in known else str(value)


def data(evidence: Evidence) -> Section:
    """Sizes, classes, the fingerprint, and what was found wrong."""
    held = evidence.record["data"]
    quality: Mapping[str, Any] = held.get("quality", {})
    counts = quality.get("class_counts", {})
    head = ("split", "samples", "classes", "smallest class", "largest class")
    rows = []
    for split, size in held["sizes"].items():
        own = [number for number in counts.get(split, {}).values() if number]
        rows.append((split, f"{size:,}", *((str(len(own)), f"{min(own):,}", f"{max(own):,}") if own else ("–",) * 3)))
    if not any(counts.values()):
        head, rows = head[:2], [row[:2] for row in rows]
    text = [
        f"Fingerprint {held['fingerprint']}: a hash of the class names, and of which sample stands where under which "
        "label."
    ]
    for leak in quality.get("leaks", []):
        text.append(f"{leak['samples']:,} samples of {leak['later']} also stand in {leak['earlier']}.")
    for what in ("duplicates", "truncated"):
        if found := [f"{number:,} in {split}" for split, number in quality.get(what, {}).items() if number]:
            text.append(f"{what.capitalize()}: {', '.join(found)}.")
    if left_out := held.get("skipped"):
        text.append(f"Left out, because they cannot be used: {len(left_out):,} samples.")
    return Section("Data", text, [Table(head, rows)])


def code(evidence: Evidence) -> Section:
    """Commit, seed and versions."""
    record = evidence.record
    git = record.get("git", {})
    commit = git.get("commit")
    told = f"Commit {commit}" if commit else "No commit is known"
    told += ", with changes that are in no commit" if git.get("dirty") else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    began = record.get("started", "–").replace("T", " ").replace("+00:00", " UTC")
    return Section("Code", [f"{told}. Seed {record['seed']}. Began {began}.", f"Versions: {versions}."])


def commands(evidence: Evidence) -> Section:
    """What to paste to go on from here."""
    folder, overrides = str(evidence.folder), evidence.record.get("overrides", [])
    commit = evidence.record.get("git", {}).get("commit")
    again = f"git checkout {commit[:12]} && " * bool(commit) + shlex.join(["python", "train.py", *overrides])

    def script(name: str, *words: str) -> str:
        return shlex.join(["python", f"scripts/{name}.py", folder, *words])

    resume = resume_command(evidence.folder, evidence.record)
    return Section(
        "Commands",
        code=[
            ("Reproduce the run", again),
            ("Resume it where it is stopped; of a finished run, this says its figures", resume),
            ("Evaluate the best epoch, on this data or with other data settings", script("evaluate")),
            ("Predict: a file, a folder, a CSV or stdin", script("predict", "INPUT", "--out", "preds.csv")),
            ("Export: also onnx, hf, torch_export", script("export", "--format", "safetensors")),
        ],
    )
