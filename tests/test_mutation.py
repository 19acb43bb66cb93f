"""nbval's comparison must be able to fail: one exact output altered, and it does."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

#: The mark of a measured integer: a character without width.
UNSEEN = "\u2060"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mutation")]

ROOT = Path(__file__).resolve().parent.parent
SETUP = """\
import dip_utils as dip
network = dip.SkipNetwork(3, (8, 16, 32, 64, 128), (0, 0, 0, 4, 4), seed=0)
noise = dip.uniform_noise(3, 64, 64, seed=0)[None]"""
SOURCE = """\
print(f"{sum(p.numel() for p in network.parameters()):,} parameters, ≈{network(noise)[0, 0, 0, 0]:.6f}, 0.125")
dip.show_table([{"name": "a | b", "measured": 0.5, "PSNR": 30.25, "steps": 600, "stop": "≈400", "report": "23.753"}])
dip.show_images({"noise": noise[0]})"""
TEXT = "572,827 parameters, ≈0.123, 0.125\n"
TABLE = r"""
| name | measured | PSNR | steps | stop | report |
| --- | ---: | ---: | ---: | ---: | --- |
| a \| b | 0.500 | 30.25 | 600 | ~400 | 23.753 |""".lstrip().replace("~", UNSEEN)
FIGURE = "<Figure 10 × 10.3 in with 1 axes>"
CHANGES = {
    "as it is": ("", "", True),
    "another measurement in the text": ("≈0.123", "≈0.456", True),
    "another measurement in a table": ("0.500", "0.731", True),
    "another measurement above 1": ("30.25", "9.87", True),
    "another marked step in a table": (f"{UNSEEN}400", f"{UNSEEN}1234", True),
    "a parameter more": ("572,827", "572,828", False),
    "a number without its mark": ("≈0.123", "0.123", False),
    "an unmarked number": ("0.125", "0.126", False),
    "a word in a table": ("a \\|", "b \\|", False),
    "a heading of a table": ("PSNR", "SSIM", False),
    "an integer in a table": ("600", "601", False),
    "a mark in a table": (f"{UNSEEN}400", "400", False),
    "a number of the report": ("23.753", "23.754", False),
    "a word for a measurement": ("0.500", "–", False),
    "a figure of two axes": ("1 axes", "2 axes", False),
}


def stored(old, new):
    """A cell with its outputs, in which one thing is altered."""
    text, table, figure = (part.replace(old, new) for part in (TEXT, TABLE, FIGURE))
    assert (text, table, figure) != (TEXT, TABLE, FIGURE) or old == new
    outputs = [
        new_output("stream", name="stdout", text=text),
        new_output("display_data", {"text/markdown": table, "text/plain": "<IPython.core.display.Markdown object>"}),
        new_output("display_data", {"image/png": "", "text/plain": figure}),
    ]
    return new_code_cell(SOURCE, execution_count=2, outputs=outputs)


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Whether nbval lets each change pass: a notebook with a cell for each."""
    path = tmp_path_factory.mktemp("mutation") / "altered.ipynb"
    cells = [new_code_cell(SETUP, execution_count=1)]
    nbformat.write(new_notebook(cells=cells + [stored(old, new) for old, new, _ in CHANGES.values()]), path)
    command = ["-m", "pytest", "--nbval", "--nbval-sanitize-with", "tests/nbval.cfg", "-rA", "-p", "no:cacheprovider"]
    told = subprocess.run([sys.executable, *command, str(path)], cwd=ROOT, capture_output=True, text=True).stdout
    found = re.findall(r"^(PASSED|FAILED) .*::Cell (\d+)", told, re.MULTILINE)
    first, *others = [result == "PASSED" for result, _ in sorted(found, key=lambda pair: int(pair[1]))]
    assert first, told
    return dict(zip(CHANGES, others, strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_an_altered_output_fails(passed, name):
    assert passed[name] == CHANGES[name][2]
