"""The notebooks run from top to bottom, draw what they promise, and stand in git without their outputs."""

import tempfile
from collections.abc import Iterator

import nbformat
import pytest
from conftest import ROOT
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbstripout import strip_output

FOLDER = ROOT / "notebooks"
FIGURES = {"01_layer_groups": 2, "02_learning_rates": 6, "03_compare_runs": 3}
SECONDS = 300  # for one cell, beside other tests


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncKernelManager]:
    """A kernel of this Python, whatever kernels the user has installed; it opens no port and leaves nothing at home."""
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:  # a socket's path has to be short
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            monkeypatch.setenv(name, folder)
        yield AsyncKernelManager(
            transport="ipc",
            connection_file=f"{folder}/kernel.json",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[], allowed_kernelspecs={"python3"}),
        )


def test_every_notebook_is_tested() -> None:
    assert sorted(FIGURES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.medium
@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_runs_and_draws_its_figures(name: str, kernel: AsyncKernelManager) -> None:
    notebook = read(name)
    client = NotebookClient(notebook, km=kernel, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(cleanup_kc=True)  # the manager is ours, and so it would leave its sockets open
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
    complaints = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not complaints, complaints


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_in_git_holds_no_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id
    stripped = strip_output(read(name), keep_output=False, keep_count=False, keep_id=True)
    assert stripped == notebook  # else the commit hook would change it


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_imports_thaw_and_never_hydra(name: str) -> None:
    code = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    assert "from thaw" in code
    assert "hydra" not in code
    assert "omegaconf" not in code
    assert "thaw.config" not in code


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_one_style(name: str) -> None:
    assert any('plt.style.use("thaw.mplstyle")' in cell.source for cell in read(name).cells)
