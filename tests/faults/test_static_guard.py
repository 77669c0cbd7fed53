"""What no line of the project does, told from its syntax; and what its lock file holds."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT
from omegaconf.basecontainer import BaseContainer

FILES = [*sorted((ROOT / "src" / "thaw").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py")), ROOT / "train.py"]
# Modules that unpickle or run what they are given.
MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "code", "runpy", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
# module.attribute, and methods whose name alone says enough
ATTRIBUTES = {
    "joblib.load", "joblib.dump", "torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system",
    "os.popen", "torch.hub.load", "tempfile.mktemp", "numpy.load", "np.load", "pandas.read_pickle", "wandb.restore",
    "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
METHODS = {"extractall", "extract_archive", "load_from_checkpoint", "register_new_resolver", "read_pickle"}
# A sweep runs the script that it was started by.
ALLOWED = {"checkpoint.py": {"torch.load"}, "processes.py": {"runpy"}}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offences(source: str) -> set[str]:
    """What a source file does that none may do."""
    found: set[str] = set()
    aliases: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {name for name in names if name in ATTRIBUTES}
        else:
            names = []
        found |= {name for name in names if name.partition(".")[0] in MODULES}
        if isinstance(node, ast.Attribute):
            first, _, rest = dotted(node).partition(".")
            name = f"{aliases.get(first, first)}.{rest}"
            found |= {name} & ATTRIBUTES | {node.attr} & METHODS
        if isinstance(node, ast.Call):
            found |= {dotted(node.func)} & CALLS
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            for name in ("shell", "trust_remote_code", "allow_pickle"):
                value = given.get(name)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    found.add(f"{name}=True")
            if dotted(node.func) == "torch.load":
                value = given.get("weights_only")
                if not (isinstance(value, ast.Constant) and value.value is True):
                    found.add("torch.load without weights_only=True")
    return found


@pytest.mark.fault("S24")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_runs_what_it_is_given(path: Path) -> None:
    assert offences(path.read_text()) - ALLOWED.get(path.name, set()) == set()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import cloudpickle as c", "eval('1')", "exec(x)",
        "import joblib as j\nj.load('x')", "from joblib import load", "import torch as t\nt.load('x')",
        "torch.load('x', weights_only=False)", "torch.load(x)", "torch.load(x, weights_only=flag)", "yaml.load(x)",
        "tar.extractall()", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)", "os.system('x')",
        "f(trust_remote_code=True)", "f(trust_remote_code=x)", "np.load(x)", "f(allow_pickle=True)",
        "L.LightningModule.load_from_checkpoint(x)", "OmegaConf.register_new_resolver('eval', eval)",
    ],
)  # fmt: skip
def test_the_guard_sees_each_of_them(line: str) -> None:
    assert offences(line)


@pytest.mark.fault("S18")
def test_no_resolver_is_registered_but_omegaconfs_and_hydras_own() -> None:
    import thaw.run.restore  # noqa: F401  (and with it all that builds)

    # Hydra's begin with its name, but for that of its launcher for Ray; none of these evaluates anything.
    known = {name for name in BaseContainer._resolvers if name.startswith(("oc.", "hydra", "ray_pkg"))}
    assert BaseContainer._resolvers.keys() - known <= {"now", "python_version"}


# Where packages come from


def pins() -> dict[str, str]:
    """Package → its whole entry in the lock file."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    return {re.split(r"[=\s@]", entry, maxsplit=1)[0].lower(): entry for entry in entries if entry[0] not in "#-"}


@pytest.mark.fault("S17")
def test_every_package_is_pinned_to_one_version_and_its_hashes() -> None:
    assert len(pins()) > 60
    for name, entry in pins().items():
        assert re.match(r"[\w.\[\]-]+==[\w.+!]+ ", entry), name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name


@pytest.mark.fault("S17")
@pytest.mark.parametrize("where", ["requirements.lock", "installed"])
def test_no_version_with_a_known_hole(where: str) -> None:
    from importlib.metadata import version

    floors = {"lightning": "2.6.6", "torch": "2.10", "transformers": "5.3", "hydra-core": "1.4.0rc3", "pillow": "12.2"}
    from packaging.version import Version

    for name, floor in floors.items():
        locked = re.match(r"[\w.-]+==([\w.]+)", pins()[name])[1]
        found = Version(locked if where == "requirements.lock" else version(name).partition("+")[0])
        assert found >= Version(floor), name
        assert name != "lightning" or str(found) not in ("2.6.2", "2.6.3")


@pytest.mark.fault("S17")
def test_the_make_file_installs_by_hash_alone() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "--require-hashes -r requirements.lock" in text
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert "lightning>=2.6.6,!=2.6.2,!=2.6.3" in (ROOT / "pyproject.toml").read_text()
