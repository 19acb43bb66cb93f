"""Where views appear: under the cell of a notebook, or, in a script, on the terminal and in files.

The only place that tells the two apart.
"""

import base64
import io
import itertools
from pathlib import Path

from IPython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ..engine.machine import say

#: What a script shows is written to this folder, numbered from 1.
FOLDER = Path("figures")
NUMBERS = itertools.count(1)


def in_notebook():
    """Whether a notebook's kernel runs this; IPython in a terminal counts as a script."""
    return getattr(get_ipython(), "kernel", None) is not None


def cell_number():
    """The number of the cell that runs now."""
    return get_ipython().execution_count


def write(name, content):
    """Write what a notebook would show to a new file, and say where."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{next(NUMBERS):02}_{name}"
    path.write_bytes(content)
    say(f"Written: {path}")


def png(figure):
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def bundle(figure, text, description):
    """Data and metadata of a figure, as a notebook displays them.

    The picture may have more pixels than it takes on the page, to be crisp on
    high-resolution screens.
    """
    data = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": text}
    metadata = {"image/png": {"width": round(figure.get_figwidth() * 96), "alt": description}}
    return data, metadata


def show(figure, name, description):
    """Show a figure under the cell, with a description for those who cannot see it; in a script, write a file."""
    if not in_notebook():
        return write(f"{name}.png", png(figure))
    width, height = figure.get_size_inches()
    text = f"<Figure {width:g} × {height:g} in with {len(figure.axes)} axes>"
    data, metadata = bundle(figure, text, description)
    display(data, raw=True, metadata=metadata)
