"""The notebooks as Colab runs them: an empty folder, the repository cloned by the setup cell.

COLAB_PYTHON is a Python with Colab's packages and without this one; `make colab` makes
it. Without it only the beginning of each notebook is run, in the tests' own Python. The
repository's public address is redirected to a clone of the last commit, by git's own
configuration: the notebooks are not edited.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).resolve().parent.parent
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
COLAB = os.environ.get("COLAB_PYTHON")
PYTHON = os.path.abspath(COLAB) if COLAB else sys.executable
#: Seconds for one cell at the smoke budget.
LONGEST_CELL = 240

ASK = ["git", "rev-parse", "HEAD"]
HAS_HISTORY = shutil.which("git") and not subprocess.run(ASK, cwd=ROOT, capture_output=True, check=False).returncode
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_HISTORY, reason="git finds no commit to clone, as in a downloaded archive"),
]
ONLY_COLAB = pytest.mark.skipif(not COLAB, reason="COLAB_PYTHON is not set: `make colab` makes that environment")

FACTS = """\
import json, os, sys
import dip_utils
print(json.dumps({"package": dip_utils.__file__, "folder": os.getcwd(), "path": sys.path}))
"""


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """What stands at the public address: the last commit."""
    path = tmp_path_factory.mktemp("origin") / "origin.git"
    run("git", "clone", "--quiet", "--bare", str(ROOT), str(path))
    # On a branch, also where continuous integration has checked out a commit without one.
    run("git", "update-ref", "refs/heads/main", run("git", "rev-parse", "HEAD", cwd=path).strip(), cwd=path)
    run("git", "symbolic-ref", "HEAD", "refs/heads/main", cwd=path)
    return path


@pytest.fixture
def kernel(tmp_path, origin, monkeypatch):
    """The name of a kernel that looks like Colab's."""
    stand_in = tmp_path / "stand-in"
    (stand_in / "google" / "colab").mkdir(parents=True)
    (stand_in / "google" / "colab" / "__init__.py").touch()
    # On Colab the package is imported before the first cell.
    (stand_in / "sitecustomize.py").write_text("import google.colab\n")
    address = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    environment = {
        "PYTHONPATH": str(stand_in),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "DIP_BUDGET": "smoke",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
        # pip writes there whatever it is asked to do; it finds nothing to install.
        "PIP_LOG": str(tmp_path / "pip.log"),
        "PIP_NO_INDEX": "1",
    }
    command = [PYTHON, "-m", "ipykernel_launcher", "--IPKernelApp.log_level=ERROR", "-f", "{connection_file}"]
    folder = tmp_path / "jupyter" / "kernels" / "colab"
    folder.mkdir(parents=True)
    spec = {"argv": command, "env": environment, "display_name": "Colab", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return "colab"


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def execute(notebook, kernel, folder):
    """Execute in that folder; return what the last cell printed."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name=kernel, timeout=LONGEST_CELL, resources=resources).execute()
    return "".join(output.text for output in notebook.cells[-1].outputs if output.get("name") == "stdout")


def state(folder):
    """All files with the times of their last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", ["beginning", pytest.param("all", marks=ONLY_COLAB)])
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_colab(name, part, kernel, empty, tmp_path):
    # The committed notebook: Colab opens it from the public address.
    notebook = nbformat.reads(run("git", "show", f"HEAD:notebooks/{name}.ipynb", cwd=ROOT), as_version=4)
    if part == "beginning":
        (imports,) = [number for number, cell in enumerate(notebook.cells) if "import dip_utils as dip" in cell.source]
        del notebook.cells[imports + 1 :]
    notebook.cells.append(new_code_cell(FACTS))
    facts = json.loads(execute(notebook, kernel, empty))
    streams = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    assert [stream.text for stream in streams if stream.name == "stderr"] == []
    clone = empty / "deep-image-prior-lab"
    assert [path.name for path in empty.iterdir()] == [clone.name]
    assert (clone / ".git").is_dir()
    assert Path(facts["folder"]) == clone / "notebooks"
    assert (Path(facts["folder"]) / facts["package"]).resolve() == clone / "dip_utils" / "__init__.py"
    assert not (tmp_path / "pip.log").exists()


def test_the_setup_cell_twice_does_nothing_more(kernel, empty):
    """Twice in one kernel, and again in another one: "Restart and run all"."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAMES[0]}.ipynb", as_version=4)
    (setup,) = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "git clone" in cell.source]

    def facts(times):
        notebook.cells = [new_code_cell(setup) for _ in range(times)] + [new_code_cell(FACTS)]
        return json.loads(execute(notebook, kernel, empty))

    once, first = facts(1), state(empty)
    assert facts(2) == once == facts(1)
    # Importing a package writes its bytecode.
    assert {k: v for k, v in state(empty).items() if "__pycache__" not in k} == {
        k: v for k, v in first.items() if "__pycache__" not in k
    }
