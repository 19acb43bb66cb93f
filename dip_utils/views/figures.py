"""Static views: images side by side, film strips, curves, comparisons with a zoom."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from ..engine.checks import check_curve, check_image, check_integer, check_number, check_several
from ..fitting import Fit
from ..metrics import radial_power
from ..resampling import LanczosDownsampler, lanczos
from .drawing import GREY, add_legend, draw_curves, draw_grid, in_lines, new_figure, plain, style_axes
from .page import show

#: The height of a line of text beside a panel, in points.
LINE = 11


def by_name(argument, things):
    """A dict with its names as text, or an error."""
    if not isinstance(things, dict):
        raise TypeError(f"{argument}: got {type(things).__name__}; wants a dict, each under its name")
    if not things:
        raise ValueError(f"{argument}: got none; wants at least one, under its name")
    return {str(name): thing for name, thing in things.items()}


def runs_by_name(runs):
    """A dict of runs with their names as text, or an error."""
    runs = by_name("runs", runs)
    for name, run in runs.items():
        if not isinstance(run, Fit):
            raise TypeError(f"runs: got {type(run).__name__} as {name!r}; wants a run, as fit returns it")
    return runs


def in_rows(images, columns, signal):
    """Rows of captions and images, or an error that names what is not an image."""
    pairs = [(name, check_image(name, image, bounded=False, signal=signal)) for name, image in images.items()]
    return [pairs[start : start + columns] for start in range(0, len(pairs), columns)]


def draw_images(images, columns=None, dpi=96):
    """A figure of images side by side, each under its name."""
    images = by_name("images", images)
    columns = len(images) if columns is None else columns
    check_integer("columns", columns, 1)
    return draw_grid(in_rows(images, columns, signal=True), columns, dpi)[0]


def show_images(images, *, columns=None):
    """Images side by side, each under its name, at most `columns` in a row.

    `images` is a dict of tensors (C, H, W): three channels are red, green and blue,
    any other number of channels is shown as their mean, in grey. Each channel of a signal
    (C, T) is a curve.
    """
    show(draw_images(images, columns), "images", "Images side by side: " + ", ".join(map(str, images)))


def check_kept(runs, steps):
    """Return steps as a tuple, or raise: those that a run has reached, it must have kept."""
    steps = check_several("steps", steps, "some steps, for example (0, 100)")
    for step in steps:
        check_integer("steps", step, 0)
    for name, run in runs.items():
        missing = [step for step in steps if step not in run.kept and (step <= run.steps or step > run.planned)]
        if missing:
            raise ValueError(f"steps: got {missing}, which {name!r} did not keep; wants some of {sorted(run.kept)}")
    return steps


def check_shares(name, shares, number, wants):
    """Return shares of an image's height and width as a tuple, or raise."""
    shares = check_several(name, shares, wants)
    if len(shares) != number:
        raise ValueError(f"{name}: got {shares}; wants {wants}")
    for share in shares:
        check_number(name, share, least=0, most=1)
    return shares


def check_beside(name, value, runs):
    """Raise unless `value` is "target", or "reference" of runs that all have one."""
    value = value if isinstance(value, str) else type(value).__name__
    if value not in ("target", "reference") or any(getattr(run, value) is None for run in runs.values()):
        raise ValueError(f"{name}: got {value!r}; wants 'target', or 'reference' where the runs have one")


def film_strip(runs, steps, *, last="target"):
    """Outputs at kept steps, a row for each run in a dict, its `last`, "target" or "reference", at the end."""
    runs = runs_by_name(runs)
    check_beside("last", last, runs)
    steps = check_kept(runs, steps)
    rows, above = [], [None] * (len(steps) + 1)
    for run in runs.values():
        captions = [f"step {step}" if step in run.kept else f"stopped at {run.steps}" for step in steps] + [last]
        pictures = [run.kept.get(step, run.output) for step in steps] + [getattr(run, last)]
        # A caption that already stands above is not repeated.
        said = ["" if caption == other else caption for caption, other in zip(captions, above, strict=True)]
        rows.append(list(zip(said, pictures, strict=True)))
        above = captions
    figure, grid = draw_grid(rows, len(steps) + 1)
    for axes, name in zip(grid[:, 0], runs, strict=True):
        axes.set_ylabel(plain(in_lines(name, figure.get_figheight() / len(rows))), fontsize=9)
    columns = f"steps {', '.join(map(str, steps))} and the {last}"
    show(figure, "film_strip", f"Film strip: a row each for {', '.join(runs)}; columns are {columns}.")


def plot_curves(panels, *, ylabel, log=False, levels=None, minimum=None):
    """Panels of curves side by side, on a common vertical scale, logarithmic if `log`, from `minimum`.

    Parameters
    ----------
    panels : dict of str to dict of str to array_like
        For each panel its curves, for each curve one value per step.
    levels : dict of str to float, optional
        Horizontal lines: their names and heights.
    """
    panels = {
        title: {name: check_curve(name, curve) for name, curve in by_name("panels", curves).items()}
        for title, curves in by_name("panels", panels).items()
    }
    figure = new_figure(3.6)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        draw_curves(axes, curves, names=names, log=log)
        style_axes(axes, "step", ylabel if axes is grid[0] else "", title)
    levels = by_name("levels", levels) if levels is not None else {}
    for level in levels.values():
        check_number("levels", level)
        for axes in grid:
            axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    if minimum is not None:
        check_number("minimum", minimum)
        # Above all curves it would turn the axis upside down.
        if minimum < grid[0].get_ylim()[1]:
            grid[0].set_ylim(bottom=minimum)
    add_legend(figure, grid)
    if levels:
        name_levels(grid[-1], levels)
    contents = "; ".join(f"{title}: {', '.join(curves)}" for title, curves in panels.items())
    show(figure, "curves", f"{ylabel} over step: {contents}")


def name_levels(axes, levels):
    """Write the names of levels to the right of axes, where there is no curve, none on another."""
    # Only now is it known how high the axes are.
    FigureCanvasAgg(axes.figure).draw()
    points = 72 / axes.figure.dpi
    seen = {name: (axes.transData.transform((0, level))[1] - axes.bbox.y0) * points for name, level in levels.items()}
    most = axes.bbox.height * points
    seen = sorted((height, name) for name, height in seen.items() if 0 <= height <= most)
    # Pushed up by those below, and down by the end of the axes.
    lines = LINE * np.arange(len(seen))
    heights = np.maximum.accumulate([height for height, _ in seen] - lines) + lines
    heights = np.minimum(heights, most - lines[::-1])
    style = dict(xycoords="axes fraction", textcoords="offset points", va="center", fontsize=8, color=GREY)
    for height, (_, name) in zip(heights, seen, strict=True):
        axes.annotate(plain(name), (1, 0), (3, height), **style)


def plot_spectra(runs, steps):
    """The power spectra of outputs at kept steps, the later the darker, and the target's in black.

    A panel for each run in a dict. Target and output must have the same size, at least 32 × 32.
    """
    runs = runs_by_name(runs)
    steps = check_kept(runs, steps)
    for name, run in runs.items():
        if run.target.shape[1:] != run.output.shape[1:] or run.target.ndim < 3 or min(run.target.shape[1:]) < 32:
            sizes = f"a target of {tuple(run.target.shape)} and an output of {tuple(run.output.shape)}"
            raise ValueError(f"runs: got {sizes} as {name!r}; wants images of one size, 32 pixels or more on each side")
    figure = new_figure(3.6)
    grid = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, run) in zip(grid, runs.items(), strict=True):
        for position, step in enumerate(steps):
            if step in run.kept:
                shade = colormaps["viridis_r"](0.15 + 0.85 * position / max(1, len(steps) - 1))
                axes.loglog(*radial_power(run.kept[step]), color=shade, linewidth=1.5, label=f"step {step}")
        axes.loglog(*radial_power(run.target), color="black", linewidth=1.2, linestyle=(0, (2, 1.5)), label="target")
        axes.set_xticks([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2], ["1/32", "1/16", "1/8", "1/4", "1/2"])
        axes.minorticks_off()
        style_axes(axes, "cycles per pixel", "power" if axes is grid[0] else "", name)
    add_legend(figure, grid)
    description = f"Power against frequency at steps {', '.join(map(str, steps))}, one panel each: {', '.join(runs)}"
    show(figure, "spectra", description)


def plot_stopping(run):
    """PSNR over the steps of a run; below it the held-out loss, which does not know the reference, and its choice.

    The run must have a reference and hold-out.
    """
    (run,) = runs_by_name({"run": run}).values()
    if run.average_psnr is None or run.held_out is None:
        raise ValueError("run: got one without reference or hold-out; wants one of fit(..., reference=…, stop=…)")
    figure = new_figure(5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    # A run that was continued with a reference has NaN for its first steps.
    best = int(np.nanargmax(run.average_psnr))
    top.plot(run.psnr, color="#56B4E9", linewidth=0.7, label="output")
    top.plot(run.average_psnr, color="#0072B2", linewidth=1.6, label="average")
    top.plot(best, run.average_psnr[best], "*", color="black", markersize=11, label="the oracle's choice")
    top.set_ylim(np.nanquantile(run.psnr, 0.1) - 1, max(run.average_psnr[best], np.nanquantile(run.psnr, 0.99)) + 0.7)
    curve, colour, step = run.held_out.copy(), "#D55E00", run.chosen_step
    # The first values say nothing, and would take up the scale.
    curve[: min(100, len(curve) // 10)] = np.nan
    # Losses may be negative.
    relative = np.nanmin(curve) > 0
    if relative:
        curve /= np.nanmin(curve)
        bottom.set_ylim(0.95, min(2, 1.02 * np.nanmax(curve)))
    bottom.plot(curve, color=colour, linewidth=1.2, label="hold-out")
    if step is not None:
        top.axvline(step, color=colour, linewidth=0.8, label="hold-out chooses")
        for axes, values in ((top, run.average_psnr), (bottom, curve)):
            axes.plot(step, values[step], "o", color=colour, markersize=6, markeredgecolor="white")
    style_axes(top, "", "PSNR (dB)")
    style_axes(bottom, "step", "criterion / its minimum" if relative else "criterion")
    for axes in (top, bottom):
        axes.margins(x=0.01)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    show(figure, "stopping", "PSNR over step; below it hold-out, with the step that it chooses")


def compare(images, zoom):
    """Images side by side, and below each a part of it, enlarged pixel by pixel.

    Parameters
    ----------
    images : dict of str to Tensor (C, H, W)
        All of the same size, by their captions.
    zoom : tuple of float
        Top, left, height and width of that part, as shares of the image's height
        or width.
    """
    images = by_name("images", images)
    (whole,) = in_rows(images, len(images), signal=False)
    sizes = {tuple(image.shape[1:]) for image in images.values()}
    if len(sizes) > 1:
        raise ValueError(f"images: got the sizes {sorted(sizes)}; wants images of one size")
    wants = "top, left, height and width as shares, inside the image"
    zoom = check_shares("zoom", zoom, 4, wants)
    if not all(at < at + length <= 1 + 1e-6 for at, length in zip(zoom, zoom[2:], strict=False)):
        raise ValueError(f"zoom: got {zoom}; wants {wants}")
    size = sizes.pop()
    height, width = (max(1, round(share * side)) for share, side in zip(zoom[2:], size, strict=True))
    top, left = (
        min(round(share * side), side - length)
        for share, side, length in zip(zoom, size, (height, width), strict=False)
    )
    part = np.s_[:, top : top + height, left : left + width]
    figure, (above, below) = draw_grid([whole, [("", image[part]) for _, image in whole]], len(whole), dpi=110)
    for axes in above:
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="#FFD400", linewidth=1))
    for axes in below:
        axes.images[0].set_interpolation("nearest")
    show(figure, "comparison", f"Images side by side, each with an enlarged part: {', '.join(images)}")


def plot_kernel(downsampler):
    """The weights of a `LanczosDownsampler`, and the kernel L(t) that they sample, t in coarse pixels."""
    if not isinstance(downsampler, LanczosDownsampler):
        raise TypeError(f"downsampler: got {downsampler!r}; wants a LanczosDownsampler")
    kernel, factor = downsampler.kernel, downsampler.factor
    taps = len(kernel)
    offsets = (np.arange(taps) - (taps - 1) / 2) / factor
    fine = torch.linspace(-2.5, 2.5, 501, device="cpu")
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    scale = kernel.max().item() / lanczos(torch.from_numpy(np.abs(offsets)).min()).item()
    left.plot(fine, lanczos(fine) * scale, color=GREY, linewidth=1, label="L(t), scaled")
    left.stem(offsets, kernel.numpy(), linefmt="#0072B2", basefmt=" ", label="the weights")
    style_axes(left, "distance in coarse pixels", "weight")
    left.legend(frameon=False, fontsize=8)
    plane = torch.outer(kernel, kernel).numpy()
    bound = np.abs(plane).max()
    picture = right.imshow(plane, cmap="PuOr", vmin=-bound, vmax=bound)
    right.set_title(f"both axes: {taps} × {taps} weights", fontsize=9)
    right.set(xlabel="column", ylabel="row")
    figure.colorbar(picture, ax=right, shrink=0.85)
    show(figure, "kernel", f"The Lanczos kernel: {taps} weights along one axis, and their outer product")
