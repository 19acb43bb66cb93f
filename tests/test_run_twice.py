"""Run All, and Run All again in the same kernel: as a student does."""

import copy
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_all_cells_run_twice_in_one_kernel(path, monkeypatch):
    monkeypatch.setitem(os.environ, "DIP_BUDGET", "smoke")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = code + copy.deepcopy(code)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    verdicts = [
        output.text for cell in notebook.cells for output in cell.outputs if "Verdict" in output.get("text", "")
    ]
    assert verdicts and len(verdicts) % 2 == 0
    assert verdicts[: len(verdicts) // 2] == verdicts[len(verdicts) // 2 :]
