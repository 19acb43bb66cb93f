"""The notebooks in JupyterLab and in a browser, as a reader meets them.

One JupyterLab server and one headless Chromium serve all tests; each notebook
is executed at the smoke budget, and a second time in the same kernel. Screenshots are in results/screenshots.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Error, expect, sync_playwright

from notebooks import run_all

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
SCREENSHOTS = ROOT / "results" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEW = {"width": 1280, "height": 900}
#: Seconds that a whole notebook may take at the smoke budget.
LONGEST_RUN = 480

#: A fit that nobody waits for, and what must follow it.
STOP = [
    """\
import dip_utils as dip
image = dip.resize(dip.sample("chelsea"), 64, 64)
z = dip.random_input(2, 64, 64, seed=0)
network = dip.SkipNetwork(2, (4, 6), (2, 0), 3, seed=0)""",
    "run = dip.fit(network, z, image, steps=1_000_000, watch=dip.LivePlot())",
    "print('the next cell:', run.interrupted)",
    "print('the last cell')",
]

PANELS = [
    """\
import dip_utils as dip, ipywidgets
image = dip.resize(dip.sample("chelsea"), 64, 96)
def noisy(sigma, name):
    return {"clean": image, name: dip.add_gaussian_noise(image, sigma, seed=0)}
sigma = ipywidgets.FloatSlider(0.1, min=0, max=1)
dip.explore(noisy, sigma=sigma, name=ipywidgets.ToggleButtons(options=["first", "second"]))""",
    """\
def try_it(image, steps, watch):
    network = dip.SkipNetwork(2, (4, 6), (2, 0), len(image), seed=0)
    return dip.fit(network, dip.random_input(2, *image.shape[1:], seed=0), image, steps=1_000_000, watch=watch)
panel = dip.OwnImagePanel(try_it, image, steps=400)""",
]

# What the tests ask the page. Pictures scrolled out of sight count as visible.
VISIBLE = "root => [...root.querySelectorAll('img')].filter(i => i.checkVisibility()).map(i => i.src)"
BROKEN = "() => [...document.images].filter(i => i.src.startsWith('data:') && !(i.complete && i.naturalWidth)).length"
# Every cell has been executed, and after the cell of that number; or one has failed.
FINISHED = """before => {
  if (document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')) return true;
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => p.textContent.trim());
  return prompts.length && prompts.every(text => /^\\[\\d+\\]:$/.test(text) && parseInt(text.slice(1)) > before);
}"""
# Contrast, as WCAG defines it, of an element's text against the first opaque background behind it.
CONTRAST = """element => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  const transparent = node => { const c = channels(getComputedStyle(node).backgroundColor); return c[3] === 0; };
  while (behind.parentElement && transparent(behind)) behind = behind.parentElement;
  const both = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
    .map(channels).map(luminance).sort((a, b) => a - b);
  return (both[1] + 0.05) / (both[0] + 0.05);
}"""


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("no chromium, chromium-browser or google-chrome on this machine")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Lab:
    """A JupyterLab server with the notebooks in a folder of its own."""

    def __init__(self, folder, browser):
        self.root = folder / "notebooks"
        self.root.mkdir()
        shutil.copytree(ROOT / "images", folder / "images")
        # Two tables show what was measured on the report's own pictures.
        (folder / "benchmarks").mkdir()
        shutil.copy(ROOT / "benchmarks" / "report_images.json", folder / "benchmarks")
        for name in NAMES:
            notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            self.write(name, notebook)
        # The pop-up that asks for news would cover the page.
        settings = folder / "config" / "labconfig"
        settings.mkdir(parents=True)
        off = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
        (settings / "page_config.json").write_text(json.dumps(off))
        self.environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {
            "DIP_BUDGET": "smoke",
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "IPYTHONDIR": str(folder / "ipython"),
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
        options += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"]
        options += ["--no-browser", "--allow-root"]
        with open(folder / "log", "w") as log:
            command = [sys.executable, "-m", "jupyterlab", *options]
            self.server = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.context = browser.new_context(viewport=VIEW)
        self.context.route(lambda url: urlsplit(url).hostname != "127.0.0.1", lambda route: route.abort())
        for _ in range(300):
            try:
                self.api("GET", "/api/status")
                return
            except urllib.error.URLError:
                assert self.server.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        pytest.fail("JupyterLab did not start within a minute")

    def close(self):
        self.context.close()
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()

    def api(self, method, path, data=None):
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=data and json.dumps(data).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def write(self, name, notebook):
        nbformat.write(notebook, self.root / f"{name}.ipynb")

    def read(self, name):
        return nbformat.read(self.root / f"{name}.ipynb", as_version=4)

    def trust(self, path):
        command = [sys.executable, "-m", "jupyter", "trust", str(path)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def open(self, name):
        page = self.context.new_page()
        page.goto(f"{self.url}/lab/tree/{name}.ipynb?reset&token={self.token}")
        expect(page.locator(".jp-Notebook")).to_be_visible(timeout=60_000)
        return page

    def open_without_kernel(self, name):
        """Open a notebook whose kernel is not installed here; choose none."""
        page = self.open(name)
        dialog = page.locator(".jp-Dialog")
        dialog.locator("select").select_option(label="No Kernel")
        dialog.locator("button.jp-mod-accept").click()
        expect(dialog).to_have_count(0)
        expect(page.locator("#jp-main-statusbar")).to_contain_text("No Kernel")
        return page

    def shut_kernels_down(self):
        for session in self.api("GET", "/api/sessions"):
            self.api("DELETE", f"/api/sessions/{session['id']}")


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"), browser)
    yield lab
    lab.close()


def idle(page, seconds=60):
    """Wait for the status bar: the circle in the toolbar is idle before there is a kernel."""
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=1000 * seconds)


def run_all_cells(page):
    idle(page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def wait_until_finished(page, seconds, before=0):
    page.wait_for_function(FINISHED, arg=before, timeout=1000 * seconds, polling=500)
    idle(page)


def save(page, lab, name):
    before = (lab.root / f"{name}.ipynb").stat().st_mtime_ns
    # In command mode; a focused slider keeps all keys to itself.
    page.locator(".jp-Notebook .jp-InputArea-prompt").first.click()
    page.keyboard.press("Control+s")
    for _ in range(300):
        if (lab.root / f"{name}.ipynb").stat().st_mtime_ns != before:
            # The server writes in place: what is read meanwhile is not JSON yet.
            with contextlib.suppress(ValueError):
                return lab.read(name)
        page.wait_for_timeout(100)
    pytest.fail("Ctrl+S did not save the notebook within half a minute")


def settle(element):
    """Bring the element into view and wait until it stays there: pictures above it arrive late."""
    before = None
    for _ in range(50):
        # A live plot puts another in its place; the locator finds that one at the next look.
        with contextlib.suppress(Error):
            element.scroll_into_view_if_needed(timeout=2000)
            box = element.bounding_box(timeout=2000)
            if box and box == before:
                return
            before = box
        element.page.wait_for_timeout(200)
    pytest.fail("the page's layout did not come to rest")


def screenshot(page, name, element=None):
    if element is not None:
        settle(element)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def outputs(notebook, kind=None):
    found = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    return [o for o in found if kind in o.get("data", {})] if kind else found


def frames(notebook):
    """All `src` of the slider in the file, and the number of the runs that it shows."""
    (page,) = [o.data["text/html"] for o in outputs(notebook, "text/html") if "dip-browse-" in o.data["text/html"]]
    fixed = page.split('<div class="steps">')[0]
    return re.findall(r'src="([^"]+)"', page), fixed.count("<img")


def check_slider(page):
    """Move it with the mouse and the arrow keys, and play it."""
    root = page.locator("[id^=dip-browse-]")
    slider = root.locator("input[type=range]")
    expect(slider).to_be_visible()
    settle(slider)
    last = int(slider.get_attribute("max"))
    assert int(slider.input_value()) == last >= 3
    runs = root.locator(":scope > div:not(.steps) img").count()

    def visible():
        return root.evaluate(VISIBLE)

    seen = [visible()]
    box = slider.bounding_box()
    right, centre = ({"x": x, "y": box["height"] / 2} for x in (box["width"] - 8, box["width"] / 2))
    slider.drag_to(slider, source_position=right, target_position=centre)
    middle = int(slider.input_value())
    assert 0 < middle < last
    seen.append(visible())
    # The targets stay, each output is replaced by another.
    assert [len(sources) for sources in seen] == [2 * runs, 2 * runs]
    assert seen[0][:runs] == seen[1][:runs]
    assert not set(seen[0][runs:]) & set(seen[1][runs:])

    # JupyterLab would take the keys for itself and go to another cell.
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert int(slider.input_value()) == middle + 1
    assert visible() not in seen
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert int(slider.input_value()) == middle - 1
    expect(slider).to_be_focused()
    step = slider.get_attribute("aria-valuetext")
    assert step == f"step {root.locator('output').inner_text()}"

    button = root.get_by_role("button", name="Play or pause")
    button.click()
    expect(slider).not_to_have_value(str(middle - 1), timeout=30_000)
    button.click()
    held = slider.input_value()
    page.wait_for_timeout(900)
    assert slider.input_value() == held


def check_contact_sheet(page, notebook):
    """No script has run, and all frames are visible."""
    sources, runs = frames(notebook)
    expect(page.locator("img[src^='data:image/jpeg']")).to_have_count(len(sources))
    page.wait_for_timeout(300)
    assert page.locator("input[type=range]").count() == 0
    shown = page.locator("body").evaluate(VISIBLE)
    assert len(sources) > 2 * runs
    assert not [source[:60] for source in sources if source not in shown]
    assert page.evaluate(BROKEN) == 0


# Each notebook with all its tests goes to one worker.
@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES])
def ran(request, lab):
    """A notebook in JupyterLab after Run All Cells, and the file as it was saved."""
    name = request.param
    page = lab.open(name)
    run_all_cells(page)
    wait_until_finished(page, LONGEST_RUN)
    screenshot(page, f"{name}, end")
    yield name, page, save(page, lab, name)
    page.close()
    lab.shut_kernels_down()


def elsewhere(lab, notebook, name):
    """The notebook as a file from another machine: another signature, another kernel."""
    notebook = nbformat.from_dict(notebook)
    # Another language too: JupyterLab would start a kernel of the same language unasked.
    notebook.metadata.kernelspec = {"name": "elsewhere", "display_name": name}
    notebook.metadata.language_info = {"name": "elsewhere"}
    lab.write(name, notebook)
    return lab.root / f"{name}.ipynb"


def test_runs_without_errors_and_is_saved(ran):
    _, page, saved = ran
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [o for o in outputs(saved) if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert page.locator(".jp-OutputArea [data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.evaluate(BROKEN) == 0
    assert verdicts(saved)


def test_slider_in_jupyterlab(ran):
    name, page, _ = ran
    check_slider(page)
    screenshot(page, f"{name}, slider", page.locator("[id^=dip-browse-] output"))


def test_slider_reopened_without_kernel(ran, lab):
    name, _, saved = ran
    path = elsewhere(lab, saved, f"{name}-trusted")
    lab.trust(path)
    page = lab.open_without_kernel(path.stem)
    check_slider(page)
    screenshot(page, f"{name}, no kernel", page.locator("[id^=dip-browse-] output"))
    page.close()


def test_contact_sheet_in_untrusted_notebook(ran, lab):
    name, _, saved = ran
    path = elsewhere(lab, saved, f"{name}-untrusted")
    page = lab.open_without_kernel(path.stem)
    check_contact_sheet(page, saved)
    screenshot(page, f"{name}, untrusted", page.locator(f"img[src='{frames(saved)[0][-1]}']"))
    page.close()


@pytest.fixture
def exported(ran, tmp_path, monkeypatch):
    """The page that `make run` writes."""
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    name, _, saved = ran
    _, page = run_all.write(saved, tmp_path / f"{name}.ipynb")
    return page


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_exported_page_offline(ran, exported, browser, scripts):
    name, _, saved = ran
    context = browser.new_context(viewport=VIEW, java_script_enabled=scripts, offline=True)
    context.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
    page = context.new_page()
    page.goto(exported.as_uri(), wait_until="domcontentloaded")
    if scripts:
        check_slider(page)
    else:
        check_contact_sheet(page, saved)
    shown = page.locator("body").evaluate(VISIBLE)
    for output in outputs(saved, "image/png"):
        assert "data:image/png;base64," + output.data["image/png"].replace("\n", "") in shown
    page.screenshot(path=SCREENSHOTS / f"{name}, page, {'' if scripts else 'no '}scripts.png", full_page=True)
    context.close()


def verdicts(notebook):
    """The claims that held; one that fails is an error instead."""
    printed = "".join(output.get("text", "") for output in outputs(notebook))
    return [line for line in printed.splitlines() if line.startswith("Verdict: ")]


# The last of those that share a notebook: it puts other outputs in the place of the first.
def test_a_second_run_all_in_the_same_kernel_says_the_same(ran, lab):
    name, page, saved = ran
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    run_all_cells(page)
    wait_until_finished(page, LONGEST_RUN, before=len(code))
    again = save(page, lab, name)
    counts = [cell.execution_count for cell in again.cells if cell.cell_type == "code"]
    assert counts == list(range(len(code) + 1, 2 * len(code) + 1))
    assert [o for o in outputs(again) if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert verdicts(again) == verdicts(saved) != []


def test_stop_button(lab):
    notebook = new_notebook(cells=[new_code_cell(source) for source in STOP])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    lab.write("stop", notebook)
    page = lab.open("stop")
    run_all_cells(page)
    # The progress line of the live plot: the fit is under way.
    expect(page.locator(".jp-OutputArea pre", has_text="steps/s")).to_be_visible(timeout=60_000)
    screenshot(page, "stop, during the fit", page.locator(".jp-OutputArea img"))
    page.locator("[data-command='notebook:interrupt-kernel']").click()
    wait_until_finished(page, 60)
    screenshot(page, "stop, after it")
    saved = save(page, lab, "stop")
    assert [cell.execution_count for cell in saved.cells] == [1, 2, 3, 4]
    assert "error" not in [output.output_type for output in outputs(saved)]
    said = "".join(output.get("text", "") for output in outputs(saved))
    assert re.search(r"^Stopped by hand at step \d+ of 1000000; ", said, re.MULTILINE)
    assert said.endswith("the next cell: True\nthe last cell\n")
    page.close()
    lab.shut_kernels_down()


def test_panels(lab):
    """A knob redraws; a fit is started, stopped and saved, while the kernel stays idle."""
    notebook = new_notebook(cells=[new_code_cell(source) for source in PANELS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    lab.write("panels", notebook)
    page = lab.open("panels")
    run_all_cells(page)
    wait_until_finished(page, 60)
    picture = page.locator("img.widget-image").first
    before = picture.get_attribute("src")
    page.get_by_role("button", name="second", exact=True).click()
    expect(picture).not_to_have_attribute("src", before, timeout=30_000)

    def button(title):
        return page.locator(f"button.jupyter-button[title='{title}']")

    button("start").click()
    message = page.locator(".widget-html", has_text="step").last
    expect(message).to_contain_text("of 1000000", timeout=30_000)
    screenshot(page, "panels", button("stop"))
    button("stop").click()
    expect(button("start")).to_be_enabled(timeout=30_000)
    button("save as PNG").click()
    expect(page.locator(".widget-html").last).to_contain_text("saved as", timeout=10_000)
    assert (lab.root / "deep_image_prior_1.png").stat().st_size > 0
    page.close()
    lab.shut_kernels_down()


@pytest.mark.xdist_group(NAMES[0])
def test_legible_in_the_dark_theme(lab):
    """The text of the slider, on a saved notebook, without a kernel."""
    source = lab.read(NAMES[0])
    if not outputs(source):
        pytest.skip("needs the notebook that the tests above have executed")
    path = elsewhere(lab, source, "dark")
    lab.trust(path)
    theme = "/lab/api/settings/@jupyterlab/apputils-extension:themes"
    lab.api("PUT", theme, {"raw": json.dumps({"theme": "JupyterLab Dark"})})
    page = lab.open_without_kernel("dark")
    expect(page.locator("body[data-jp-theme-light=false]")).to_be_attached()
    root = page.locator("[id^=dip-browse-]")
    expect(root.locator("output")).to_be_visible()
    for element in root.locator("figcaption, output, label").all():
        assert element.evaluate(CONTRAST) > 4.5
    screenshot(page, "dark, slider", root.locator("output"))
    screenshot(page, "dark, figure", page.locator(".jp-RenderedImage img").nth(1))
    page.close()
