"""The notebooks as files: what nbval's comparison would let through."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = ("image/png", "image/jpeg")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(cells):
    return [output for cell in cells for output in cell.outputs]


def printed(cells):
    """All text and tables below the cells."""
    return " ".join(o.get("text", "") + str(o.get("data", {}).get("text/markdown", "")) for o in outputs(cells))


def decimals(text):
    """The decimal numbers in a text, as they are written."""
    return re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", text)


def shown(output):
    """Which kinds of picture an output holds."""
    return [kind for kind in PICTURES if kind in output.get("data", {})]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["1_parametrization", "2_denoising", "3_super_resolution"]


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size <= 5_000_000
    assert notebook.metadata.accelerator == "GPU"
    assert "widgets" not in notebook.metadata


def test_executed_in_order_in_one_go(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_no_errors_and_nothing_on_stderr(code):
    assert not [o for o in outputs(code) if o.output_type == "error" or o.get("name") == "stderr"]


def test_only_the_machine_line_is_not_compared(code):
    tagged = [cell for cell in code if cell.metadata.get("tags")]
    assert [cell.metadata.tags for cell in tagged] == [["nbval-ignore-output"]]
    assert tagged[0].source == "dip.describe_machine(budget)"
    markers = re.compile(r"#\s*(NBVAL|PYTEST_VALIDATE|nbval-)", re.IGNORECASE)
    assert not [cell.source for cell in code if markers.search(cell.source)]


def test_no_output_that_only_a_kernel_can_show(code):
    kinds = {kind for output in outputs(code) for kind in output.get("data", {})}
    assert kinds <= {*PICTURES, "text/plain", "text/html", "text/markdown"}


def test_every_figure_has_its_paragraph(notebook):
    """Below a cell that shows a picture stands text, or one more code cell and then text."""
    cells = notebook.cells
    for index, cell in enumerate(cells):
        if any(shown(output) for output in cell.get("outputs", [])):
            assert "markdown" in [following.cell_type for following in cells[index + 1 : index + 3]], cell.source


def test_pictures_have_alternative_texts(code):
    pictures = [(output, kind) for output in outputs(code) for kind in shown(output)]
    assert pictures
    assert all(output.metadata[kind]["alt"] for output, kind in pictures)
    pages = [output.data["text/html"] for output in outputs(code) if "text/html" in output.get("data", {})]
    for page in pages:
        assert page.count("<img ") == page.count('<img alt="') - page.count('<img alt=""')


def test_each_ends_with_a_verdict(code):
    said = [line for o in outputs(code) if o.output_type == "stream" for line in o.text.splitlines()]
    verdicts = [line for line in said if line.startswith("Verdict: ")]
    calls = sum(cell.source.count("dip.verdict(") for cell in code)
    assert verdicts and len(verdicts) == calls
    assert not [line for line in said if line.startswith("No verdict")]


def test_cells_are_short(code):
    assert [cell.source for cell in code if len(cell.source.splitlines()) > 25] == []


def test_numbers_in_the_prose_are_reported_or_printed(notebook, code):
    """A decimal number in the text is the report's or the paper's, or an output prints it."""
    published = {"20.364", "29.910", "30.561", "29.831", "30.101", "23.753", "29.22", "30.43", "31.00"}
    published |= {
        "0.05",
        "29.90",
        "28.43",
        "27.00",
        "26.05",
        "30.26",
        "31.42",
        "0.01",
        "0.2",
        "0.8",
        "2.1",
        "3.1",
        "3.2",
    }
    known = published | {*decimals(printed(code))}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"\(http[^)]*\)", "", cell.source)
            for number in decimals(text):
                assert number in known, f"{number} in: {text[:80]}"


def test_the_setup_cell_is_the_same_everywhere():
    """Nothing is installed but what scikit-image's wavelets and the heartbeat need, which Colab may lack."""
    setups = []
    for path in NOTEBOOKS:
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        setups.append(code[0].source)
        for cell in code[:2]:
            assert cell.metadata.jupyter.source_hidden and cell.metadata.cellView == "form", "folded"
        installs = [line for cell in code for line in cell.source.splitlines() if "pip install" in line]
        assert all("pywavelets" in line for line in installs) and len(installs) <= 1
    assert "git clone" in setups[0] and len(set(setups)) == 1


def test_shown_first_and_short(notebook, code):
    """A picture on the first screen, a computed one in the first quarter; thirty minutes to read."""
    assert len(notebook.cells) <= 46
    assert sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown") <= 2300
    assert "](../images/" in notebook.cells[0].source
    first = next(i for i, cell in enumerate(notebook.cells) if any(shown(o) for o in cell.get("outputs", [])))
    assert first <= len(notebook.cells) / 4


def test_no_figure_twice(code):
    pictures = [output.data[kind] for output in outputs(code) for kind in shown(output)]
    assert len(set(pictures)) == len(pictures)


def test_there_are_lines_to_fill_in_and_answers_under_a_fold(notebook, code):
    assert [cell for cell in code if re.search(r"^\s+(?:\w+ = )?\.\.\.$", cell.source, re.MULTILINE)]
    assert "ot filled in yet" in printed(code)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.count("<details>") == text.count("</details>") >= 3


def test_one_public_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    address = project["project"]["urls"]["Repository"]
    short = address.removeprefix("https://github.com/")
    for path in NOTEBOOKS:
        text = path.read_text("utf-8")
        assert f"colab.research.google.com/github/{short}/blob/main/notebooks/{path.name}" in text
        assert f'address = \\"{address}\\"' in text
        assert set(re.findall(r"github\.com/([\w.-]+/[\w.-]+)", text)) == {short}
    readme = (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"github\.com/([\w.-]+/[\w.-]+?)(?=[/)\s\"]|\.git)", readme)) <= {short}
    assert short in readme
