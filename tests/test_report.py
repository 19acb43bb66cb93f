"""What is said in quotation marks is the report's, word for word."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = (ROOT / "tests" / "report.txt").read_text("utf-8")
PAGES = [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


def prose(path):
    """The text of a notebook or a README file, without code and links."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)


def quotations(text):
    """What stands in quotation marks and is longer than a name."""
    found = re.findall(r'["“]([^"”]+)["”]', text)
    return [quoted for quoted in found if len(quoted.split()) > 2]


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_quotations_are_the_reports_words(path):
    for quoted in quotations(prose(path)):
        assert words(quoted).rstrip(".,;:") in words(REPORT), quoted


def test_some_are_quoted_and_an_altered_one_is_found():
    assert sum(len(quotations(prose(path))) for path in PAGES) >= 5
    (quoted,) = quotations('It said: "the falcon image did not decrease".')
    assert words(quoted) not in words(REPORT)
