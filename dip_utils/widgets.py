"""What moves: the live plot of a fit, and the slider over kept images."""

import base64
import hashlib
import html
import io
import time
from functools import partial

from IPython.display import display
from PIL import Image
from tqdm import tqdm

from .figures import bundle, draw_curves, draw_image, new_figure, style_axes
from .images import crop, to_uint8
from .metrics import psnr as measure_psnr

#: JPEG qualities for the frames of a slider: the first that keeps it below the limit.
QUALITIES = (90, 80, 65, 50, 35)
LARGEST_SLIDER = 1_000_000
#: The largest share of the time that redrawing may take; the text under it changes more often.
DRAWING_SHARE = 0.015


class LivePlot:
    """Loss, PSNR and the current output while a fit runs; one plot for one or several fits.

    When the fit ends a static picture remains, which every viewer shows.

    Parameters
    ----------
    *names : str
        One for each fit, in their order; none for a single fit.

    Examples
    --------
    >>> live = LivePlot("natural", "noise")
    >>> for name, target in targets.items():
    ...     runs[name] = fit(network(), z, target, steps=600, watch=live.track(name))
    """

    def __init__(self, *names):
        self.names = names or ("output",)
        self.text = f"<live plot: {', '.join(self.names)}>"
        self.runs, self.handle = {}, None
        self.drawn, self.spent, self.begun = None, 0.0, time.perf_counter()

    def __call__(self, run):
        """Show the state of a single fit."""
        self._update(self.names[0], run)

    def track(self, name):
        """The `watch` of the fit with this name."""
        if name not in self.names:
            raise ValueError(f"name: got {name!r}; wants one of {', '.join(self.names)}")
        return lambda run: self._update(name, run)

    def _update(self, name, run):
        self.runs[name] = run
        now = time.perf_counter()
        if self.drawn is None or not run.running or self.spent < DRAWING_SHARE * (now - self.begun):
            figure = self._draw(name, run)
            self.drawn = bundle(figure, self.text, f"Curves and current output of {', '.join(self.runs)}")
            # The first drawing sets up fonts: to count it would silence the plot for long.
            self.spent += time.perf_counter() - now if len(self.runs) > 1 or self.handle else 0
        data, metadata = self.drawn
        progress = f"{name}: {tqdm.format_meter(run.steps, run.planned, run.seconds, ncols=76, unit=' steps')}"
        metadata = metadata | {"progress": progress}
        if self.handle is None:
            self.handle = display(data, raw=True, metadata=metadata, display_id=True)
        if run.running:
            width = metadata["image/png"]["width"]
            page = (
                f'<pre style="margin:0">{progress}</pre>'
                f'<img width="{width}" alt="{self.text[1:-1]}" src="data:image/png;base64,{data["image/png"]}">'
            )
            data = data | {"text/html": page}
        if self.handle is None:
            return  # In a plain script nothing can be updated.
        self.handle.update(data, raw=True, metadata=metadata if run.running else self.drawn[1])

    def _draw(self, name, run):
        figure = new_figure(3.2)
        with_psnr = any(run.psnr is not None for run in self.runs.values())
        *plots, picture = figure.subplots(1, 2 + with_psnr, width_ratios=(1.25,) * (1 + with_psnr) + (1,))
        draw_curves(plots[0], {name: run.loss for name, run in self.runs.items()}, log=True)
        style_axes(plots[0], "step", "loss (MSE)")
        for axes in plots:
            axes.set_xlim(0, run.planned)
        if len(self.names) > 1:
            plots[0].legend(frameon=False, fontsize=8)
        if with_psnr:
            curves = {"last output": run.psnr, "average": run.average_psnr} if len(self.names) == 1 else {
                name: run.average_psnr for name, run in self.runs.items()}  # fmt: skip
            draw_curves(plots[1], {name: curve for name, curve in curves.items() if curve is not None})
            style_axes(plots[1], "step", "PSNR (dB)" if len(self.names) == 1 else "PSNR of the average (dB)")
            plots[1].legend(frameon=False, fontsize=8)
        draw_image(picture, run.output, f"{name}, step {run.steps}")
        return figure


def _part(image, largest, centre):
    """At most `largest` pixels of each side, about a point given in shares of the sides."""
    sides = image.shape[1:]
    size = [min(side, largest) for side in sides]
    corner = [
        min(max(round(share * side - length / 2), 0), side - length)
        for share, side, length in zip(centre, sides, size, strict=True)
    ]
    return crop(image, *size, top=corner[0], left=corner[1])


def _frame(image, name, caption, zoom, quality):
    """One frame: a JPEG, pixel for pixel."""
    name = html.escape(name)
    height, width = image.shape[1:]
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "JPEG", quality=quality, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure style="margin:0 8px 0 0;width:{max(width * zoom, 190)}px">'
        f'<figcaption style="font:12px sans-serif;min-height:2.6em"><b>{name}</b><br>{caption}</figcaption>'
        f'<img alt="{name}, {caption}" width="{width * zoom}" height="{height * zoom}" '
        f'style="image-rendering:pixelated" src="data:image/jpeg;base64,{data}"></figure>'
    )


def _row(frames):
    return f'<div style="display:flex;flex-wrap:wrap;margin:0 0 6px">{"".join(frames)}</div>'


SCRIPT = """
setTimeout(() => {
  const root = [...document.querySelectorAll("#ID")].find(element => !element.dataset.ready);
  root.dataset.ready = 1;
  const rows = [...root.querySelector(".steps").children];
  const steps = STEPS, bar = document.createElement("div");
  bar.style.cssText = "display:flex;gap:8px;align-items:center;font:13px sans-serif;margin:4px 0";
  bar.innerHTML = '<button type="button" aria-label="Play or pause">▶</button>' +
    '<label>step <input type="range" min="0" max="' + (rows.length - 1) + '" value="' + (rows.length - 1) +
    '" style="width:280px;vertical-align:middle" aria-label="Step" data-lm-suppress-shortcuts="true"></label>' +
    '<output></output>';
  const [button, , output] = bar.children, input = bar.querySelector("input");
  const move = () => {
    rows.forEach((row, i) => { row.style.display = i == input.value ? "flex" : "none"; });
    output.textContent = steps[input.value];
    input.setAttribute("aria-valuetext", "step " + steps[input.value]);
  };
  let timer = null;
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "▶"; };
  button.onclick = () => {
    if (timer) return pause();
    button.textContent = "❚❚";
    timer = setInterval(() => { input.value = (+input.value + 1) % rows.length; move(); }, 400);
  };
  input.oninput = () => { pause(); move(); };
  root.querySelector(".steps").before(bar);
  move();
}, 0);
"""


def browse(runs, *, beside="target", largest=None, centre=(0.5, 0.5)):
    """A slider over the kept images of up to four runs; it works without a kernel.

    Where scripts do not run the same images stand one under the other as a
    contact sheet. Of images larger than `largest` a part is shown, so that noise
    is seen pixel for pixel.

    Parameters
    ----------
    runs : Fit or dict of str to Fit
        Runs that kept the same steps.
    beside : {"target", "reference"}
        What stands above the outputs.
    largest : int, optional
        Longest side of a frame in image pixels: 256, or 200 for four runs side by
        side.
    centre : tuple of float
        The middle of the part that is shown, as shares of height and width.
    """
    runs = runs if isinstance(runs, dict) else {"output": runs}
    if not 1 <= len(runs) <= 4:
        raise ValueError(f"runs: got {len(runs)}; wants one to four")
    if beside not in ("target", "reference"):
        raise ValueError(f"beside: got {beside!r}; wants 'target' or 'reference'")
    if any(getattr(run, beside) is None for run in runs.values()):
        raise ValueError("beside: got 'reference'; wants runs that were fitted with one, or 'target'")
    steps = sorted(set.intersection(*(set(run.kept) for run in runs.values())))
    if not steps:
        raise ValueError("runs: got runs without a kept step in common; wants runs of fit(..., keep=...)")
    largest = largest or (256 if len(runs) < 4 else 200)
    longest = max(max(run.output.shape[1:]) for run in runs.values())
    zoom = max(1, 300 // min(longest, largest))

    def caption(run, step):
        words = [f"step {step}", f"loss {run.loss[step]:.4f}"]
        if run.reference is not None:
            words.append(f"{measure_psnr(run.reference, run.kept[step]):.2f} dB")
        return " · ".join(words)

    cut = max(max(getattr(run, beside).shape[1:]) for run in runs.values()) > largest
    note = f"{beside}, a part of it" if cut else beside
    named = runs.items()
    part = partial(_part, largest=largest, centre=centre)
    titles = {name: name if len(runs) > 1 else beside for name in runs}
    fixed = _row([_frame(part(getattr(run, beside)), titles[name], note, zoom, QUALITIES[0]) for name, run in named])
    for quality in QUALITIES:
        moving = "".join(
            _row([_frame(part(run.kept[step]), name, caption(run, step), zoom, quality) for name, run in named])
            for step in steps
        )
        if len(fixed) + len(moving) < LARGEST_SLIDER:
            break
    identity = "dip-browse-" + hashlib.sha256((fixed + moving).encode()).hexdigest()[:12]
    script = SCRIPT.replace("ID", identity).replace("STEPS", str(steps)).replace("\n", " ")
    page = (
        f'<div id="{identity}" role="group" aria-label="Kept images, step by step">'
        f'{fixed}<div class="steps">{moving}</div></div><script>{script}</script>'
    )
    display({"text/html": page, "text/plain": f"<slider over the kept images of {', '.join(runs)}>"}, raw=True)
