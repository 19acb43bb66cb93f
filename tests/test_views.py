"""Figures, tables, live plot and slider: in a notebook, and in a script."""

import base64
import html
import io
import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

import dip_utils as dip

from .cell import cell
from .conftest import build


def fit(image, steps=4, **options):
    z = dip.random_input(2, *image.shape[1:], seed=0)
    network = build(output_channels=len(image))
    return dip.fit(network, z, image, **{"steps": steps, "device": "cpu", "keep": (0, steps)} | options)


def fit_signal(signal, steps=4, **options):
    with torch.random.fork_rng():
        layers = torch.nn.Conv1d(2, len(signal), 3, padding=1), torch.nn.Sigmoid()
    z = torch.linspace(0, 0.1, 2 * signal.shape[1]).reshape(2, -1)
    return dip.fit(torch.nn.Sequential(*layers), z, signal, steps=steps, device="cpu", keep=(0, steps), **options)


def a_run(target, outputs):
    """A run that has kept these outputs, one a step."""
    kept = dict(enumerate(outputs))
    run = dip.Fit(target, target, None, len(kept) - 1, "cpu", {}, loss=np.ones(len(kept)), kept=kept)
    run.output = outputs[-1]
    return run


@pytest.fixture
def wave():
    return torch.sin(torch.linspace(0, 20, 128))[None] / 2 + 0.5


def picture(output):
    """The pixels of a displayed PNG, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB"))


def show_everything(photograph):
    run = fit(photograph, reference=photograph, stop=dip.HoldOut(first=0))
    dip.show_images({"a": photograph, "grey": photograph[:1]})
    dip.film_strip({"a": run}, (0, 4))
    dip.plot_curves({"left": {"a": run.loss}, "right": {"b": run.psnr}}, ylabel="loss", levels={"floor": 0.1})
    dip.plot_spectra({"a": run}, (0, 4))
    dip.plot_stopping(run)
    dip.compare({"a": photograph, "b": run.output}, (0.1, 0.1, 0.5, 0.5))
    dip.plot_kernel(dip.LanczosDownsampler(3))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in their order."""
    figures = []
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, *_, **__: figures.append(canvas.figure))
    with cell():
        yield figures


def test_film_strip_says_at_which_step_a_run_was_stopped(photograph, drawn):
    whole, stopped = fit(photograph, 8), fit(photograph, 4)
    stopped.planned = 8
    for runs, expected in (
        ([whole, whole], ["step 0", "step 8", "target", "", "", ""]),
        ([whole, stopped], ["step 0", "step 8", "target", "", "stopped at 4", ""]),
        ([stopped, whole], ["step 0", "stopped at 4", "target", "", "step 8", ""]),
    ):
        dip.film_strip(dict(zip("ab", runs, strict=True)), (0, 8))
        assert [axes.get_title() for axes in drawn.pop().axes] == expected


def test_every_figure_is_a_picture_with_a_description(photograph):
    with cell() as shown:
        show_everything(photograph)
    assert len(shown.outputs) == 7
    for output in shown.outputs:
        assert picture(output).shape[1] in (960, 1100, 1500)
        assert output.data["text/plain"].startswith("<Figure 10 × ") and output.metadata["image/png"]["alt"]


# --- any number of channels, and signals


@pytest.mark.parametrize("channels", [1, 2, 4, 31])
def test_other_channels_are_shown_as_their_mean(channels):
    """In the middle of the figure, the mean of values spread evenly from 0.2 to 0.6; where there is one, its value."""
    levels = torch.linspace(0.2, 0.6, channels) if channels > 1 else torch.tensor([0.4])
    with cell() as shown:
        dip.show_images({"flat": levels[:, None, None].expand(channels, 16, 16)})
    pixels = picture(shown.outputs[0])
    assert pixels[len(pixels) // 2, pixels.shape[1] // 2].tolist() == [102, 102, 102]


def test_a_signal_is_shown_as_a_curve():
    """It is low in its first half and high in the second, and so is the ink, left and right."""
    with cell() as shown:
        dip.show_images({"step": torch.cat([torch.full((1, 50), 0.2), torch.full((1, 50), 0.8)], dim=1)})
    ink = (picture(shown.outputs[0]) != 255).any(axis=2)[60:, 60:]
    rows, columns = ink.shape
    left, right = ink[:, columns // 8 : columns * 3 // 8], ink[:, columns * 5 // 8 : columns * 7 // 8]
    assert left[rows // 2 :].any() and not left[: rows // 2].any()
    assert right[: rows // 2].any() and not right[rows // 2 :].any()


@pytest.mark.parametrize("channels", [2, 31])
def test_two_or_31_channels_are_shown_everywhere(channels, photograph):
    image = photograph.repeat(11, 1, 1)[:channels].contiguous()
    with cell() as shown:
        run = fit(image, watch=dip.LivePlot(), reference=image)
        dip.film_strip({"a": run}, (0, 4), last="reference")
        dip.compare({"a": run.output, "b": image}, (0.1, 0.1, 0.5, 0.5))
        dip.browse({"a": run})
    assert not run.remarks
    assert len(re.findall("data:image/jpeg;base64,", shown.outputs[-1].data["text/html"])) == 3


def test_signals_are_shown_in_live_plot_and_film_strip(wave):
    with cell() as shown:
        run = fit_signal(wave, watch=dip.LivePlot(), reference=wave)
        dip.film_strip({"a": run}, (0, 4))
        with pytest.raises(ValueError, match=r"output: got shape \(1, 128\); wants \(channels, height, width\)"):
            dip.browse({"output": run})
    assert not run.remarks and all("image/png" in output.data for output in shown.outputs[1:])


# --- texts find room

LONG = "natural + noise (recipe A), from another initialisation"
WIDE, HIGH = dip.uniform_noise(3, 16, 320, seed=0), dip.uniform_noise(3, 300, 4, seed=0)
SQUARE = dip.uniform_noise(3, 32, 32, seed=0)


def named(number, thing):
    return {f"{LONG}, {i}": thing for i in range(number)}


CROWDED = {
    "many long captions": lambda: dip.show_images(named(8, WIDE)),
    "grid of long captions": lambda: dip.show_images(named(20, WIDE), columns=5),
    "comparison of many": lambda: dip.compare(named(6, WIDE), (0, 0, 1, 0.1)),
    "long captions of squares": lambda: dip.show_images(named(8, SQUARE)),
    "high pictures": lambda: dip.show_images(named(3, HIGH)),
    "strip of panoramas": lambda: dip.film_strip(
        dict.fromkeys(("natural + noise", "shuffled"), a_run(WIDE, [WIDE] * 6)), range(6)
    ),
    "long names of curves": lambda: dip.plot_curves({"loss": named(6, np.arange(9))}, ylabel="loss"),
    "long titles": lambda: dip.plot_curves(named(4, {"a": np.arange(9)}), ylabel="loss"),
    "near levels": lambda: dip.plot_curves(
        {"PSNR": {"a": np.arange(20, 29)}}, ylabel="dB", levels={"blur": 27, "wavelet": 27.01, "means": 27.02, "b": 20}
    ),
    "levels at the top": lambda: dip.plot_curves(
        {"PSNR": named(12, np.arange(20, 29))}, ylabel="dB", levels={f"level {i}": 28 + i / 100 for i in range(7)}
    ),
    "prices and files": lambda: dip.show_images({"from $5 to $6, a_b^c_d": WIDE, "_DSC1.jpg": WIDE}),
}


@pytest.mark.parametrize("name", CROWDED)
def test_every_text_lies_inside_its_figure_and_none_on_another(name, drawn):
    CROWDED[name]()
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    assert max(figure.get_size_inches()) <= 30
    # Those of ticks beyond an axis are not drawn.
    ticks = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()}
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in ticks]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        inside = figure.bbox.padded(2)
        assert inside.contains(*box.min) and inside.contains(*box.max), text
    for (one, box), (other, another) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        # Lines of text are set close.
        overlap = min(box.x1, another.x1) - max(box.x0, another.x0), min(box.y1, another.y1) - max(box.y0, another.y0)
        assert min(overlap) < 2, (one, other)


def test_a_curve_below_the_minimum_does_not_turn_the_axis(drawn):
    dip.plot_curves({"mine": {"average": np.arange(20, 29)}}, ylabel="PSNR (dB)", minimum=30)
    (low, high) = drawn[0].axes[0].get_ylim()
    assert low <= 20 and high >= 28


def test_the_name_of_a_level_stands_beside_its_line(drawn):
    lines = {"five": 5.0, "far above": 500.0, "one": 1.0}
    levels = lines | {"below the minimum": 1e-3}
    dip.plot_curves({"a": {"b": np.arange(1, 9)}}, ylabel="loss", log=True, levels=levels, minimum=0.1)
    FigureCanvasAgg(drawn[0]).draw()
    (axes,) = drawn[0].axes
    assert {text.get_text() for text in axes.texts} == lines.keys()
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.y0 < axes.transData.transform((0, lines[text.get_text()]))[1] < box.y1


def test_names_are_shown_as_they_are(drawn):
    dip.show_images({"$HOME/a_b^c_d $x": WIDE})
    dip.plot_curves({"loss": {"_DSC1.jpg": np.arange(3), "b": np.arange(3)}}, ylabel="loss")
    pictures, curves = drawn
    FigureCanvasAgg(pictures).draw()
    title = pictures.axes[0].get_title()
    assert not is_math_text(title) and title.replace(r"\$", "$") == "$HOME/a_b^c_d $x"
    assert [text.get_text().strip() for text in curves.legends[0].get_texts()] == ["_DSC1.jpg", "b"]


def test_no_two_of_twelve_curves_look_alike(drawn, monkeypatch):
    looks, plot = set(), Axes.plot

    def seen(axes, *values, **style):
        looks.add((style["color"], str(style["linestyle"])))
        return plot(axes, *values, **style)

    monkeypatch.setattr(Axes, "plot", seen)
    dip.plot_curves({"loss": {f"seed {i}": np.arange(3) for i in range(12)}}, ylabel="loss")
    assert len(looks) == 12


# --- the live plot


def test_live_plot_is_one_output_that_ends_as_a_static_picture(photograph):
    names = ("first", "<b>second & last</b>")
    live = dip.LivePlot(*names)
    with cell() as shown:
        for name in names:
            run = fit(photograph)
            for run.running in (True, False):
                live.track(name)(run)
    first, *updates = shown.outputs
    assert not first.update and all(output.update for output in updates)
    assert len({output.transient["display_id"] for output in shown.outputs}) == 1
    assert {output.data["text/plain"] for output in shown.outputs} == {f"<live plot: {', '.join(names)}>"}
    # What nbval compares, the kinds but for pictures, is the same in the first output and in the last.
    assert set(first.data) == {"text/plain"} and set(updates[-1].data) == {"text/plain", "image/png"}
    pages = [output.data["text/html"] for output in updates if "text/html" in output.data]
    assert len(pages) == 2
    assert "<b>" not in pages[1] and html.escape(names[1]) in pages[1]


def test_live_plot_shows_a_fit_under_the_cell_that_runs_it(photograph):
    """IPython counts the cells; an output belongs to the cell that has displayed its id first."""
    live = dip.LivePlot("first", "second")
    with cell() as shown:
        for name in ("first", "second", "second"):
            fit(photograph, watch=live.track(name))
        get_ipython().execution_count += 1
        fit(photograph, watch=live.track("second"))
    new = [output for output in shown.outputs if not output.update]
    ids = [output.transient["display_id"] for output in shown.outputs]
    assert [output.transient["display_id"] for output in new] == list(dict.fromkeys(ids)) and len(new) == 2
    assert ids == sorted(ids, key=ids.index)


def test_live_plot_shows_all_of_every_curve(photograph, drawn):
    live = dip.LivePlot("long", "short")
    for name, steps in (("long", 9), ("short", 3)):
        fit(photograph, steps=steps, watch=live.track(name))
    assert drawn[-1].axes[0].get_xlim() == (0, 9)


def test_live_plot_redraws_within_its_share_of_the_time(photograph, monkeypatch):
    """With a clock that only we move, and the making of a picture: 80 ms each, at most 1.5 % of 20 s for all."""
    now, drawn = [0.0], []

    def slow(canvas, *arguments, make=FigureCanvasAgg.print_png, **options):
        now[0] += 0.08
        drawn.append(now[0])
        return make(canvas, *arguments, **options)

    run = fit(photograph)
    run.running = True
    monkeypatch.setattr(FigureCanvasAgg, "print_png", slow)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    live = dip.LivePlot()
    with cell() as shown:
        for _ in range(200):
            now[0] += 0.1
            live(run)
    # The first is free, and the last may overdraw.
    assert 3 <= len(drawn) <= 5
    assert len(shown.outputs) == 201


# --- the slider


def test_slider_holds_each_frame_once(photograph):
    runs = {name: fit(photograph, reference=photograph) for name in ("a", "<i>b</i>")}
    with cell() as shown:
        dip.browse(runs)
        dip.browse(runs)
    page = shown.outputs[0].data["text/html"]
    assert shown.outputs[0].data["text/plain"] == "<slider over the kept images of a, <i>b</i>>"
    assert page.count("<img ") == 2 * (1 + 2) == page.count('alt="')
    assert 'data-lm-suppress-shortcuts="true"' in page and "aria-label" in page
    assert "loss" in page and "dB" in page and "<i>" not in page
    assert shown.outputs[1].data["text/html"] == page


@pytest.mark.parametrize("factor", [1, 4])
def test_slider_shows_a_part_of_a_large_image_pixel_for_pixel(factor):
    """And of a target that is smaller, the same part."""
    large = dip.resize(dip.sample("coffee"), 300, 400)
    target = dip.resize(large, 300 // factor, 400 // factor)
    with cell() as shown:
        dip.browse({"a": a_run(target, [large, large])}, centre=(0, 1))
    page = shown.outputs[0].data["text/html"]
    data = re.findall(r'base64,([^"]+)"', page)
    assert "target, a part of it" in page and len(data) == 3
    for jpeg, whole, side in ((data[0], target, 256 // factor), (data[1], large, 256)):
        part = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))), dtype=float)
        corner = whole[:, :side, -side:].movedim(0, 2).numpy() * 255
        assert part.shape == (side, side, 3) and np.abs(part - corner).mean() < 6


def test_slider_of_twenty_steps_and_four_runs_is_below_three_megabytes():
    """With as much grain in the outputs as a run has that has begun to fit the noise."""
    photograph = dip.resize(dip.sample("astronaut"), 256, 256)
    grain = dip.add_gaussian_noise(photograph, 10 / 255, seed=0)
    blotches = dip.resize(dip.uniform_noise(3, 64, 64, seed=0), 256, 256)
    noise = dip.uniform_noise(3, 256, 256, seed=0)
    outputs = {"natural": photograph, "natural + noise": grain, "shuffled": blotches, "noise": blotches}
    runs = {name: a_run(noise, [output] * 20) for name, output in outputs.items()}
    with cell() as shown:
        dip.browse(runs)
    assert len(shown.outputs[0].data["text/html"]) < 3_000_000


# --- tables and verdicts

ROWS = [
    {"": "photograph", "share": 0.98765, "PSNR (dB)": 23.456, "steps": 1800, "stop": "≈871"},
    {"": "noise | mine", "share": -0.0001, "PSNR (dB)": np.float32(7.125), "steps": 20, "stop": None},
]


def test_table_in_a_notebook():
    with cell() as shown:
        dip.show_table(ROWS)
    assert shown.outputs[0].data["text/markdown"].splitlines() == [
        "|  | share | PSNR (dB) | steps | stop |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| photograph | 0.988 | 23.46 | 1800 | \u2060871 |",
        r"| noise \| mine | 0.000 | 7.12 | 20 | – |",
    ]


@pytest.mark.parametrize("name", ["*a* __b__", "<b>c</b>", "~~d~~ `e` | [f](g)", r"h\i \* j_k.png"])
def test_a_name_in_a_table_is_shown_as_it_is(name):
    """As nbconvert shows it."""
    with cell() as shown:
        dip.show_table([{name: name, "steps": 3}])
    page = BeautifulSoup(markdown2html_mistune(shown.outputs[0].data["text/markdown"]), "html.parser")
    assert [found.text for found in page.select("th, td")] == [name, "steps", name, "3"]


def test_table_in_a_script(capsys):
    dip.show_table(ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "              share  PSNR (dB)  steps  stop",
        "------------  -----  ---------  -----  ----",
        "photograph    0.988      23.46   1800   871",
        "noise | mine  0.000       7.12     20     –",
    ]


def test_verdict(capsys, photograph):
    dip.verdict("It holds.", True)
    dip.verdict("It fails.", False)
    dip.verdict("It was stopped.", False, [SimpleNamespace(interrupted=True), SimpleNamespace(interrupted=False)])
    assert capsys.readouterr().out.splitlines() == [
        "Verdict: It holds.",
        "NOT shown by this run: It fails.",
        "No verdict: 1 of the runs were stopped by hand.",
    ]


# --- in a script


def test_a_script_gets_files_and_lines(photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = fit(photograph, steps=3, watch=dip.LivePlot("mine"))
    progress = capsys.readouterr().err
    assert "mine: 100%" in progress and "3/3" in progress and progress.endswith("\n")
    show_everything(photograph)
    dip.browse({"a": run})
    lines = capsys.readouterr().out.splitlines()
    files = [Path(line.removeprefix("Written: ")) for line in lines]
    assert len(files) == 8 and {path.parent.name for path in files} == {"figures"}
    assert sorted(path.name for path in Path("figures").iterdir()) == [path.name for path in files]
    assert all(Image.open(path).format == "PNG" for path in files[:-1])
    assert files[-1].read_text("utf-8").count("data:image/jpeg;base64,") == 3
    assert max(map(len, lines)) < 80


def test_a_script_on_a_terminal_that_has_few_characters(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    dip.show_table([{"σ": None}])
    dip.verdict("4 × 4", True)
    terminal.flush()
    assert terminal.buffer.getvalue().decode("ascii").splitlines() == ["?", "-", "?", "Verdict: 4 ? 4"]
