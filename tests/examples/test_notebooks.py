"""Tests that the notebooks of `examples/` run to the end, and are stored without outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run in, with the repository on the path and no settings of the developer's.

    Its path is short, as Ray's sockets lie below it, whose paths may have 107 bytes.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with TemporaryDirectory(prefix="nb-", ignore_cleanup_errors=True) as folder:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            monkeypatch.setenv(name, str(Path(folder, name.lower())))
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def text_of(cell: NotebookNode) -> str:
    """Returns what a cell printed and the text of its result."""
    return "".join(
        output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"] + "\n"
        for output in cell.outputs
    )


def run(name: str, folder: Path) -> dict[str, NotebookNode]:
    """Executes a notebook, and returns its cells by their last lines."""
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources=where).execute()
    cells = list(code_cells(notebook))
    for cell in cells:
        told = [output["text"] for output in cell.outputs if output.get("name") == "stderr"]
        assert not told, f"{cell.source}\n{''.join(told)}"
    return {cell.source.splitlines()[-1]: cell for cell in cells}


def images_of(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_both_notebooks_are_here() -> None:
    assert [path.name for path in NOTEBOOKS] == ["catalogue_on_s3.ipynb", "first_matrix.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert (cell.outputs, cell.execution_count) == ([], None)
        assert not cell.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_listed_and_its_links_exist(path: Path) -> None:
    for page in ("examples/README.md", "docs/guide.md"):
        assert path.name in (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


@pytest.mark.soak
def test_the_notebook_of_a_first_matrix_runs(folder: Path) -> None:
    cells = run("first_matrix.ipynb", folder)
    assert "to itself: 0.0 bins" in text_of(cells["distance"])
    assert "<Matrix of 3 datasets in 18 layers" in text_of(cells["matrix"])
    assert images_of(cells["matrix.plot();"]) == images_of(cells["distance.plot();"]) == 1
    assert images_of(cells["    show([str(image) for image in images[:6]], name)"]) == 2
    page = cells['report(catalogue, str(work / "report.html"))']
    assert "<Report of 3 datasets" in text_of(page)
    assert "<iframe" in page.outputs[0]["data"]["text/html"]
    (written,) = folder.glob("first-matrix-*/report.html")
    assert written.stat().st_size > 50_000


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_notebook_of_a_catalogue_on_s3_runs(folder: Path) -> None:
    cells = run("catalogue_on_s3.ipynb", folder)
    first, second = map(int, re.findall(r"(\d+) shards", text_of(cells["second"])))
    assert 0 < second < first
    assert "<Result photos: 28 images, committed>" in text_of(cells["second"])
    assert "<Result photos: 28 images, unchanged>" in text_of(cells["third"])
    assert "all hold" in text_of(cells["checks"])
    assert len(re.findall(r"^\d ", text_of(cells["furthest.df()"]), re.M)) == 5
    assert "2 datasets built, 0 changed; GateError: " in text_of(cells["done"])
    (refusal,) = (cell for cell in cells.values() if "require_ok" in cell.source)
    assert "GateError: " in text_of(refusal)
    assert "bn1" in text_of(refusal)
