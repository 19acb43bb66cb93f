"""The tables of the two README files, against what they were taken from."""

import json
import re
import statistics

import nbformat
import pytest

from benchmarks import average, denoising, gain, report_images, salt_and_pepper, stopping

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


def test_steps_on_a_card_are_those_of_the_json():
    found = json.loads((BENCHMARKS / "cuda.json").read_text("utf-8"))
    text = (BENCHMARKS / "README.md").read_text("utf-8").split("## On a card")[1]
    assert table(text, "|") == [[str(cell) for cell in row.values()] for row in found["steps"]]
    [stated] = re.findall(
        r"(\d+\.\d) times as fast as in plain PyTorch on the same card", (ROOT / "README.md").read_text("utf-8")
    )
    assert float(stated) == pytest.approx(found["steps"][0]["ratio"], abs=0.051)


def test_time_to_quality_is_that_of_the_json():
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    found = json.loads((BENCHMARKS / "cpu.json").read_text("utf-8"))["time to quality"]
    assert table(text, "## Time to quality") == [[str(cell) for cell in row.values()] for row in found["loops"]]
    end = found["fit's average at the end (dB)"]["1/30"]
    assert f"{end:.2f} dB" in text.split("## Time to quality")[1].split("##")[0]


def test_readme_states_the_time_to_quality():
    loops = json.loads((BENCHMARKS / "cpu.json").read_text("utf-8"))["time to quality"]["loops"]
    stated = re.findall(r"(\d+(?:\.\d+)?) times sooner", (ROOT / "README.md").read_text("utf-8"))
    assert [float(number) for number in stated] == [pytest.approx(loops[0]["ratio"], abs=0.051)]


def results(name):
    """Rows of a benchmark's JSON file; none where it has not been measured."""
    path = BENCHMARKS / f"{name}.json"
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


@pytest.mark.parametrize(
    ("heading", "name", "printed"),
    [
        ("### Denoising, the report's requirement 2", "report_images", lambda rows: report_images.table(rows, 2)),
        ("### Enlarging, its requirement 3", "report_images", lambda rows: report_images.table(rows, 3)),
        ("## Denoising, blind", "denoising", denoising.table),
        ("## A better average?", "average", average.table),
        ("## When to stop", "stopping", stopping.table),
        ("## Salt and pepper", "salt_and_pepper", salt_and_pepper.table),
        ("## How the batch norms begin", "gain", gain.table),
    ],
)
def test_table_is_what_the_script_prints(heading, name, printed):
    section = (BENCHMARKS / "README.md").read_text("utf-8").split(f"{heading}")[1].split("\n#")[0]
    rows = results(name)
    if heading.startswith("###"):
        rows = [row for row in rows if str(row["requirement"]) == heading[-1]]
    expected = printed(rows) if rows else []
    if not expected:
        assert "being measured" in section
    else:
        assert table(section, "|") == [[str(cell) for cell in row.values()] for row in expected]


@pytest.mark.parametrize(("requirement", "first", "report"), [(2, 0, ["20.364", "30.101"]), (3, 1, ["23.753"])])
def test_the_first_results_are_those_on_the_reports_pictures(requirement, first, report):
    """Before, last output, average and, for denoising, non-local means: means over the runs."""
    found = [row for row in results("report_images") if row["requirement"] == requirement]
    row = table((ROOT / "README.md").read_text("utf-8"), "## Results")[first]
    assert decimals(row[1]) == report
    means = [statistics.mean(row[key] for row in found) for key in ("before", "last", "average")]
    means += [statistics.mean(row["classic"] for row in found)] if requirement == 2 else []
    assert decimals(row[2]) == [f"{mean:.2f}" for mean in means]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_results_are_those_of_the_committed_notebooks(path):
    """Every decimal number in the last column is one that the notebook of that row prints, or its rounding."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    known = [float(number) for number in decimals(printed(cells))]
    rows = table((ROOT / "README.md").read_text("utf-8"), "## Results")
    rows = [row for row in rows if row[0].startswith(f"{path.stem[0]}:")]
    assert rows
    for number in decimals(" ".join(row[-1] for row in rows)):
        half = 0.501 * 10 ** -len(number.split(".")[1])
        assert min(abs(float(number) - other) for other in known) <= half, number
