"""Everything that needs a CUDA card, in one command: `make cuda`, or `python benchmarks/cuda.py`.

Runs the tests of the CUDA path; the steps of `fit` beside the textbook loop on the
same card, in every precision and with variants of how the card is used; a whole
denoising; the three notebooks at full. Nothing is installed or fetched: what needs a
missing package (pytest, nbclient) is left out, and that is reported. Every part is a
process of its own: if one fails, the next goes on. Results: `cuda.json` and `cuda.md`,
a page to read, in `results/cuda/`, with a log of each process.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    # Not this folder: PyTorch looks for a package `cuda`, and would find this file.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

import dip_utils as dip
from benchmarks.common import NETWORKS, RESULTS, ROOT, SIGMA, about, markdown, show, write_json

FOLDER = RESULTS / "cuda"
#: Network, height, width, and the ratio over the textbook loop that is aimed at.
CASES = [("net 1", 384, 544, 5), ("net 2", 256, 256, None), ("net 2", 512, 512, 3)]
#: How a step uses the card, besides the default: `dip_utils.engine.machine.TUNING`.
DEFAULT = "as fit does it"
FORMS = {DEFAULT: {}, "NCHW": {"channels_last": False}, "no graph": {"graph": False}}


class Report:
    """The results so far, on the screen and in two files."""

    def __init__(self, minutes, dry):
        self.begun, self.limit, self.lock = time.monotonic(), 60 * minutes, threading.RLock()
        card = "none: a dry run on the CPU" if dry else torch.cuda.get_device_name()
        self.found = {"card": card, "measured on": about(), "failed": []}
        self.found |= {"parts": {}, "steps": [], "denoising": {}, "notebooks": {}}
        if not dry:
            major, minor = torch.cuda.get_device_capability()
            total = torch.cuda.get_device_properties(0).total_memory
            self.found |= {"compute capability": f"{major}.{minor}", "memory (GB)": round(total / 1e9, 1)}
            try:
                self.found["cudnn"] = torch.backends.cudnn.version()
            except RuntimeError as error:
                # It refuses cards that are too old for it.
                self.found["cudnn"] = str(error)

    def left(self):
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self.begun)

    def fail(self, part, why):
        """Note that a part has failed."""
        print(f"  FAILED: {part}: {why}", flush=True)
        with self.lock:
            self.found["failed"].append({"part": part, "why": why})
            self.write()

    def write(self):
        """Bring both files up to date."""
        with self.lock:
            write_json(FOLDER / "cuda.json", self.found)
            (FOLDER / "cuda.md").write_text("\n".join(page(self.found)) + "\n", encoding="utf-8")

    def run(self, part, command, seconds, **environment):
        """Run a part as a process; return the lines that it printed, and whether it succeeded."""
        seconds = min(seconds, self.left())
        print(f"[{time.monotonic() - self.begun:4.0f} s] {part}", flush=True)
        if seconds < 10:
            self.fail(part, "left out, there was no time for it: give it more with --minutes")
            return [], False
        log, begun = FOLDER / f"{re.sub(r'[^a-z0-9]+', '_', part.lower())}.log", time.monotonic()
        # The notebooks' kernels and pytest have to find dip_utils where it is not installed.
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path} | environment
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
            why = wait(process, log, seconds)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text("utf-8", errors="replace")).splitlines()
        if why is None and process.returncode:
            why = f"exit {process.returncode}: {error_in(lines)[:300]}"
        with self.lock:
            self.found["parts"][part] = round(time.monotonic() - begun, 1)
        if why is not None:
            self.fail(part, f"{why} (see {log.relative_to(ROOT)})")
        self.write()
        return lines, why is None


def error_in(lines):
    """The first line that names an error, which the others follow from, or the last line."""
    named = [line for line in lines if re.match(r"(E +)?[\w.]*(Error|Exception|Interrupt)\b", line)]
    return named[0] if named else (lines or ["it said nothing"])[-1]


def wait(process, log, seconds):
    """Wait for the end of a process, with a line now and then; return why it was stopped, if it was."""
    begun = said = time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        now = time.monotonic()
        if now - said > 20:
            lines = log.read_text("utf-8", errors="replace").split("\n")
            print(f"  at work for {now - begun:.0f} s: {next(filter(None, reversed(lines)), '')[:90]}", flush=True)
            said = now
        if now - begun > seconds:
            # As ■ does: a notebook writes what it has.
            process.terminate() if os.name == "nt" else process.send_signal(2)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return f"stopped after {seconds:.0f} s"
    return None


def run_tests(report):
    """The tests of the CUDA path."""
    if importlib.util.find_spec("pytest") is None:
        return report.fail("tests", "left out: pytest is not installed")
    lines, _ = report.run("tests", [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-q", "-rfE"], 150)
    report.found["tests"] = lines[-1].strip("= ") if lines else "did not run"


def run_cases(report, script, cases, labels):
    """The results of `textbook` or `one_fit` on each case, or None: in one process, or a new one after a case fails."""
    rows, last = [], None
    while len(rows) < len(cases):
        part = f"{script}, {labels[len(rows)]}" + " and so on" * (len(cases) - len(rows) > 1)
        command = [sys.executable, "-m", f"benchmarks.{script}", *map(json.dumps, cases[len(rows) :])]
        lines, well = report.run(part, command, 120 + 20 * (len(cases) - len(rows)))
        new = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        rows += new
        # If two in a row fail alike, no other case is tried.
        if well or len(rows) == len(cases) or not lines or (not new and lines[-1:] == last):
            break
        report.found["failed"][-1]["part"] = f"{script}, {labels[len(rows)]}"
        rows, last = [*rows, None], lines[-1:]
    return rows + [None] * (len(cases) - len(rows))


def compare_steps(report, sizes, options, others):
    """Time each network and size: the textbook loop, and `fit` in all forms and precisions."""
    problems = [NETWORKS[name] | options | dict(image=pictures(size)) for name, *size, _ in sizes]
    labels = [f"{name} at {height} × {width}" for name, height, width, _ in sizes]
    loops = [problem | {"steps": max(2, problem["steps"] // 4)} for problem in problems]
    plain = run_cases(report, "textbook", loops, labels)
    forms = [("auto", form) for form in FORMS] + [(precision, DEFAULT) for precision in others]
    for (name, *size, aim), problem, label, loop in zip(sizes, problems, labels, plain, strict=True):
        cases = [problem | {"precision": precision, "tuned": FORMS[form]} for precision, form in forms]
        rows = run_cases(report, "one_fit", cases, [f"{label}, {form} in {precision}" for precision, form in forms])
        for (precision, form), row in zip(forms, rows, strict=True):
            if row:
                report.found["steps"].append(step_row(name, size, precision, form, row, loop, aim))
        report.write()


def step_row(name, size, precision, form, row, plain, aim):
    """One row of the table."""
    ratio = plain and round(plain["step"] / row["step"], 2)
    return {
        "network": name,
        "size": f"{size[0]} × {size[1]}",
        "precision": row["precision"],
        "form": form,
        "textbook (ms)": plain and round(1e3 * plain["step"], 2),
        "fit (ms)": round(1e3 * row["step"], 2),
        "ratio": ratio,
        "aim": aim,
        "chosen": (precision, form) == ("auto", DEFAULT),
        "first steps (s)": row["set-up"] and round(row["set-up"], 1),
        "textbook (GB)": plain and round(plain["peak"] / 1e9, 2),
        "fit (GB)": round(row["peak"] / 1e9, 2),
        "average (dB)": round(row["average_psnr"], 2),
        "remarks": row["remarks"],
    }


def pictures(size):
    """Files of the astronaut in this size, clean and noisy."""
    (FOLDER / "pictures").mkdir(exist_ok=True)
    clean = dip.resize(dip.sample("astronaut"), *size)
    paths = [FOLDER / "pictures" / f"{kind}_{size[0]}_{size[1]}.npy" for kind in ("clean", "noisy")]
    for path, image in zip(paths, (clean, dip.add_gaussian_noise(clean, SIGMA, seed=0)), strict=True):
        np.save(path, image.numpy())
    return list(map(str, paths))


def denoise(report, side, steps, options):
    """A whole denoising: how long `fit` takes to the end, and to the quality of the textbook loop's end."""
    case = NETWORKS["net 2"] | options | dict(image=pictures((side, side)), warm=0, steps=steps)
    label = f"a denoising of {side} × {side}"
    (plain,) = run_cases(report, "textbook", [case], [label])
    (ours,) = run_cases(report, "one_fit", [case | {"levels": [plain["psnr"]] if plain else []}], [label])
    found = report.found["denoising"]
    found |= {"picture": f"astronaut, {side} × {side}, 255 σ = 25", "steps": steps}
    if plain:
        found |= {"textbook (s)": round(plain["step"] * steps, 1), "its last output (dB)": round(plain["psnr"], 2)}
    if ours:
        found |= {"fit (s), with set-up and capture": round(ours["step"] * steps, 1), "precision": ours["precision"]}
        found |= {"last output (dB)": round(ours["psnr"], 2), "average (dB)": round(ours["average_psnr"], 2)}
        reached = next(iter(ours["steps_to_levels"]), None)
        found["fit (s) to the textbook's last output"] = reached and round(ours["step"] * reached, 1)
    report.write()


def run_notebooks(report, budget):
    """The three notebooks, each with its time; side by side, since one alone leaves a card idle."""
    needed = ("nbclient", "nbformat", "nbconvert", "bs4", "ipykernel")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        return report.fail("notebooks", f"left out: {', '.join(missing)} not installed")

    def run(path):
        command = [sys.executable, "notebooks/run_all.py", path.name]
        _, well = report.run(path.stem, command, report.limit, DIP_BUDGET=budget)
        with report.lock:
            seconds = report.found["parts"].get(path.stem)
            report.found["notebooks"][path.stem] = {"budget": budget, "seconds": seconds, "well": well}
            report.write()

    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(run, paths))


def page(found):
    """The lines of the page to read."""
    yield from (f"# On {found['card']}", "")
    keys = ("compute capability", "memory (GB)", "cudnn")
    machine = [f"{key} {found[key]}" for key in keys if found.get(key)]
    yield from (", ".join([f"torch {found['measured on']['torch']}", found["measured on"]["system"], *machine]), "")
    yield from ("## What failed", "")
    yield from [f"- **{item['part']}**: {item['why']}" for item in found["failed"]] or ["Nothing so far."]
    yield from ("", "## Tests", "", found.get("tests", "did not run"), "")
    yield from ("## Steps", "")
    yield (
        "The textbook loop runs in float32, its convolutions in TF32 where the card has it (PyTorch's default); "
        "`fit` in float32 does without TF32. First steps: what they take beyond others, once; the first row "
        "loads the libraries too. The average, after so few steps, only shows that every form learns."
    )
    yield ""
    if found["steps"]:
        yield from (*markdown(printed(found["steps"])), "")
        yield from verdicts(found["steps"])
        yield from sorted({f"- {row['form']}: {remark}" for row in found["steps"] for remark in row["remarks"]})
    for title in ("denoising", "notebooks"):
        yield from ("", f"## {title.capitalize()}", "")
        for name, value in found[title].items():
            if isinstance(value, dict):
                value = f"{value['seconds']} s at {value['budget']}{'' if value['well'] else ', FAILED'}"
            yield f"- {name}: {value}"
    yield from ("", "## How long the parts took", "")
    yield from (f"- {part}: {seconds} s" for part, seconds in found["parts"].items())


def printed(rows):
    """The rows without what is shown elsewhere."""
    return [{name: value for name, value in row.items() if name not in ("aim", "remarks", "chosen")} for row in rows]


def verdicts(rows):
    """For each case: the fastest form, and whether the aim is reached."""
    for case in dict.fromkeys((row["network"], row["size"]) for row in rows):
        own = [row for row in rows if (row["network"], row["size"]) == case]
        fastest = min(own, key=lambda row: row["fit (ms)"])
        line = f"- {' at '.join(case)}: fastest is *{fastest['form']}* in {fastest['precision']}"
        line += f", {fastest['fit (ms)']} ms"
        for row in own:
            if not row["chosen"]:
                continue
            line += f"; as `fit` does it: {row['fit (ms)']} ms in {row['precision']}"
            if row["aim"] and row["ratio"]:
                reached = "reached" if row["ratio"] >= row["aim"] else "NOT reached"
                line += f"; the aim of {row['aim']} times the textbook loop is {reached} ({row['ratio']})"
        yield line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="at most that long; 10")
    parser.add_argument("--dry", action="store_true", help="the whole sequence on the CPU with tiny sizes")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("No CUDA card, or a PyTorch without CUDA. With --dry the whole sequence runs on the CPU.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = Report(arguments.minutes, arguments.dry)
    print(f"On {report.found['card']}, torch {torch.__version__}.")
    limit = f"{arguments.minutes:g} minutes"
    print(f"About 1 minute of tests, 2 of steps, 1 of denoising; then the notebooks, ended after {limit} in all.")
    options = dict(device="cuda", seed=0, precision="auto", warm=20, steps=200)
    cases, side, steps, budget = CASES, 256, 1800, "full"
    others = ["bfloat16", "float16", "float32"]
    if arguments.dry:
        options |= dict(device="cpu", warm=2, steps=8)
        cases, side, steps, budget = [("net 1", 64, 96, 5), ("net 2", 64, 64, None)], 64, 20, "smoke"
        others.remove("float16")
    elif torch.cuda.get_device_capability()[0] < 8:
        print("This card computes no bfloat16: left out. It is slower: fewer steps.")
        others.remove("bfloat16")
        options |= dict(warm=5, steps=40)
    own = str(dip.choose_precision("auto", options["device"]))[6:]
    others = [precision for precision in others if precision != own]
    try:
        run_tests(report)
        compare_steps(report, cases, options, others)
        denoise(report, side, steps, options)
        run_notebooks(report, budget)
    except KeyboardInterrupt:
        report.fail("the rest", "stopped by hand")
    if report.found["steps"]:
        show(printed(report.found["steps"]))
    failed = report.found["failed"]
    print(f"\n{FOLDER / 'cuda.md'}\n{FOLDER / 'cuda.json'}\n{len(failed)} parts failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
