import base64
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

import dip_utils as dip

from .conftest import build


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as pairs of data and metadata."""
    seen = []

    class Handle:
        def update(self, data, raw, metadata):
            seen.append((data, metadata))

    def display(data, raw=True, metadata=None, display_id=None):
        seen.append((data, metadata))
        return Handle()

    for module in ("figures", "widgets", "panels"):
        monkeypatch.setattr(f"dip_utils.{module}.display", display)
    return seen


def fit(image, steps, watch):
    z = dip.random_input(2, *image.shape[1:], seed=0)
    return dip.fit(build(), z, image, steps=steps, watch=watch, reference=image, keep=(0, steps), device="cpu")


def test_every_figure_is_a_picture_with_a_description(shown, photograph):
    run = fit(photograph, 4, None)
    dip.show_images({"a": photograph, "grey": photograph[:1]})
    dip.film_strip({"a": run}, (0, 4))
    dip.plot_curves({"left": {"a": run.loss}, "right": {"b": run.psnr}}, ylabel="loss", levels={"left": {"floor": 0.1}})
    dip.compare({"a": photograph, "b": run.output}, (0.1, 0.1, 0.5, 0.5))
    dip.plot_kernel(dip.LanczosDownsampler(3).kernel, dip.lanczos, factor=3)
    assert len(shown) == 5
    for data, metadata in shown:
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
        assert data["text/plain"].startswith("<Figure 10 × ") and metadata["image/png"]["alt"]


def test_live_plot_ends_as_a_static_picture_under_one_phrase(shown, photograph, monkeypatch):
    monkeypatch.setattr("dip_utils.guarding.WATCH_SHARE", 1.0)
    live = dip.LivePlot("first", "second")
    for name in ("first", "second"):
        fit(photograph, 500, live.track(name))
    kinds = [set(data) for data, _ in shown]
    assert kinds[0] == kinds[-1] == {"image/png", "text/plain"}
    assert {"image/png", "text/plain", "text/html"} in kinds
    assert {data["text/plain"] for data, _ in shown} == {"<live plot: first, second>"}
    assert "progress" in shown[1][1] and "progress" not in shown[-1][1]


def test_live_plot_redraws_within_its_share_of_the_time(shown, photograph, monkeypatch):
    """Counted, not timed: with a clock that only drawing moves, there is one picture and then none."""
    now = [0.0]
    monkeypatch.setattr("dip_utils.widgets.time.perf_counter", lambda: now[0])
    live = dip.LivePlot()
    drawn = []

    def draw(name, run, original=live._draw):
        now[0] += 0.08
        drawn.append(now[0])
        return original(name, run)

    monkeypatch.setattr(live, "_draw", draw)
    run = fit(photograph, 2, None)
    run.running = True
    for _ in range(200):
        now[0] += 0.1
        live(run)
    # 80 ms a picture out of 20 s: 1.5 % of them are 0.3 s, plus the one that overdraws.
    assert 1 <= len(drawn) <= 5


def test_slider_holds_each_frame_once(shown, photograph):
    runs = {name: fit(photograph, 4, None) for name in ("a", "b")}
    dip.browse(runs)
    ((data, _),) = shown
    page = data["text/html"]
    assert data["text/plain"] == "<slider over the kept images of a, b>"
    assert page.count("<img ") == 2 * (1 + 2) == page.count('alt="')
    assert 'data-lm-suppress-shortcuts="true"' in page and "aria-label" in page
    assert "loss" in page and "dB" in page
    again = dip.browse(runs) or shown[-1][0]["text/html"]
    assert again == page


def test_slider_of_twenty_steps_and_four_runs_is_below_three_megabytes(shown):
    """With as much grain in the outputs as a run has that has begun to fit the noise."""
    photograph = dip.resize(dip.sample("astronaut"), 256, 256)
    grain = dip.add_gaussian_noise(photograph, 10 / 255, seed=0)
    blotches = dip.resize(dip.uniform_noise(3, 64, 64, seed=0), 256, 256)
    noise = dip.uniform_noise(3, 256, 256, seed=0)
    outputs = {"natural": photograph, "natural + noise": grain, "shuffled": blotches, "noise": blotches}
    runs = {}
    for name, output in outputs.items():
        runs[name] = fit(torch.zeros(3, 32, 32), 20, None)
        runs[name].kept, runs[name].target, runs[name].reference = dict.fromkeys(range(20), output), noise, None
    dip.browse(runs)
    assert len(shown[0][0]["text/html"]) < 3_000_000


def test_explore_redraws_and_leaves_a_picture(shown, photograph):
    calls = []

    def noisy(sigma):
        calls.append(sigma)
        return {"noisy": dip.add_gaussian_noise(photograph, sigma, seed=0)}

    slider = ipywidgets.FloatSlider(0.1, min=-1, max=1)
    dip.explore(noisy, sigma=slider)
    slider.value = 0.5
    assert calls == [0.1, 0.5]
    data, metadata = shown[0]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert data["text/plain"] == "<panel: sigma>" and data["image/png"] and metadata["image/png"]["alt"]
    slider.value = -1
    assert calls[-1] == -1


def test_own_image_panel_loads_fits_and_saves(shown, photograph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dip.save_image(dip.resize(photograph, 64, 96), "mine.png")
    panel = dip.OwnImagePanel(fit, photograph, steps=10)
    panel.path.value = "nowhere.png"
    assert "no file" in panel.message.value and panel.image is photograph
    panel.path.value = "mine.png"
    assert panel.image.shape == (3, 64, 96)
    panel._start(None)
    panel.thread.join()
    assert panel.run.steps == 10 and not panel.start.disabled and panel.stop.disabled
    panel._save(None)
    assert Image.open("deep_image_prior.png").size == (96, 64)


def test_own_image_panel_takes_uploads_of_both_ipywidgets(shown, photograph, tmp_path):
    dip.save_image(dip.resize(photograph, 64, 96), tmp_path / "mine.png")
    content = (tmp_path / "mine.png").read_bytes()
    panel = dip.OwnImagePanel(fit, photograph, steps=10)

    for value in ({"mine.png": {"content": content}}, ({"name": "mine.png", "content": memoryview(content)},)):
        panel.image, panel.upload = photograph, SimpleNamespace(value=value)
        panel._choose({"owner": panel.upload})
        assert panel.image.shape == (3, 64, 96)


def test_own_image_panel_stops(shown, photograph, monkeypatch):
    monkeypatch.setattr("dip_utils.guarding.WATCH_SHARE", 1.0)
    panel = dip.OwnImagePanel(lambda image, steps, watch: fit(image, 100_000, watch), photograph, steps=10)
    panel._start(None)
    panel.stopping.set()
    panel.thread.join(60)
    assert panel.run.interrupted and 0 < panel.run.steps < 100_000 and np.isfinite(panel.run.loss).all()
