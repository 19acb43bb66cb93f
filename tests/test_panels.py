"""The panels, used as a reader does: by their controls."""

import datetime
import io
import time

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

import dip_utils as dip

from .cell import cell
from .conftest import build

WIDGET = "application/vnd.jupyter.widget-view+json"


def fit(image, steps, watch):
    z = dip.random_input(2, *image.shape[1:], seed=0)
    network = build(output_channels=len(image))
    return dip.fit(network, z, image, steps=steps, watch=watch, reference=image, device="cpu")


def enlarge(image, steps, watch):
    """The case of a small picture with no large one to compare."""
    height, width = (4 * side for side in image.shape[1:])
    z = dip.random_input(2, height, width, seed=0)
    return dip.fit(build(), z, image, operator=dip.LanczosDownsampler(4), steps=steps, watch=watch, device="cpu")


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("nothing has happened for a minute")


def click_start(panel):
    panel.start.click()
    wait_for(lambda: not panel.start.disabled)


def size(picture):
    return Image.open(io.BytesIO(picture.value)).size


def test_explore_redraws_and_leaves_a_picture(photograph):
    calls = []

    def noisy(sigma):
        calls.append(sigma)
        return {"noisy": dip.add_gaussian_noise(photograph, sigma, seed=0)}

    slider = ipywidgets.FloatSlider(0.1, min=-1, max=1)
    with cell() as shown:
        dip.explore(noisy, sigma=slider)
    (output,) = shown.outputs
    assert output.data[WIDGET]["model_id"] and output.data["image/png"]
    assert output.data["text/plain"] == "<panel: sigma>" and output.metadata["image/png"]["alt"]
    slider.value = 0.5
    slider.value = -1
    assert calls == [0.1, 0.5, -1]


def test_panel_begins_with_the_image_alone(photograph):
    """It fills the left half of the picture; in the right one stand words in grey."""
    with cell() as shown:
        panel = dip.OwnImagePanel(fit, photograph, steps=10)
    ink = np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("L")) != 255
    assert ink[:, :480].mean() > 0.8 and 0 < ink[:, 480:].mean() < 0.05
    assert shown.outputs[0].data["text/plain"] == "<panel: your own image>"


def test_panel_in_a_script_says_that_it_needs_a_notebook(photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dip.OwnImagePanel(fit, photograph, steps=10)
    said = capsys.readouterr().out
    assert "needs a notebook" in said and said.count("Written: ") == 1 == len(list(tmp_path.rglob("*.png")))


def test_panel_loads_fits_and_saves(photograph, tmp_path, monkeypatch):
    """Sides that are no multiples of anything are left as they are."""
    monkeypatch.chdir(tmp_path)
    dip.save_image(dip.resize(photograph, 37, 53), "mine.png")
    with cell():
        panel = dip.OwnImagePanel(fit, photograph, steps=10)
        panel.path.value = "nowhere.png"
        assert "no file" in panel.message.value and torch.equal(panel.image, photograph)
        panel.path.value = "mine.png"
        assert panel.image.shape == (3, 37, 53) and "37 × 53" in panel.message.value
        click_start(panel)
        assert panel.run.steps == 10 and panel.stop.disabled and "step 10 of 10" in panel.message.value
        panel.save.click()
        # Nothing is written over.
        panel.save.click()
    assert "deep_image_prior_2.png" in panel.message.value
    assert [Image.open(f"deep_image_prior_{number}.png").size for number in (1, 2)] == [(53, 37)] * 2


def test_panel_says_why_it_could_not_save(photograph, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dip_utils.views.panels.save_image", full)
    with cell():
        panel = dip.OwnImagePanel(fit, photograph, steps=10)
        click_start(panel)
        panel.save.click()
    assert panel.message.value == "<b>no space left</b>"


def test_panel_enlarges_a_small_picture_without_a_reference(photograph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cell():
        panel = dip.OwnImagePanel(enlarge, photograph, steps=10)
        click_start(panel)
        assert panel.run.reference is None and "loss" in panel.message.value and "dB" not in panel.message.value
        # Two pictures of 2 : 3 side by side, and their captions.
        width, height = size(panel.picture)
        assert width / height == pytest.approx(2 * 48 / 32, rel=0.15)
        panel.save.click()
    assert Image.open("deep_image_prior_1.png").size == (4 * 48, 4 * 32)


def test_panel_says_what_went_wrong(photograph):
    def refuse(image, steps, watch):
        raise ValueError("image: got <this>; wants that")

    with cell():
        panel = dip.OwnImagePanel(refuse, photograph, steps=10)
        click_start(panel)
    assert panel.message.value == "<b>image: got &lt;this&gt;; wants that</b>" and panel.save.disabled


def test_panel_says_that_it_got_no_run(photograph):
    with cell():
        panel = dip.OwnImagePanel(lambda *_: None, photograph, steps=5)
        assert panel.steps.value == 5
        click_start(panel)
    assert "try_it: got one that returns NoneType" in panel.message.value and panel.save.disabled


def test_explore_says_what_went_wrong():
    slider = ipywidgets.IntSlider(2, min=2, max=8)
    with cell() as shown:
        dip.explore(lambda k: {"a": torch.zeros(3, 8, 8).reshape(3, k, -1)}, k=slider)
    panel = ipywidgets.widgets.widget._instances[shown.outputs[0].data[WIDGET]["model_id"]]
    message = next(part for part in panel.children if isinstance(part, ipywidgets.HTML))
    slider.value = 7
    assert "invalid for input of size 192" in message.value
    slider.value = 4
    assert message.value == ""


class OldUpload(ipywidgets.DOMWidget):
    """The `FileUpload` of ipywidgets 7: its value is a dict by file name."""

    accept, description = traitlets.Unicode(), traitlets.Unicode()
    multiple, value = traitlets.Bool(), traitlets.Dict()


@pytest.mark.parametrize("old", [True, False], ids=["ipywidgets 7", "ipywidgets 8"])
def test_panel_takes_uploads_of_both_ipywidgets(photograph, tmp_path, monkeypatch, old):
    dip.save_image(dip.resize(photograph, 64, 96), tmp_path / "mine.png")
    content = (tmp_path / "mine.png").read_bytes()
    facts = {"type": "image/png", "size": len(content), "last_modified": datetime.datetime.now(datetime.UTC)}
    value = ({"name": "mine.png", "content": memoryview(content)} | facts,)
    if old:
        value = {"mine.png": {"content": content}}
        monkeypatch.setattr(ipywidgets, "FileUpload", OldUpload)
    with cell():
        panel = dip.OwnImagePanel(fit, torch.zeros(1, 32, 32), steps=10)
        panel.upload.value = value
        assert panel.image.shape == (3, 64, 96)
        panel.longest.value = 64
        assert panel.image.shape == (3, 43, 64)


def test_panel_stops(photograph):
    with cell():
        panel = dip.OwnImagePanel(lambda image, steps, watch: fit(image, 1_000_000, watch), photograph, steps=10)
        panel.start.click()
        wait_for(lambda: "of 1000000" in panel.message.value)
        panel.stop.click()
        wait_for(lambda: not panel.start.disabled)
    assert panel.run.interrupted and 0 < panel.run.steps < 1_000_000
