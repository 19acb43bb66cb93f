"""The slider over kept images: plain HTML, which works without a kernel."""

import base64
import hashlib
import html
import io

from IPython.display import display
from PIL import Image

from ..engine.checks import check_image
from ..images import crop, to_uint8
from ..metrics import psnr
from .figures import check_beside, check_shares, runs_by_name
from .page import in_notebook, write

#: JPEG qualities for the frames of a slider; the first that keeps it below the limit is taken.
QUALITIES = (90, 80, 65, 50, 35)
LARGEST_SLIDER = 1_000_000

# The script turns all contact sheets that are not sliders yet into sliders: when it
# runs, its own may be missing from the document, or be there twice. Jupyter removes the
# data attributes of sheets that are not trusted, and so they stay sheets.
SCRIPT = """
setTimeout(() => document.querySelectorAll("[data-browse]:not([data-ready])").forEach(root => {
  root.dataset.ready = 1;
  const rows = [...root.querySelector(".steps").children], last = rows.length - 1;
  const bar = document.createElement("div");
  bar.style.cssText = "width:100%;display:flex;gap:8px;align-items:center;font:13px sans-serif;margin:4px 0";
  bar.innerHTML = `<button type="button" aria-label="Play or pause">▶</button>
    <label>step <input type="range" min="0" max="${last}" value="${last}" aria-label="Step"
    style="width:280px;vertical-align:middle" data-lm-suppress-shortcuts="true"></label><output></output>`;
  const [button, , output] = bar.children, input = bar.querySelector("input");
  const move = () => {
    rows.forEach((row, i) => { row.style.display = i == input.value ? "flex" : "none"; });
    output.textContent = rows[input.value].dataset.step;
    input.setAttribute("aria-valuetext", "step " + output.textContent);
  };
  let timer = null;
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "▶"; };
  button.onclick = () => {
    if (timer) return pause();
    button.textContent = "❚❚";
    timer = setInterval(() => { input.value = (+input.value + 1) % rows.length; move(); }, 400);
  };
  input.oninput = () => { pause(); move(); };
  root.prepend(bar);
  move();
}), 0);
"""


def _part(image, shares, centre):
    """A part of an image, with its size and its middle as shares of the sides."""
    sides = image.shape[1:]
    size = [max(1, round(share * side)) for share, side in zip(shares, sides, strict=True)]
    top, left = (
        min(max(round(share * side - length / 2), 0), side - length)
        for share, side, length in zip(centre, sides, size, strict=True)
    )
    return crop(image, *size, top=top, left=left)


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


def browse(runs, *, beside="target", centre=(0.5, 0.5)):
    """A slider over the kept images of up to four runs; it works without a kernel.

    If JavaScript does not run, the same images stand one below another as a contact
    sheet. In a script, the page is written to a file.

    Parameters
    ----------
    runs : dict of str to Fit
        Runs that kept the same steps.
    beside : {"target", "reference"}
        What stands above the outputs, or of a single run beside them.
    centre : tuple of float
        If an output has a side of more than 256 pixels (200 with four runs), only a
        part is shown, pixel for pixel: its middle, as shares of height and width.
    """
    runs = runs_by_name(runs)
    if len(runs) > 4:
        raise ValueError(f"runs: got {len(runs)}; wants one to four")
    check_beside("beside", beside, runs)
    centre = check_shares("centre", centre, 2, "the middle's height and width as shares")
    steps = sorted(set.intersection(*(set(run.kept) for run in runs.values())))
    if not steps:
        raise ValueError("runs: got runs without a kept step in common; wants runs of fit(..., keep=...)")
    for name, run in runs.items():
        check_image(name, run.output, bounded=False)
    largest = 256 if len(runs) < 4 else 200
    longest = max(max(run.output.shape[1:]) for run in runs.values())
    zoom = max(1, 300 // min(longest, largest))

    def caption(run, step):
        if step is None:
            part = "a part of it" if max(run.output.shape[1:]) > largest else "all of it"
            return part if len(runs) == 1 else f"{beside}, {part}"
        quality = "" if run.reference is None else f" · {psnr(run.reference, run.kept[step]):.2f} dB"
        return f"step {step} · loss {run.loss[step]:.4g}{quality}"

    def row(step, quality):
        frames = ""
        for name, run in runs.items():
            image = getattr(run, beside) if step is None else run.kept[step]
            title = beside if step is None and len(runs) == 1 else name
            shares = [min(1, largest / side) for side in run.output.shape[1:]]
            frames += _frame(_part(image, shares, centre), title, caption(run, step), zoom, quality)
        return f'<div data-step="{step}" style="display:flex;flex-wrap:wrap;margin:0 0 6px">{frames}</div>'

    fixed = row(None, QUALITIES[0])
    for quality in QUALITIES:
        moving = "".join(row(step, quality) for step in steps)
        if len(fixed) + len(moving) < LARGEST_SLIDER:
            break
    identity = "dip-browse-" + hashlib.sha256((fixed + moving).encode()).hexdigest()[:12]
    # Of a single run the two stand side by side.
    flow = ' style="display:flex;flex-wrap:wrap"' if len(runs) == 1 else ""
    page = (
        f'<div id="{identity}" data-browse="" role="group" aria-label="Kept images, step by step"{flow}>'
        f'{fixed}<div class="steps">{moving}</div></div><script>{SCRIPT}</script>'
    )
    if not in_notebook():
        return write("slider.html", f'<!DOCTYPE html><meta charset="utf-8">{page}'.encode())
    display({"text/html": page, "text/plain": f"<slider over the kept images of {', '.join(runs)}>"}, raw=True)
