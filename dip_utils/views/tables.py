"""Tables and verdicts: what a notebook says in words and numbers."""

import re
from numbers import Integral, Real

from IPython.display import Markdown, display

from ..engine.checks import check_several
from ..engine.machine import say
from ..fitting import Fit
from .page import in_notebook

#: Marks a measured integer in a notebook's table: a character without width.
UNSEEN = "\u2060"
#: The beginning of a verdict that fails.
NOT_SHOWN = "NOT shown by this run"


def show_table(rows):
    """A table from a dict for each row: under the cell, or in a script as aligned text.

    Floats are shown with three decimals below 1, else with two. They are measurements:
    the test of the notebooks lets them change, and compares everything else exactly. An
    integer that may change, such as a step that a criterion chose, is given as text
    with a mark, "≈871", which the reader does not see. None is shown as a dash.
    """
    rows = check_several("rows", rows, "a list of dicts")
    if not all(isinstance(row, dict) for row in rows):
        raise TypeError(f"rows: got {[type(row).__name__ for row in rows]}; wants dicts")
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"rows: got the keys {[list(row) for row in rows]}; wants rows with the same ones")

    def cell(value):
        if isinstance(value, Real) and not isinstance(value, Integral):
            digits = 3 if abs(value) < 1 else 2
            # No minus sign in front of a zero.
            return f"{round(value, digits) + 0.0:.{digits}f}"
        text = "–" if value is None else str(value)
        if not in_notebook():
            return text.replace("≈", "")
        # Names are not Markdown.
        return re.sub(r"([\\`*_<|~\[])", r"\\\1", text).replace("≈", UNSEEN)

    right = [any(isinstance(row[key], Real) or str(row[key])[:1] == "≈" for row in rows) for key in rows[0]]
    lines = [[cell(key) for key in rows[0]]] + [[cell(row[key]) for key in rows[0]] for row in rows]
    if in_notebook():
        lines.insert(1, ["---:" if aligned else "---" for aligned in right])
        return display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        columns = zip(line, right, widths, strict=True)
        say("  ".join(f"{text:{'>' if aligned else '<'}{width}}" for text, aligned, width in columns).rstrip())


def verdict(sentence, holds, runs=()):
    """Print a claim, and whether it holds. Nothing is raised: the rest of a notebook is run all the same.

    There is no verdict if one of `runs`, a list of those that it was measured on, was
    stopped by hand.
    """
    if isinstance(runs, Fit | dict):
        raise TypeError(f"runs: got {type(runs).__name__}; wants a list of runs")
    stopped = sum(run.interrupted for run in runs)
    if stopped:
        say(f"No verdict: {stopped} of the runs were stopped by hand.")
    else:
        say(f"{'Verdict' if holds else NOT_SHOWN}: {sentence}")
