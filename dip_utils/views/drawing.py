"""The look of all figures: styles of curves, images with captions, axes, grids.

A name has the same colour and dashes in all notebooks (Okabe and Ito's colours, which
can be told apart with any colour vision).
"""

import textwrap

from matplotlib.figure import Figure

from ..images import to_uint8

STYLES = {
    "natural": ("#0072B2", "-"),
    "natural + noise": ("#E69F00", (0, (6, 2))),
    "shuffled": ("#009E73", (0, (6, 2, 1, 2))),
    "noise": ("#D55E00", (0, (2, 1.5))),
}
SPARE_STYLES = (
    ("#CC79A7", "-"),
    ("#56B4E9", (0, (6, 2))),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
    ("#8C6D00", (0, (6, 2, 1, 2))),
)
GREY = "#767676"
#: Of every figure, in inches.
WIDTH = 10.0
#: Letters of a caption, in 9 points, to an inch.
LETTERS = 13
#: Height over width: of a signal; the least and the most of the space for an image.
SIGNAL, FLAT, TALL = 0.5, 0.35, 3


def new_figure(height, dpi=150):
    """A figure of our width, outside of pyplot's global state."""
    return Figure(figsize=(WIDTH, round(height, 1)), dpi=dpi, layout="constrained")


def plain(text):
    """A text that matplotlib shows as it is: $ does not start a formula, and a leading _ does not hide a label."""
    return (" " * text.startswith("_") + text).replace("$", r"\$")


def in_lines(text, inches):
    """A text in lines of about this many inches."""
    return textwrap.fill(text, max(5, int(LETTERS * inches)))


def set_title(axes, title, fontsize):
    """A title, in lines no longer than the axes are wide."""
    place = axes.get_subplotspec()
    ratios = place.get_gridspec().get_width_ratios()
    share = ratios[place.colspan.start] / sum(ratios)
    axes.set_title(plain(in_lines(title, WIDTH * share * 9 / fontsize)), fontsize=fontsize)


def draw_image(axes, image, caption):
    """An image without ticks, its caption above; a signal (C, T) as a curve for each channel."""
    set_title(axes, caption, fontsize=9)
    # Elsewhere in its place, the layout would misjudge the room for the caption.
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    if image.ndim == 2:
        axes.set_prop_cycle(color=[colour for colour, _ in STYLES.values()])
        axes.plot(image.mT.numpy(), linewidth=0.7)
        axes.set(xlim=(0, image.shape[1] - 1), ylim=(min(0, image.min()), max(1, image.max())), box_aspect=SIGNAL)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "1"], fontsize=7)
        return
    pixels = to_uint8(image)
    axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255, interpolation_stage="rgba")


def draw_curves(axes, curves, *, names=None, log=False):
    """Curves over the steps. A name without a style of its own gets one by its place among `names`, 16 at most."""
    names, spare = list(names or curves), len(SPARE_STYLES)
    for name, curve in curves.items():
        turn, place = divmod(names.index(name), spare)
        colour, dashes = STYLES.get(name) or (SPARE_STYLES[place][0], SPARE_STYLES[(place + turn) % spare][1])
        axes.plot(curve, color=colour, linestyle=dashes, linewidth=1.3, label=plain(name))
    # Losses may be negative.
    if log and any((curve > 0).any() for curve in curves.values()):
        axes.set_yscale("log")
    axes.margins(x=0.01)


def style_axes(axes, xlabel, ylabel, title=""):
    """Axes with a light grid, and without the lines at top and right."""
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    set_title(axes, title, fontsize=10)
    axes.grid(True, color="#E5E5E5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(figure, grid):
    """One legend for all panels, below them."""
    labels = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(6, len(labels), int(LETTERS * WIDTH / (max(map(len, labels), default=0) + 6))))
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def draw_grid(rows, columns, dpi=96):
    """A figure of rows of captions and images, and the grid of its axes.

    Pictures of noise make large files, so by default these figures have no more pixels
    than they take on the page; figures of curves may have more.
    """
    width = WIDTH / columns
    # Heights over widths.
    ratios = [max(image.shape[1] / image.shape[2] if image.ndim == 3 else SIGNAL for _, image in row) for row in rows]
    ratios = [min(max(ratio, FLAT), TALL) for ratio in ratios]
    lines = [max(in_lines(caption, width).count("\n") + 1 if caption else 0 for caption, _ in row) for row in rows]
    figure = new_figure(width * sum(ratios) + sum(0.15 + 0.15 * number for number in lines if number), dpi)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=ratios)
    for line, row in zip(grid, rows, strict=True):
        for axes, (caption, image) in zip(line, row, strict=False):
            draw_image(axes, image, caption)
        for axes in line[len(row) :]:
            axes.remove()
    return figure, grid
