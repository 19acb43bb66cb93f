"""`make run`: what becomes of a notebook that is interrupted, or whose claim fails."""

import base64
import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from notebooks import run_all

SCRIPT = """
import sys
from pathlib import Path
import nbformat
from notebooks import run_all
notebook, problems = run_all.execute(Path(sys.argv[1]))
nbformat.write(notebook, sys.argv[1])
print("problems:", problems)
"""


@pytest.fixture
def write(tmp_path):
    def write(*sources):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        path = tmp_path / "some.ipynb"
        nbformat.write(notebook, path)
        return path

    return write


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Windows are others")
def test_interrupt_keeps_what_was_done(write, tmp_path):
    begun = tmp_path / "begun"
    path = write(
        "print('one')",
        f"import pathlib, time\nprint('two', flush=True)\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(600)",
        "print('three')",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], cwd=Path(run_all.HERE).parent, stdout=subprocess.PIPE, text=True
    )
    while not begun.exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "problems: ['Interrupted" in told
    said = ["".join(output.text for output in cell.outputs) for cell in nbformat.read(path, as_version=4).cells]
    assert said == ["one\n", "two\n", ""]


@pytest.mark.slow
def test_failed_claim_is_told_and_the_rest_is_run(write):
    notebook, problems = run_all.execute(
        write("import dip_utils\ndip_utils.verdict('One is two.', 1 == 2)", "print('after')", "1 / 0", "print('never')")
    )
    assert len(problems) == 2
    assert problems[0] == "NOT shown by this run: One is two." and "division by zero" in problems[1]
    assert [len(cell.outputs) for cell in notebook.cells] == [1, 1, 1, 0]


@pytest.mark.slow
def test_a_cell_without_a_live_plot_is_said_to_be_at_work(write, monkeypatch, capsys):
    monkeypatch.setattr(run_all, "PULSE", 0.3)
    run_all.execute(write("import time\ntime.sleep(1.5)", "'quick'"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert len([line for line in lines if line.startswith("cell 1 of 2: at work for ")]) >= 2
    assert not [line for line in lines if line.startswith("cell 2 of 2: at work")]


PLOT = """
import dip_utils as dip
network, z = dip.SkipNetwork(2, (4, 4), (0, 0), seed=0), dip.random_input(2, 32, 32, seed=0)
target = dip.uniform_noise(3, 32, 32, seed=0)
dip.fit(network, z, target, steps=3000, watch=dip.LivePlot(), device="cpu", precision="float32")
"""


@pytest.mark.slow
def test_the_progress_of_a_live_plot_is_told(write, monkeypatch, capsys):
    monkeypatch.setattr(run_all, "PULSE", 1)
    run_all.execute(write(PLOT))
    assert re.search(r"cell 1 of 1: output: +\d+%.* \d+/3000 ", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(run_all.HERE.glob("*.ipynb")), ids=lambda path: path.stem)
def test_pages_are_complete_offline(path, tmp_path, monkeypatch):
    """No script, style sheet or font comes from elsewhere, and no formula waits for a renderer."""
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    notebook = nbformat.read(path, as_version=4)
    _, page = run_all.write(notebook, tmp_path / path.name)
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    assert not [tag for tag in soup.find_all(["script", "link", "iframe"]) if "://" in str(tag)]
    assert all(picture["src"].startswith("data:") for picture in soup.find_all("img"))
    folded = [cell for cell in notebook.cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert len(soup.select("details > summary ~ .jp-Cell-inputWrapper")) == len(folded) > 0
    assert "@import" not in page.read_text("utf-8")
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not [text for text in prose if re.search(r"\$[^$]+\$|\\\(|\\\[", text)]
    sliders = [cell for cell in notebook.cells if cell.cell_type == "code" and "dip.browse(" in cell.source]
    assert sum("data-browse" in script.text for script in soup.find_all("script")) >= len(sliders) > 0


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def test_a_page_of_a_students_notebook(tmp_path, monkeypatch):
    """With what ours do not have: raw cells, empty ones, rich results, pictures that are not there."""
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    picture = png(np.zeros((4, 4, 3), dtype=np.uint8))
    (tmp_path / "my photo.png").write_bytes(base64.b64decode(picture))
    hidden = {"jupyter": {"source_hidden": True}}
    results = [
        nbformat.v4.new_output("display_data", data={"image/png": picture, "text/html": "<b>rich</b>"}),
        nbformat.v4.new_output("display_data", data={"image/png": picture}, metadata={"image/png": {"alt": "black"}}),
    ]
    text = "![there](my%20photo.png) ![gone](gone.png) ![far](https://example.org/a.png) <img alt='bare'>"
    cells = [
        nbformat.v4.new_raw_cell("raw", metadata=hidden),
        nbformat.v4.new_code_cell("", metadata=hidden),
        nbformat.v4.new_code_cell("# @title Mine\n1 + 1", metadata=hidden, outputs=results),
        nbformat.v4.new_markdown_cell(text),
    ]
    _, page = run_all.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "mine.ipynb")
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    assert [title.text for title in soup.select("summary")] == ["Mine"] and soup.find("b", string="rich")
    assert [image["alt"] for image in soup.select(".jp-RenderedImage img")][-1] == "black"
    shown = {image["alt"]: image.get("src", "") for image in soup.select(".jp-MarkdownOutput img")}
    assert shown["there"] == f"data:image/png;base64,{picture}" and set(shown) == {"there", "gone", "bare"}


def packed(pixels):
    """The kind of file that a picture is stored as, its bytes, and its pixels."""
    data = {"image/png": png(pixels)}
    output = nbformat.v4.new_output("display_data", data=data, metadata={"image/png": {"alt": "noise"}})
    run_all.pack(output)
    ((kind, text),) = output.data.items()
    assert output.metadata == {kind: {"alt": "noise"}}
    stored = base64.b64decode(text)
    return kind, len(stored), np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")).astype(float)


def test_pictures_are_packed():
    flat = np.zeros((50, 80, 3), dtype=np.uint8)
    kind, _, stored = packed(flat)
    assert kind == "image/png" and np.array_equal(stored, flat)
    # What is transparent shows the page.
    assert (packed(np.zeros((50, 80, 4), dtype=np.uint8))[2] == 255).all()
    # Nothing but noise, from border to border: the worst for a JPEG.
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    kind, size, stored = packed(noise)
    assert kind == "image/jpeg" and size < noise.size and np.abs(stored - noise).mean() < 10
