"""With which code a run is computed: versions, commit, and what is in no commit."""

import functools
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "timm", "transformers", "peft", "hydra-core", "torchmetrics", "torchvision")


def versions() -> dict[str, str]:
    """Of Python and of what computes a run."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def other_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a resumed run is computed with that it was not computed with before, in words."""
    pairs = {name: (before.get("versions", {}).get(name), here) for name, here in now["versions"].items()}
    pairs["Thaw"] = tuple((record.get("git", {}).get("commit") or "")[:7] for record in (before, now))
    found = [f"{name} was {old}, is now {here}" for name, (old, here) in pairs.items() if old and old != here]
    changes = [record.get("git", {}).get("changes") for record in (before, now)]
    return found + ["Thaw has other changes that are in no commit"] * (changes[0] != changes[1])


@functools.cache  # of several runs in this process
def git() -> dict[str, Any]:
    """The commit of this code, whether there are changes beside it, and a hash of them."""

    def told(*arguments: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return {
            "commit": told("rev-parse", "--verify", "--quiet", "HEAD") or None,
            "dirty": bool(told("status", "--porcelain")),
            "changes": hashlib.sha256(changes.encode()).hexdigest()[:12] if (changes := told("diff", "HEAD")) else None,
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None, "changes": None}
