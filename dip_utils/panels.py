"""Panels that need a live kernel: turn a knob, or try an image of your own.

Nothing depends on them. In the saved notebook the picture of their first state
stands in their place. Core widgets of ipywidgets 7.7 and above.
"""

import html
import tempfile
import threading
import time
from pathlib import Path

import ipywidgets
from IPython.display import display

from .figures import bundle, draw_images, png
from .images import check_image, load_image, save_image
from .widgets import DRAWING_SHARE

WIDGET = "application/vnd.jupyter.widget-view+json"


def show_panel(box, figure, text, description):
    """Show a widget, and where there is no kernel a picture in its place."""
    data, metadata = bundle(figure, text, description)
    data[WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display(data, raw=True, metadata=metadata)


def explore(function, **controls):
    """Redraw some images whenever a control is moved.

    Parameters
    ----------
    function : callable
        Takes the values of the controls by name, returns a dict of str to
        Tensor (C, H, W).
    **controls : ipywidgets.Widget
        One for each argument of `function`.
    """
    picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
    picture.alt = f"What the controls {', '.join(controls)} make"
    message = ipywidgets.HTML()

    def images():
        return function(**{name: control.value for name, control in controls.items()})

    def redraw(_):
        try:
            picture.value = png(draw_images(images()))
            message.value = ""
        except (TypeError, ValueError) as error:
            message.value = f"<b>{html.escape(str(error))}</b>"

    for name, control in controls.items():
        control.description = control.description or name
        control.observe(redraw, "value")
    figure = draw_images(images())
    picture.value = png(figure)
    box = ipywidgets.VBox([*controls.values(), message, picture])
    show_panel(box, figure, f"<panel: {', '.join(controls)}>", "First state of a panel that needs a kernel")


class OwnImagePanel:
    """Upload an image or name its path, fit to it, stop, save the result.

    Parameters
    ----------
    try_it : callable
        Takes an image (C, H, W), the number of steps and a `watch` for `fit`;
        returns the Fit.
    image : Tensor, (C, H, W)
        What the panel begins with.
    steps : int
        What the slider of steps begins with.
    """

    def __init__(self, try_it, image, *, steps):
        check_image("image", image)
        self.try_it, self.image, self.run, self.thread = try_it, image, None, None
        self.named = True
        self.stopping = threading.Event()
        wide = {"description_width": "initial"}
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="upload")
        self.path = ipywidgets.Text(description="or path", placeholder="photo.jpg", continuous_update=False, style=wide)
        self.longest = ipywidgets.IntSlider(128, 64, 512, 32, description="longest side", style=wide)
        self.steps = ipywidgets.IntSlider(steps, 10, max(2000, steps), 10, description="steps", style=wide)
        self.start = ipywidgets.Button(description="start", icon="play", button_style="primary")
        self.stop = ipywidgets.Button(description="stop", icon="stop", disabled=True)
        self.save = ipywidgets.Button(description="save as PNG", icon="save", disabled=True)
        self.message = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.picture.alt = "The image, and beside it the result so far"
        for control in (self.upload, self.path, self.longest):
            control.observe(self._choose, "value")
        self.start.on_click(self._start)
        self.stop.on_click(lambda _: self.stopping.set())
        self.save.on_click(self._save)
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.upload, self.path]),
                ipywidgets.HBox([self.longest, self.steps]),
                ipywidgets.HBox([self.start, self.stop, self.save]),
                self.message,
                self.picture,
            ]
        )
        figure = draw_images({"your image": image, "the result will stand here": image * 0 + 0.9})
        self.picture.value = png(figure)
        show_panel(self.box, figure, "<panel: your own image>", "First state of a panel that needs a kernel")

    def _choose(self, change):
        """Load what was uploaded or named last."""
        if change["owner"] is not self.longest:
            self.named = change["owner"] is self.path
        uploads = self.upload.value
        # A dict by file name before ipywidgets 8, a tuple since.
        uploads = [{"name": k} | v for k, v in uploads.items()] if isinstance(uploads, dict) else list(uploads)
        try:
            if self.named and self.path.value:
                self.image = load_image(self.path.value, longest=self.longest.value)
            elif uploads:
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / Path(uploads[-1]["name"]).name
                    file.write_bytes(bytes(uploads[-1]["content"]))
                    self.image = load_image(file, longest=self.longest.value)
            else:
                return
        except (OSError, ValueError) as error:
            self.message.value = f"<b>{html.escape(str(error))}</b>"
            return
        self.message.value = f"{self.image.shape[1]} × {self.image.shape[2]} pixels"
        self.picture.value = png(draw_images({"your image": self.image}))

    def _start(self, _):
        """Fit in a thread of its own, so that the stop button is heard."""
        if self.thread is not None and self.thread.is_alive():
            return
        self.stopping.clear()
        self.begun, self.spent = time.perf_counter(), 0.0
        self.start.disabled, self.stop.disabled, self.save.disabled = True, False, True
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    def _watch(self, run):
        if self.stopping.is_set() and run.running:
            raise KeyboardInterrupt
        before = time.perf_counter()
        # Less than `fit` allows: it goes on to call, and the stop button is heard here.
        if run.running and self.spent > DRAWING_SHARE * (before - self.begun):
            return
        pictures = {"what the fit sees": run.target, "average of the outputs": run.average}
        self.picture.value = png(draw_images(pictures, dpi=72))
        self.spent += time.perf_counter() - before
        quality = "" if run.average_psnr is None else f", {run.average_psnr[-1]:.2f} dB"
        self.message.value = f"step {run.steps} of {run.planned}, loss {run.loss[-1]:.4f}{quality}"

    def _fit(self):
        try:
            self.run = self.try_it(self.image, self.steps.value, self._watch)
            self.save.disabled = False
        except Exception as error:
            self.message.value = f"<b>{html.escape(str(error))}</b>"
        finally:
            self.start.disabled, self.stop.disabled = False, True

    def _save(self, _):
        path = Path("deep_image_prior.png").resolve()
        save_image(self.run.best.clamp(0, 1), path)
        self.message.value = f"saved as {path}"
