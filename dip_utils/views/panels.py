"""Panels that need a live kernel: move a control, or try an image of your own.

Nothing depends on them. A saved notebook has a picture of their first state in their
place. They use the core widgets of ipywidgets 7.7 and above.
"""

import html
import itertools
import tempfile
import threading
from pathlib import Path

import ipywidgets
from IPython.display import display
from torch.nn.functional import interpolate

from ..engine.checks import check_function, check_image, check_integer
from ..engine.machine import Pace, say
from ..fitting import Fit
from ..images import load_image, save_image
from .drawing import GREY, WIDTH, in_lines, plain
from .figures import draw_images
from .live import DRAWING_SHARE
from .page import bundle, in_notebook, png, show

WIDGET = "application/vnd.jupyter.widget-view+json"


def new_picture():
    """A widget that shows the bytes of a PNG file."""
    return ipywidgets.Image(format="png", layout={"max_width": "100%"})


def bold(error):
    """The error's message as HTML, in bold."""
    return f"<b>{html.escape(str(error))}</b>"


def show_panel(box, figure, name):
    """Show a widget, and if there is no kernel a picture of its first state in its place."""
    description = "First state of a panel that needs a kernel"
    if not in_notebook():
        say("A panel needs a notebook; this is a picture of its first state.")
        return show(figure, "panel", description)
    data, metadata = bundle(figure, f"<panel: {name}>", description)
    data[WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display(data, raw=True, metadata=metadata)


def explore(function, **controls):
    """Redraw the images that a function makes whenever one of its controls, ipywidgets, is moved.

    The function takes the values of the controls by name and returns a dict of tensors (C, H, W).
    """
    check_function("function", function)
    for name, control in controls.items():
        if not isinstance(control, ipywidgets.ValueWidget):
            raise TypeError(f"{name}: got {control!r}; wants a widget, for example ipywidgets.FloatSlider()")
    picture, message = new_picture(), ipywidgets.HTML()

    def draw():
        return draw_images(function(**{name: control.value for name, control in controls.items()}))

    def redraw(_):
        try:
            picture.value = png(draw())
            message.value = ""
        # A user's function may raise anything.
        except Exception as error:
            message.value = bold(error)

    for name, control in controls.items():
        control.description = control.description or name
        control.observe(redraw, "value")
    figure = draw()
    picture.value = png(figure)
    # Without a kernel the controls are not shown.
    state = ", ".join(f"{control.description} {control.value}" for control in controls.values())
    figure.suptitle(plain(in_lines(state, WIDTH)), fontsize=9)
    show_panel(ipywidgets.VBox([*controls.values(), message, picture]), figure, ", ".join(controls))


class OwnImagePanel:
    """Upload an image or name its path, fit to it, stop, save the result.

    `try_it` takes an image (C, H, W), the number of steps and a `watch` for `fit`,
    and returns the Fit. It needs no reference, and its target may be smaller than its
    output, as for enlarging a small picture. The panel starts with the given image
    (C, H, W) and number of steps.
    """

    def __init__(self, try_it, image, *, steps):
        check_function("try_it", try_it)
        check_integer("steps", steps, 1)
        self.try_it, self.image = try_it, check_image("image", image)
        self.run, self.named = None, True
        self.stopping = threading.Event()
        wide = {"description_width": "initial"}
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="upload")
        self.path = ipywidgets.Text(description="or path", placeholder="photo.jpg", continuous_update=False, style=wide)
        self.longest = ipywidgets.IntSlider(128, 64, 512, 32, description="longest side", style=wide)
        self.steps = ipywidgets.IntSlider(steps, 1, max(2000, steps), description="steps", style=wide)
        self.start = ipywidgets.Button(description="start", icon="play", button_style="primary")
        self.stop = ipywidgets.Button(description="stop", icon="stop", disabled=True)
        self.save = ipywidgets.Button(description="save as PNG", icon="save", disabled=True)
        self.message, self.picture = ipywidgets.HTML(), new_picture()
        for control in (self.upload, self.path, self.longest):
            control.observe(self._choose, "value")
        self.start.on_click(self._start)
        self.stop.on_click(lambda _: self.stopping.set())
        self.save.on_click(self._save)
        rows = [self.upload, self.path], [self.longest, self.steps], [self.start, self.stop, self.save]
        self.box = ipywidgets.VBox([*map(ipywidgets.HBox, rows), self.message, self.picture])
        show_panel(self.box, self._show_image(), "your own image")

    def _show_image(self):
        """Show the image, as large as it will be beside the result; return the figure."""
        figure = draw_images({"your image": self.image}, columns=2)
        words = "press start (with a live kernel),\nand the result appears here"
        figure.text(0.75, 0.5, words, ha="center", color=GREY)
        self.picture.value = png(figure)
        return figure

    def _choose(self, change):
        """Load what was uploaded or named last."""
        if change["owner"] is not self.longest:
            self.named = change["owner"] is self.path
        uploads = self.upload.value
        # A dict by file name before ipywidgets 8, a tuple since.
        uploads = [{"name": k} | v for k, v in uploads.items()] if isinstance(uploads, dict) else list(uploads)
        try:
            with tempfile.TemporaryDirectory() as folder:
                if self.named and self.path.value:
                    file = self.path.value.strip(' "')
                elif uploads:
                    file = Path(folder) / Path(uploads[-1]["name"]).name
                    file.write_bytes(bytes(uploads[-1]["content"]))
                else:
                    return
                self.image = load_image(file, longest=self.longest.value)
        except (OSError, ValueError) as error:
            self.message.value = bold(error)
            return
        self.message.value = f"{self.image.shape[1]} × {self.image.shape[2]} pixels"
        self._show_image()

    def _start(self, _):
        """Fit in another thread, so that the stop button works."""
        if self.start.disabled:
            return
        self.stopping.clear()
        self.pace = Pace(DRAWING_SHARE)
        self.start.disabled, self.stop.disabled, self.save.disabled = True, False, True
        threading.Thread(target=self._fit, daemon=True).start()

    def _watch(self, run):
        if self.stopping.is_set() and run.running:
            raise KeyboardInterrupt
        if not run.running or self.pace.is_due():
            with self.pace.counted():
                seen = interpolate(run.target[None], run.result.shape[1:], mode="nearest")[0]
                self.picture.value = png(draw_images({"what the fit sees": seen, "the result": run.result}, dpi=72))
        quality = "" if run.average_psnr is None else f", {run.average_psnr[-1]:.2f} dB"
        self.message.value = f"step {run.steps} of {run.planned}, loss {run.loss[-1]:.4f}{quality}"

    def _fit(self):
        try:
            self.run = self.try_it(self.image, self.steps.value, self._watch)
            if not isinstance(self.run, Fit):
                raise TypeError(f"try_it: got one that returns {type(self.run).__name__}; wants one that returns a Fit")
            self.save.disabled = False
        except Exception as error:
            self.message.value = bold(error)
        finally:
            self.stop.disabled, self.start.disabled = True, False

    def _save(self, _):
        try:
            paths = (Path(f"deep_image_prior_{number}.png").resolve() for number in itertools.count(1))
            path = next(path for path in paths if not path.exists())
            save_image(self.run.result.clamp(0, 1), path)
        except OSError as error:
            self.message.value = bold(error)
        else:
            self.message.value = html.escape(f"saved as {path}")
