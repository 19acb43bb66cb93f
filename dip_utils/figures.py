"""Static figures: film strips, curves, comparisons with a zoom.

One look for all notebooks: a name has the same colour and the same dashes
everywhere (Okabe and Ito's colours, told apart with any colour vision).
"""

import base64
import io

import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .images import check_image, to_uint8
from .metrics import radial_power

STYLES = {
    "natural": ("#0072B2", "-"),
    "natural + noise": ("#E69F00", (0, (6, 2))),
    "shuffled": ("#009E73", (0, (6, 2, 1, 2))),
    "noise": ("#D55E00", (0, (2, 1.5))),
}
SPARE_STYLES = (("#CC79A7", "-"), ("#56B4E9", (0, (6, 2))), ("#000000", (0, (2, 1.5))), ("#8C6D00", (0, (6, 2, 1, 2))))
MARKS = (("#D55E00", "-"), ("#009E73", (0, (6, 2))), ("#CC79A7", (0, (2, 1.5))))
GREY = "#767676"
WIDTH = 10.0


def style(name, position=0):
    """Colour and dashes of a curve: fixed for the four targets, in turn for others."""
    return STYLES.get(name) or SPARE_STYLES[position % len(SPARE_STYLES)]


def new_figure(height, dpi=150):
    """A figure of the width of all our figures, outside of pyplot's global state.

    Curves are small at any number of pixels; figures of noise are not, and take
    about as many as they are wide on the page.
    """
    return Figure(figsize=(WIDTH, height), dpi=dpi, layout="constrained")


def png(figure):
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def bundle(figure, text, description):
    """What the notebook is given to show: data and metadata.

    The picture has more pixels than it is wide on the page, to be crisp on a
    screen with small pixels too.
    """
    data = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": text}
    metadata = {"image/png": {"width": round(figure.get_figwidth() * 96), "alt": description}}
    return data, metadata


def show(figure, description):
    """Show a figure under the cell.

    Parameters
    ----------
    figure : Figure
    description : str
        The alternative text, for those who do not see it.
    """
    width, height = figure.get_size_inches()
    text = f"<Figure {width:g} × {height:g} in with {len(figure.axes)} axes>"
    data, metadata = bundle(figure, text, description)
    display(data, raw=True, metadata=metadata)


def draw_image(axes, image, caption=""):
    """An image without ticks, its caption above."""
    grey = len(image) == 1
    axes.imshow(to_uint8(image), cmap="gray" if grey else None, vmin=0, vmax=255, interpolation_stage="rgba")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(caption, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)


def style_axes(axes, xlabel, ylabel):
    """Axes with the two lines that carry numbers, and a light grid."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_images(images, columns=None, dpi=96):
    """A figure of images side by side, each under its name."""
    for name, image in images.items():
        check_image(name, image, bounded=False)
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    tallest = max(image.shape[1] / image.shape[2] for image in images.values())
    figure = new_figure(round(rows * (WIDTH / columns * tallest + 0.3), 1), dpi)
    for position, (name, image) in enumerate(images.items()):
        draw_image(figure.add_subplot(rows, columns, position + 1), image, name)
    return figure


def show_images(images, *, columns=None):
    """Images side by side, each under its name.

    Parameters
    ----------
    images : dict of str to Tensor (C, H, W)
    columns : int, optional
        Images in a row; all of them where not given.
    """
    show(draw_images(images, columns), "Images side by side: " + ", ".join(images))


def check_kept(runs, steps):
    """Raise for steps that a run went through and did not keep; those that it did not reach are no mistake."""
    for name, run in runs.items():
        missing = [step for step in steps if step not in run.kept and (step <= run.steps or step > run.planned)]
        if missing:
            raise ValueError(f"steps: got {missing}, which {name!r} did not keep; wants some of {sorted(run.kept)}")


def film_strip(runs, steps, *, last="target"):
    """Outputs over the steps, a row for each run, its target or reference at the end.

    Parameters
    ----------
    runs : dict of str to Fit
    steps : sequence of int
        Kept steps, one column each.
    last : {"target", "reference"}
        What the last column shows.
    """
    if last not in ("target", "reference") or any(getattr(run, last) is None for run in runs.values()):
        raise ValueError(f"last: got {last!r}; wants 'target', or 'reference' where the runs have one")
    check_kept(runs, steps)
    columns = len(steps) + 1
    shape = next(iter(runs.values())).output.shape
    cell = WIDTH / columns
    figure = new_figure(round(len(runs) * (cell * shape[1] / shape[2]) + 0.3, 1), dpi=96)
    grid = figure.subplots(len(runs), columns, squeeze=False)
    for number, (row, (name, run)) in enumerate(zip(grid, runs.items(), strict=True)):
        pictures = [run.kept.get(step, run.output) for step in steps] + [getattr(run, last)]
        for axes, picture, step in zip(row, pictures, [*steps, None], strict=True):
            title = last if step is None else f"step {step}"
            if step is not None and step not in run.kept:
                title = f"stopped at {run.steps}"
            draw_image(axes, picture, title if number == 0 else "")
        row[0].set_ylabel(name, fontsize=9)
    columns = f"steps {', '.join(map(str, steps))} and the {last}"
    show(figure, f"Film strip: a row each for {', '.join(runs)}; columns are {columns}.")


def draw_curves(axes, curves, *, log=False, minimum=None):
    """Curves over the steps, each with its style and its name for the legend."""
    for position, (name, curve) in enumerate(curves.items()):
        colour, dashes = style(name, position)
        axes.plot(curve, color=colour, linestyle=dashes, linewidth=1.3, label=name)
    if log:
        axes.set_yscale("log")
    if minimum is not None:
        axes.set_ylim(bottom=minimum)
    axes.margins(x=0.01)


def plot_curves(panels, *, ylabel, log=False, levels=None, minimum=None):
    """One panel of curves beside the other, on a common vertical scale.

    Parameters
    ----------
    panels : dict of str to dict of str to array_like
        For each panel its curves, for each curve one value per step.
    ylabel : str
    log : bool
        Logarithmic vertical axis.
    levels : dict of str to dict of str to float, optional
        For a panel, horizontal lines: their names and heights.
    minimum : float, optional
        Where the vertical axis begins.
    """
    figure = new_figure(3.6)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        draw_curves(axes, curves, log=log, minimum=minimum)
        style_axes(axes, "step", ylabel if axes is grid[0] else "")
        axes.set_title(title, fontsize=10)
        for name, level in (levels or {}).get(title, {}).items():
            axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.annotate(name, (1, level), (-2, 3), ha="right", fontsize=8, color=GREY,
                          xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    handles, labels = [], []
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    show(figure, f"{ylabel} over step: " + "; ".join(f"{title}: {', '.join(c)}" for title, c in panels.items()))


def plot_spectra(runs, steps):
    """The power spectra of the outputs over the steps, a panel for each run, its target in black.

    Parameters
    ----------
    runs : dict of str to Fit
    steps : sequence of int
        Kept steps, one curve each, the later the darker.
    """
    check_kept(runs, steps)
    figure = new_figure(3.6)
    grid = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, run) in zip(grid, runs.items(), strict=True):
        for position, step in enumerate(steps):
            if step not in run.kept:
                continue
            frequency, power = radial_power(run.kept[step])
            shade = colormaps["viridis_r"](0.15 + 0.85 * position / max(1, len(steps) - 1))
            axes.loglog(frequency, power, color=shade, linewidth=1.5, label=f"step {step}")
        axes.loglog(*radial_power(run.target), color="black", linewidth=1.2, linestyle=(0, (2, 1.5)), label="target")
        axes.set_xticks([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2], ["1/32", "1/16", "1/8", "1/4", "1/2"])
        axes.minorticks_off()
        style_axes(axes, "cycles per pixel", "power" if axes is grid[0] else "")
        axes.set_title(name, fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    show(figure, f"Power against frequency at steps {', '.join(map(str, steps))}, one panel each: {', '.join(runs)}")


def plot_stopping(run, criteria, chosen):
    """PSNR over the steps, and below it the criteria that have to do without it.

    Parameters
    ----------
    run : Fit
        With a reference.
    criteria : dict of str to array_like
        For each criterion one value per step.
    chosen : dict of str to int or None
        For each criterion the step it chooses: a dot on its curve, and one on the
        average's. None where it chose none.
    """
    if run.average_psnr is None:
        raise ValueError("run: got one without a reference; wants a run of fit(..., reference=...)")
    if len(criteria) > len(MARKS) or set(criteria) != set(chosen):
        raise ValueError(f"criteria: got {list(criteria)}; wants at most {len(MARKS)}, the names in chosen")
    figure = new_figure(5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    # A run that went on with a reference has no PSNR of its first steps.
    best = int(np.nanargmax(run.average_psnr))
    top.plot(run.psnr, color="#56B4E9", linewidth=0.7, label="last output")
    top.plot(run.average_psnr, color="#0072B2", linewidth=1.6, label="average")
    top.plot(best, run.average_psnr[best], "*", color="black", markersize=11, label="the oracle's choice")
    top.set_ylim(np.nanquantile(run.psnr, 0.1) - 1, run.average_psnr[best] + 0.7)
    for position, (name, curve) in enumerate(criteria.items()):
        colour, dashes = MARKS[position]
        curve = np.where(np.isfinite(curve), curve, np.nan)
        # The first outputs say nothing: a running variance begins at zero.
        curve[: min(100, len(curve) // 10)] = np.nan
        curve /= np.nanmin(curve)
        bottom.plot(curve, color=colour, linestyle=dashes, linewidth=1.2, label=name)
        step = chosen[name]
        if step is None:
            continue
        for axes, values in ((top, run.average_psnr), (bottom, curve)):
            axes.plot(step, values[step], "o", color=colour, markersize=6, markeredgecolor="white")
        top.axvline(step, color=colour, linestyle=dashes, linewidth=0.8, label=f"{name} chooses")
    bottom.set_ylim(0.95, 2)
    style_axes(top, "", "PSNR (dB)")
    style_axes(bottom, "step", "criterion / its minimum")
    for axes in (top, bottom):
        axes.margins(x=0.01)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    show(figure, f"PSNR over step, and below it {', '.join(criteria)}, with the steps that they choose")


def compare(images, zoom, *, columns=None):
    """Images side by side, and below each a part of it, enlarged pixel by pixel.

    Parameters
    ----------
    images : dict of str to Tensor (C, H, W)
        All of one size, by their captions.
    zoom : tuple of float
        Top, left, height and width of the enlarged part, as shares of the image's
        height and width.
    columns : int, optional
        Images in a row; all of them where not given.
    """
    for name, image in images.items():
        check_image(name, image, bounded=False)
    if not (len(zoom) == 4 and min(zoom) >= 0 and zoom[0] + zoom[2] <= 1 and zoom[1] + zoom[3] <= 1):
        raise ValueError(f"zoom: got {zoom}; wants top, left, height and width as shares, inside the image")
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    shape = next(iter(images.values())).shape
    top, left, height, width = (round(part * side) for part, side in zip(zoom, shape[1:] * 2, strict=True))
    cell = WIDTH / columns
    ratios = (shape[1] / shape[2], height / width)
    figure = new_figure(round(rows * (cell * sum(ratios) + 0.4), 1), dpi=110)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=ratios * rows)
    for axes in grid.flat:
        axes.set_axis_off()
    for position, (name, image) in enumerate(images.items()):
        row, column = divmod(position, columns)
        whole, part = grid[2 * row, column], grid[2 * row + 1, column]
        draw_image(whole, image, name)
        whole.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="#FFD400", linewidth=1))
        draw_image(part, image[:, top : top + height, left : left + width])
        part.images[0].set_interpolation("nearest")
    show(figure, f"Images side by side, each with an enlarged part: {', '.join(images)}")


def plot_kernel(kernel, function, *, factor):
    """The downsampler's weights on top of the continuous kernel that they are samples of.

    Parameters
    ----------
    kernel : Tensor, (taps,)
        Weights along one axis, as `LanczosDownsampler.kernel`.
    function : callable
        The continuous kernel L(t) of the distance t in coarse samples.
    factor : int
    """
    taps = len(kernel)
    offsets = (np.arange(taps) - (taps - 1) / 2) / factor
    fine = torch.linspace(-2.5, 2.5, 501)
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    scale = kernel.max().item() / function(torch.tensor(np.abs(offsets).min())).item()
    left.plot(fine, function(fine) * scale, color=GREY, linewidth=1, label="L(t), scaled")
    left.stem(offsets, kernel.numpy(), linefmt="#0072B2", basefmt=" ", label="the weights")
    style_axes(left, "distance in low-resolution pixels", "weight")
    left.legend(frameon=False, fontsize=8)
    plane = torch.outer(kernel, kernel).numpy()
    bound = np.abs(plane).max()
    picture = right.imshow(plane, cmap="PuOr", vmin=-bound, vmax=bound)
    right.set_title(f"both axes: {taps} × {taps} weights", fontsize=9)
    right.set_xlabel("column")
    right.set_ylabel("row")
    figure.colorbar(picture, ax=right, shrink=0.85)
    show(figure, f"The Lanczos kernel: {taps} weights along one axis, and their outer product")


def show_table(rows):
    """A table under the cell.

    Measured numbers, the floats, carry the mark ≈: they differ a little from
    run to run and from machine to machine.

    Parameters
    ----------
    rows : list of dict
        One dict a row, with the same keys: the headings.
    """

    def cell(value):
        if isinstance(value, float):
            digits = 3 if abs(value) < 1 else 2
            # Without the sign of a zero.
            return f"≈{round(value, digits) + 0.0:.{digits}f}"
        return "–" if value is None else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0])] + [[cell(row[key]) for key in rows[0]] for row in rows]
    display(Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines)))
