"""The tables of the two README files, against what they were taken from."""

import json
import re

import nbformat
import pytest

from .test_notebook_files import NOTEBOOKS, ROOT, decimals, printed

BENCHMARKS = ROOT / "benchmarks"


def table(text, first_header):
    """Rows of the Markdown table after a heading, as lists of cells without their markup."""
    lines = text[text.index(first_header) :].splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("*", "") for cell in line.strip("|").split("|")])
    return rows[2:]


def test_step_times_are_those_of_the_json():
    rows = table((BENCHMARKS / "README.md").read_text("utf-8"), "## Step time")
    measured = json.loads((BENCHMARKS / "cpu.json").read_text("utf-8"))["steps"]
    assert len(rows) == len(measured)
    for row, found in zip(rows, measured, strict=True):
        assert row[:3] == [found["network"], found["size"], found["precision"]]
        for cell, key in ((row[3], "textbook (s)"), (row[4], "fit (s)"), (row[5], "ratio")):
            digits = len(decimals(cell)[0].split(".")[1])
            assert float(decimals(cell)[0]) == pytest.approx(found[key], abs=0.51 * 10**-digits)
        assert decimals(row[6]) == [f"{found[key]:.2f}" for key in ("peak textbook (GB)", "peak fit (GB)")]
        assert row[7] == str(found["GFLOP/s"])
        assert row[8].replace(" ", "") == found["of the ceiling"]


def test_time_to_quality_is_that_of_the_json():
    text = (BENCHMARKS / "README.md").read_text("utf-8").split("## Time to quality")[1].split("##")[0]
    found = json.loads((BENCHMARKS / "cpu.json").read_text("utf-8"))["time to quality"]
    stated = set(re.findall(r"\d+(?:\.\d+)?", text))
    assert stated >= {str(value) for value in found.values()}
    ratio = decimals((ROOT / "README.md").read_text("utf-8").split("last output ")[-1])[0]
    assert float(ratio) == pytest.approx(found["ratio"], abs=0.051)


def test_stopping_table_is_that_of_the_json():
    rows = table((BENCHMARKS / "README.md").read_text("utf-8"), "## When to stop")
    measured = {
        (found["photograph"], found["255 σ"]): found
        for found in json.loads((BENCHMARKS / "stopping.json").read_text("utf-8"))
    }
    cases = rows[:-2]
    assert {(row[0], int(row[1])) for row in cases} == set(measured)
    criteria = ("hold-out", "ES-WMV", "ES-EMV")
    for row in cases:
        found = measured[row[0], int(row[1])]
        assert decimals(row[2]) == [f"{found['noisy (dB)']:.2f}"]
        assert row[3] == f"{found['best average (dB)']:.2f}, {found['its step']}"
        for cell, name in zip(row[4:], criteria, strict=True):
            gaps = found[f"{name}: gap"], found[f"{name}: gap of the last output"]
            assert cell == f"{found[f'{name}: step']}, {gaps[0]:.2f} / {gaps[1]:.2f}"
    for row, summary in zip(rows[-2:], (lambda gaps: sum(gaps) / len(gaps), max), strict=True):
        for cell, name in zip(row[4:], criteria, strict=True):
            gaps = [
                [found[f"{name}: gap{kind}"] for found in measured.values()] for kind in ("", " of the last output")
            ]
            assert cell == " / ".join(f"{summary(values):.2f}" for values in gaps)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_full_results_are_those_of_the_committed_notebooks(path):
    """Every decimal number in the last column is one that the notebook of that row prints, or its rounding."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    known = [float(number) for number in decimals(printed(cells))]
    rows = table((ROOT / "README.md").read_text("utf-8"), "## Results beside the report's")
    rows = [row for row in rows if row[0].startswith(f"{path.stem[0]}:")]
    assert rows
    for number in decimals(" ".join(row[-1] for row in rows)):
        half = 0.501 * 10 ** -len(number.split(".")[1])
        assert min(abs(float(number) - other) for other in known) <= half, number
