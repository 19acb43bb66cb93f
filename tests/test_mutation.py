"""nbval's comparison must be able to fail: one exact output altered, and it does."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SOURCE = """\
import dip_utils as dip
network = dip.SkipNetwork(3, (8, 16, 32, 64, 128), (0, 0, 0, 4, 4), seed=0)
print(f"{network.parameter_count:,} parameters, ≈{network.head.bias[0].item():.6f}")
dip.show_table([{"name": "a", "measured": 0.5}])
dip.show_images({"noise": dip.uniform_noise(3, 8, 8, seed=0)})
"""
FIGURE = "<Figure 10 × 10.3 in with 1 axes>"


def stored(parameters="572,827", mark="≈", table="a", figure=FIGURE):
    """A notebook of one cell with these words stored as its outputs."""
    text = f"{parameters} parameters, {mark}0.123\n"
    rows = f"| name | measured |\n| --- | --- |\n| {table} | ≈0.500 |"
    outputs = [
        new_output("stream", name="stdout", text=text),
        new_output("display_data", {"text/markdown": rows, "text/plain": "<IPython.core.display.Markdown object>"}),
        new_output("display_data", {"image/png": "", "text/plain": figure}),
    ]
    return new_notebook(cells=[new_code_cell(SOURCE, execution_count=1, outputs=outputs)])


def nbval(path):
    command = ["-m", "pytest", "--nbval", "--nbval-sanitize-with", "tests/nbval.cfg", "-q", "-p", "no:cacheprovider"]
    return subprocess.run([sys.executable, *command, str(path)], cwd=ROOT, capture_output=True, text=True).returncode


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, True),
        ({"parameters": "572,828"}, False),
        ({"mark": ""}, False),
        ({"table": "b"}, False),
        ({"figure": FIGURE.replace("1 axes", "2 axes")}, False),
    ],
    ids=["as it is", "a parameter more", "a number without its mark", "a word in a table", "a figure of two axes"],
)
def test_an_altered_output_fails(tmp_path, change, passes):
    path = tmp_path / "altered.ipynb"
    nbformat.write(stored(**change), path)
    assert (nbval(path) == 0) == passes
