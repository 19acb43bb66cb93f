"""Execute the notebooks top to bottom, with progress: what `make run` calls."""

import argparse
import asyncio
import base64
import contextlib
import io
import os
import re
import signal
import sys
import time
import urllib.parse
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from PIL import Image

from dip_utils import choose_budget
from dip_utils.views.tables import NOT_SHOWN

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
#: Pictures of more bytes than this are stored as coarser JPEGs.
LARGE = 250_000
#: Seconds after which a cell without a live plot is reported to be still at work.
PULSE = 20
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/jpeg")
#: Width and height in pixels that the picture of a notebook's first screen may have.
MOST_PIXELS = (1100, 720)
#: How the description of the picture on each notebook's first screen begins.
FIRST_SCREENS = {
    "1_parametrization": "Film strip",
    "2_denoising": "Images side by side, each with an enlarged part",
    "3_super_resolution": "Images side by side, each with an enlarged part",
}


class Client(NotebookClient):
    """A notebook client that reports its progress."""

    said = heard = 0.0
    interrupted = False
    pulse = None

    def say(self, words, *, at_least_every=0.0):
        """Rewrite the line on a terminal; add a line now and then to a log."""
        now = time.monotonic()
        if sys.stdout.isatty():
            print(f"\r\x1b[K{words[: os.get_terminal_size().columns - 1]}", end="", flush=True)
        elif now - self.said >= at_least_every:
            print(words, flush=True)
            self.said = now

    def begin(self, cell, cell_index):
        """Say which cell begins. Let Ctrl-C end the run: nbclient's own handler would lose it."""
        self.say(f"  {self.label(cell_index)}", at_least_every=PULSE)
        self.end()
        self.pulse = asyncio.get_running_loop().create_task(self.beat(cell_index))
        # Windows has no such handlers, and raises KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError):
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            loop.add_signal_handler(signal.SIGINT, self.interrupt, task)

    async def beat(self, cell_index):
        """Report now and then that a cell without a live plot is still at work."""
        begun = time.monotonic()
        while True:
            await asyncio.sleep(PULSE / 4)
            if time.monotonic() - max(self.said, self.heard) > PULSE:
                self.say(f"  {self.label(cell_index)}: at work for {time.monotonic() - begun:.0f} s")

    def end(self, **_):
        """Stop reporting: the cell is done."""
        if self.pulse is not None:
            self.pulse.cancel()

    def interrupt(self, task):
        """End the run; nbclient will say that the kernel has died."""
        self.interrupted = True
        task.cancel()

    def process_message(self, msg, cell, cell_index):
        """Show the progress that the live plot of a fit sends along."""
        progress = msg["content"].get("metadata", {}).get("progress")
        if progress:
            # The first news after a silence is shown at once, whatever the pulse has said meanwhile.
            silent, self.heard = time.monotonic() - self.heard > PULSE, time.monotonic()
            self.say(f"  {self.label(cell_index)}: {progress}", at_least_every=0 if silent else PULSE)
        return super().process_message(msg, cell, cell_index)

    def label(self, cell_index):
        """Which cell of how many."""
        code = [index for index, cell in enumerate(self.nb.cells) if cell.cell_type == "code"]
        return f"cell {code.index(cell_index) + 1} of {len(code)}"


def execute(path):
    """Execute one notebook; return it and a list of what went wrong, including claims that do not hold."""
    # Older notebooks have no cell ids.
    notebook = nbformat.v4.upgrade(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = Client(
        notebook,
        timeout=None,
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(HERE)}},
    )
    client.on_cell_execute = client.begin
    client.on_cell_executed = client.end
    problems = []
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        problems = [str(failure)]
    except KeyboardInterrupt:
        client.interrupted = True
    if client.interrupted:
        problems = ["Interrupted: what was done so far is written."]
    client.say("")
    said = [line for output in outputs_of(notebook) for line in output.get("text", "").splitlines()]
    problems = [line for line in said if line.startswith(NOT_SHOWN)] + problems
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    for output in outputs_of(notebook):
        data = output.get("data", {})
        # A stored widget without its kernel shows as an error; its picture stays.
        data.pop(WIDGET, None)
        if "image/png" in data:
            pack(output)
    return notebook, problems


def outputs_of(notebook):
    """All outputs of a notebook, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def encoded(picture, kind, **options):
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pack(output):
    """Store a picture in fewer bytes: the same pixels, or a fine JPEG if photographs or noise fill it.

    PNG cannot compress noise, and GitHub does not show notebooks of too many megabytes.
    """
    drawn = Image.open(io.BytesIO(base64.b64decode(output.data.pop("image/png")))).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    about = output.metadata.pop("image/png", {})
    # The JPEG is not optimised: Pillow would fail for pictures full of noise.
    exact, photograph = encoded(picture, "png", optimize=True), encoded(picture, "jpeg", quality=93, subsampling=0)
    if len(photograph) > LARGE:
        photograph = encoded(picture, "jpeg", quality=85, subsampling=0)
    kind, file = ("image/jpeg", photograph) if len(photograph) < 2 / 3 * len(exact) else ("image/png", exact)
    output.data[kind] = base64.b64encode(file).decode()
    output.metadata[kind] = about


def picture_of(output):
    """The type of an output's picture, or None, and its description."""
    kind = next((kind for kind in PICTURES if kind in output.get("data", {})), None)
    return kind, output.get("metadata", {}).get(kind, {}).get("alt", "")


def finish_page(page, notebook):
    """Correct what nbconvert's template gets wrong.

    It drops our alternative texts, unfolds folded cells, does not embed the pictures
    in the text, and loads from the network renderers of formulas and widgets, which
    our notebooks do not need.
    """
    soup = BeautifulSoup(page, "html.parser")
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source and cell.metadata.get("jupyter", {}).get("source_hidden"):
            fold = soup.find(id=f"cell-id={cell.id}").select_one(".jp-Cell-inputWrapper").wrap(soup.new_tag("details"))
            title = soup.new_tag("summary", style="font: 14px sans-serif; margin-left: 5em")
            title.string = cell.source.splitlines()[0].lstrip("# ").removeprefix("@title ")
            fold.insert(0, title)
    for script in soup.find_all("script"):
        if "://" in str(script) or "MathJax" in str(script):
            script.decompose()
    for picture in soup.select(".jp-MarkdownOutput img"):
        source = picture.get("src", "")
        # nbconvert embeds no files from outside the notebook's folder.
        file = HERE / urllib.parse.unquote(source)
        if "://" in source:
            picture.replace_with(picture.get("alt", ""))
        elif not source.startswith("data:") and file.is_file():
            picture["src"] = f"data:image/{file.suffix[1:]};base64,{base64.b64encode(file.read_bytes()).decode()}"
    described = {}
    for output in outputs_of(notebook):
        kind, description = picture_of(output)
        if kind:
            described[output.data[kind].strip()] = description
    # The sliders' pictures have theirs already.
    for picture in soup.select(".jp-RenderedImage img"):
        picture["alt"] = described.get(picture["src"].partition(",")[2].strip(), "")
    return str(soup)


def write(notebook, path):
    """Write the notebook, and an HTML page beside it, and return their paths."""
    nbformat.write(notebook, path)
    page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    html = RESULTS / f"{path.stem}.html"
    html.write_text(finish_page(page, notebook), encoding="utf-8")
    return [path, html]


def write_first_screens():
    """Take the picture of each first screen, which README shows too, from the outputs of the notebook."""
    for name, beginning in FIRST_SCREENS.items():
        for output in outputs_of(nbformat.read(HERE / f"{name}.ipynb", as_version=4)):
            kind, description = picture_of(output)
            if kind and description.startswith(beginning):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data[kind]))).convert("RGB")
                picture.thumbnail(MOST_PIXELS, Image.Resampling.LANCZOS)
                (HERE.parent / "images" / f"{name}.jpg").write_bytes(encoded(picture, "jpeg", quality=90))
                break
        else:
            sys.exit(f"{name}.ipynb: there is no picture whose description begins with {beginning!r}")


def set_address(address):
    """Write the repository's public address everywhere it stands."""
    root = HERE.parent
    project = root / "pyproject.toml"
    old = next(line for line in project.read_text("utf-8").splitlines() if line.startswith("Repository = "))
    old = old.split('"')[1]
    short = [text.removeprefix("https://github.com/") for text in (old, address.rstrip("/"))]
    for path in [project, root / "README.md", *sorted(HERE.glob("*.ipynb"))]:
        path.write_text(path.read_text("utf-8").replace(*short), encoding="utf-8")


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", action="store_true", help="execute in place; refused unless the budget is full")
    parser.add_argument("--address", metavar="URL", help="write the repository's public address everywhere, and end")
    parser.add_argument(
        "--pictures", action="store_true", help="take the first screens' pictures from the outputs, and end"
    )
    parser.add_argument("names", nargs="*", help="parts of the names of notebooks; all of them without it")
    arguments = parser.parse_args()
    if arguments.address is not None:
        if not re.fullmatch(r"https://github\.com/[\w-]+/[\w-][\w.-]*?/?(?<!\.git)", arguments.address):
            parser.error(f"--address: got {arguments.address!r}; wants https://github.com/OWNER/REPOSITORY")
        return set_address(arguments.address)
    if arguments.pictures:
        return write_first_screens()
    budget = choose_budget()
    if arguments.publish and budget != "full":
        parser.error(f"--publish: the budget is {budget!r}; wants DIP_BUDGET=full")
    RESULTS.mkdir(exist_ok=True)
    paths = [
        path
        for path in sorted(HERE.glob("*.ipynb"))
        if not arguments.names or any(n in path.name for n in arguments.names)
    ]
    if not paths:
        parser.error(f"names: got {' '.join(arguments.names)}; wants parts of the names of the notebooks")
    written, failed = [], []
    for number, path in enumerate(paths, 1):
        begun = time.monotonic()
        print(f"[{number}/{len(paths)}] {path.name} at the {budget} budget", flush=True)
        notebook, problems = execute(path)
        written += write(notebook, path if arguments.publish and not problems else RESULTS / path.name)
        print(f"  {'failed' if problems else 'done'} after {time.monotonic() - begun:.0f} s", flush=True)
        if problems:
            failed.append(path.name)
            print(*problems, sep="\n", file=sys.stderr, flush=True)
        if problems and problems[-1].startswith("Interrupted"):
            break
    print("\nWritten:", *written, sep="\n  ")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
