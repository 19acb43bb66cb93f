"""Shared by the benchmarks: cases, progress, runs and tables that survive a stop, processes."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import dip_utils as dip
from dip_utils.baselines import STRENGTHS

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
RESULTS = ROOT / "results"
#: Standard deviation of the noise, unless a benchmark says otherwise.
SIGMA = 25 / 255
NETWORKS = {"net 1": dip.PARAMETRIZATION, "net 2": dip.RESTORATION}
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
#: A long run is saved each time it has done this many more steps.
PIECE = 200


def square(name, side):
    """The middle of a photograph, as a small square."""
    image = dip.sample(name)
    whole = min(image.shape[1:])
    return dip.resize(dip.crop(image, whole, whole), side, side)


def restoration(size, seed, channels=3):
    """Network 2 and its z."""
    network = dip.SkipNetwork(**dip.RESTORATION, output_channels=channels, seed=seed)
    return network, dip.random_input(32, *size, seed=seed)


def by_strength(clean, noisy, method):
    """PSNR that a classical denoiser achieves with each of its strengths, a dict."""
    return {strength: dip.psnr(clean, dip.denoise(noisy, method, SIGMA, strength)) for strength in STRENGTHS[method]}


class Progress:
    """Watches a fit and prints a line every 20 seconds.

    `total` is the number of steps of the whole run if it is fitted in pieces.
    """

    def __init__(self, name, total=None):
        self.name, self.total, self.said = name, total, time.monotonic()

    def __call__(self, run):
        if not run.running or not run.steps or time.monotonic() - self.said < 20:
            return
        self.said, total, step = time.monotonic(), self.total or run.planned, run.seconds / run.steps
        quality = "" if run.average_psnr is None else f", average {run.average_psnr[-1]:.2f} dB"
        left = (total - run.steps) * step / 60
        print(
            f"{self.name}: step {run.steps} of {total}{quality}, {step:.2f} s a step, {left:.0f} min left", flush=True
        )


def complete(run):
    """Return the run; end the benchmark if it was stopped by hand or has diverged, which is no result."""
    if run.interrupted or run.diverged:
        why = "diverged" if run.diverged else "stopped; what is saved is not measured again"
        sys.exit(f"{run}: {why}")
    return run


def fit_in_pieces(saved, name, *problem, steps, **options):
    """Like `dip.fit`, in pieces, saved in one file after each; continues from that file if it exists."""
    run = dip.load_fit(saved) if saved.exists() else None
    done, watch = run.steps if run else 0, Progress(name, steps)
    while run is None or done < steps:
        run = dip.fit(*problem, steps=min(PIECE, steps - done), start=run, watch=watch, **options)
        run.save(saved)
        done = run.steps
        print(f"{name}: step {done} of {steps} saved, average {run.average_psnr[-1]:.2f} dB", flush=True)
        complete(run)
    return complete(run)


class Table:
    """Rows of results in a JSON file, written as they come. Those already there are not measured again."""

    def __init__(self, path):
        self.path, self.rows = Path(path), []
        if self.path.exists():
            self.rows = json.loads(self.path.read_text("utf-8"))["rows"]
            print(f"{len(self.rows)} results are there already: {self.path} (delete it to measure all of them anew)")

    def find(self, **key):
        """The row with these values, or None."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row):
        """Append a row and write the file, with the machine and the version that measured the last one."""
        self.rows.append(row)
        write_json(self.path, {"measured on": about(), "rows": self.rows})


def write_json(path, content):
    """Write a file that is never seen half-written."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def about():
    """The machine and the versions."""
    cpu = f"{torch.get_num_threads()} threads, {torch.cpu.get_capabilities().get('cpu_name', platform.processor())}"
    card = {"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": cpu} | card | {"system": platform.platform(), "torch": torch.__version__}


def markdown(rows):
    """The lines of a Markdown table of rows, dicts with the same keys; None is a dash."""
    cells = [["–" if value is None else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"


def show(rows):
    """Print rows as a Markdown table."""
    print(*markdown(rows), sep="\n")


def in_own_process(script, case):
    """The result of `textbook` or `one_fit` on a case, in a new process: memory and libraries start afresh."""
    command = [sys.executable, "-m", f"benchmarks.{script}", json.dumps(case)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    begun = time.monotonic()
    while True:
        try:
            printed, error = process.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            print(f"  {script}: at work for {time.monotonic() - begun:.0f} s", flush=True)
    if process.returncode:
        sys.exit(f"{script} failed:\n{error}")
    return json.loads(printed.splitlines()[-1])
