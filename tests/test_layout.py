"""The shape of the project: who may import whom, how long a file is, and that the README is true."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

TRANSFORMERS = (
    "transformers",
    "transformers_config",
    "transformers_weights",
    "tokenizer",
    "speech_features",
    "image_processor",
    "transformers_export",
)
SOURCES = sorted((ROOT / "src" / "thaw").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imported(path))


def test_hydra_is_known_where_it_comes_in() -> None:
    assert {p.name for p in SOURCES if uses(p, "hydra") or uses(p, "omegaconf")} == {
        "command.py",
        "config.py",
        "departures.py",
        "diagnosis.py",
        "launchers.py",
        "plugins.py",
    }


def test_timm_is_imported_where_its_models_and_its_optimizers_are_made() -> None:
    assert {p.name for p in SOURCES if uses(p, "timm")} == {"timm.py", "timm_export.py", "glyphs.py", "optimizer.py"}


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("transformers", {f"model/{name}.py" for name in TRANSFORMERS} | {"transformers_schedule.py"}),
        ("tokenizers", {"model/tokenizer.py"}),
        ("datasets", {"data/table.py", "data/text.py", "data/tokens.py", "data/docstrings.py", "data/stream.py"}),
        ("soundfile", {"data/sound_files.py"}),
        (
            "optuna",
            {f"search/{name}.py" for name in ("space", "study", "algorithms", "sweep", "run", "report", "ray_tune")},
        ),
        ("ray", {"search/ray_tune.py"}),
        (
            "torchmetrics",
            {f"task/{name}.py" for name in ("task", "metrics", "present", "classification")}
            | {f"report/{name}.py" for name in ("answers", "calibration")},
        ),
    ],
)
def test_each_library_is_imported_where_its_work_is_done(package: str, files: set[str]) -> None:
    assert {p.relative_to(ROOT / "src" / "thaw").as_posix() for p in SOURCES if uses(p, package)} == files


@pytest.mark.parametrize("part", ["model", "data", "task"])
def test_model_data_and_task_meet_only_in_the_module(part: str) -> None:
    others = {"model", "data", "task"} - {part}
    own = [path for path in SOURCES if path.is_relative_to(ROOT / "src" / "thaw" / part)]
    assert len(own) > 4
    for path in own:
        assert not [other for other in others if uses(path, f"thaw.{other}")], path


def test_what_is_imported_before_hydra_composes_imports_no_torch() -> None:
    for name in ("config", "schema", "errors", "run/run"):
        path = ROOT / "src" / "thaw" / f"{name}.py"
        assert not [p for p in ("torch", "lightning", "timm", "rich", "sklearn") if uses(path, p)], name


def test_no_dumping_grounds() -> None:
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not names & {"utils", "helpers", "common", "base", "core", "misc"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_stay_one_idea_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.fault("S24")
def test_one_loader_and_nothing_that_runs_a_files_code() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"\b(pickle|dill|joblib)\b|\beval\(|\bexec\(|yaml\.load|extractall|shell=True", text), path
        assert ("torch.load(" in text) == (path.name == "checkpoint.py"), path


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    table = re.findall(r"\| `(python [^`]+|make [^`]+)`", (ROOT / "README.md").read_text())
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in [*lines, *table] if line and not line.startswith("#")]


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_exists(command: str) -> None:
    from test_config import composed

    from thaw import config

    words = [word for word in shlex.split(command) if "=" not in word or word.startswith(("-", "+"))]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ["python", "train.py"]:
        overrides = [word for word in shlex.split(command)[2:] if "=" in word]
        for number in range(max([text.count(",") for text in overrides if "[" not in text], default=0) + 1):
            single = []
            for text in overrides:
                key, _, value = text.partition("=")
                values = [value] if value.startswith(("[", "{")) else value.split(",")
                single.append(f"{key}={values[min(number, len(values) - 1)]}")
            problems = config.validate(composed(*(text for text in single if "…" not in text and "/path" not in text)))
            assert all("must be given" in problem or "data.root" in problem for problem in problems), problems
    elif words[:1] == ["python"] and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()
