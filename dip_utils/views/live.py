"""The live plot of a fit."""

import html
import sys

from IPython.display import DisplayHandle
from tqdm import tqdm

from ..engine.machine import Pace
from .drawing import draw_curves, draw_image, new_figure, style_axes
from .page import bundle, cell_number, in_notebook

#: Less than `fit` allows its watch, so that text and stop button stay prompt.
DRAWING_SHARE = 0.015


class LivePlot:
    """Loss, PSNR and the current output while a fit runs; one plot for one or several fits.

    When the fit ends a static picture remains, which every viewer shows. A script has
    a line of progress instead. For several fits give their names, in order.

    Examples
    --------
    >>> live = LivePlot("natural", "noise")
    >>> for name, target in targets.items():
    ...     runs[name] = fit(network(), z, target, steps=600, watch=live.track(name))
    """

    def __init__(self, *names):
        self.names = tuple(map(str, names)) or ("output",)
        self.text = f"<live plot: {', '.join(self.names)}>"
        self.runs, self.cell, self.pace = {}, None, Pace(DRAWING_SHARE)

    def __call__(self, run):
        """Show the state of a single fit."""
        if len(self.names) > 1:
            raise ValueError("watch: got a LivePlot of several fits; wants its track(name)")
        self._update(self.names[0], run)

    def track(self, name):
        """The `watch` of the fit with this name."""
        name = str(name)
        if name not in self.names:
            raise ValueError(f"name: got {name!r}; wants one of {', '.join(self.names)}")
        return lambda run: self._update(name, run)

    def _update(self, name, run):
        progress = tqdm.format_meter(run.steps, run.planned, run.seconds, prefix=name, ncols=79, unit=" steps")
        if not in_notebook():
            print(f"\r{progress:79}", end="" if run.running else "\n", file=sys.stderr, flush=True)
            return
        # A new fit in another cell: what was shown under an earlier one stays, or is gone.
        if self.runs.get(name) is not run and self.cell != cell_number():
            self.cell, self.handle = cell_number(), DisplayHandle()
            # nbval compares only this: it takes no note of updates.
            self.handle.display({"text/plain": self.text}, raw=True)
        self.runs[name] = run
        if not run.running or self.pace.is_due():
            with self.pace.counted():
                self.picture, self.metadata = self._draw(name, run)
        if not run.running:
            self.handle.update(self.picture, raw=True, metadata=self.metadata)
            return
        page = (
            f'<pre style="margin:0">{html.escape(progress)}</pre>'
            f'<img width="{self.metadata["image/png"]["width"]}" alt="{html.escape(self.text[1:-1])}" '
            f'src="data:image/png;base64,{self.picture["image/png"]}">'
        )
        # `run_all.py`, which runs notebooks unseen, prints this.
        self.handle.update({"text/html": page, "text/plain": self.text}, raw=True, metadata={"progress": progress})

    def _draw(self, name, run):
        figure = new_figure(3.2)
        with_psnr = any(run.psnr is not None for run in self.runs.values())
        *plots, picture = figure.subplots(1, 2 + with_psnr, width_ratios=(1.25,) * (1 + with_psnr) + (1,))
        several = len(self.names) > 1
        draw_curves(plots[0], {name: run.loss for name, run in self.runs.items()}, names=self.names, log=True)
        style_axes(plots[0], "step", "loss")
        if with_psnr:
            curves = {name: run.average_psnr for name, run in self.runs.items() if run.psnr is not None}
            curves = curves if several else {"output": run.psnr, "average": run.average_psnr}
            draw_curves(plots[1], curves, names=self.names if several else None)
            style_axes(plots[1], "step", "PSNR of the average (dB)" if several else "PSNR (dB)")
        for axes in plots:
            axes.set_xlim(0, max(run.planned for run in self.runs.values()))
        if several or with_psnr:
            plots[0 if several else 1].legend(frameon=False, fontsize=8)
        draw_image(picture, run.output, f"{name}, step {run.steps}")
        return bundle(figure, self.text, f"Curves and output of {', '.join(self.runs)}")
