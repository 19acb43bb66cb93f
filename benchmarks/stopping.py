"""When to stop, on each of four photographs at three noise levels and on a grey one stored as RGB; `make stopping`.

For each a run without a stop: network 2, 96 × 96 pixels, 1600 steps; as many at a
time as there are cores, each on one. The held-out error is computed on the way,
the two variances from the run's trace. Printed are the step at which the average
is best (the oracle, which sees the clean image), the step that each criterion
chooses, and how much worse the average, and the last output, are there than at
their best. The last output jumps from step to step: its PSNR is the median over
the last 25 steps.
"""

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import scipy.ndimage
import torch

import dip_utils as dip

from .common import HERE, PHOTOGRAPHS, Progress, Table, complete, restoration, show, square

SIDE, STEPS = 96, 1600
GREY = "astronaut in grey, as RGB"
#: Photograph and noise level, 255 σ.
CASES = [(name, sigma) for sigma, name in itertools.product((15, 25, 50), PHOTOGRAPHS)] + [(GREY, 25)]


def images(name, sigma):
    """The clean image and the noisy one; of a grey picture stored as RGB all three channels have the same noise."""
    if name == GREY:
        grey = square("astronaut", SIDE).mean(0, keepdim=True)
        return grey.repeat(3, 1, 1), dip.add_gaussian_noise(grey, sigma / 255, seed=0).repeat(3, 1, 1)
    clean = square(name, SIDE)
    return clean, dip.add_gaussian_noise(clean, sigma / 255, seed=0)


def measure(name, sigma):
    """One row: what each criterion chooses on one run, beside the best."""
    torch.set_num_threads(1)
    clean, noisy = images(name, sigma)
    network, z = restoration((SIDE, SIDE), seed=0)
    run = complete(dip.fit(
        network, z, noisy, steps=STEPS, reference=clean, stop=dip.HoldOut(patience=None), trace=2048,
        watch=Progress(f"{name}, 255 σ = {sigma}"),
    ))  # fmt: skip
    default = dip.HoldOut()
    choices = {
        "hold-out": dip.choose_step(run.held_out, default.patience, default.first),
        "ES-WMV": dip.choose_step(dip.windowed_variance(run.trace)),
        "ES-EMV": dip.choose_step(dip.exponential_variance(run.trace)),
    }
    average, last = run.average_psnr, scipy.ndimage.median_filter(run.psnr, 25, origin=12)
    best = int(np.argmax(average))
    row = {"photograph": name, "255 σ": sigma, "noisy": dip.psnr(clean, noisy), "best average": average[best]}
    row |= {"its step": best, "average at the end": average[-1]}
    for criterion, chosen in choices.items():
        row |= {f"{criterion}: step": chosen, f"{criterion}: gap": average[best] - average[chosen]}
        row |= {f"{criterion}: gap of the last output": last[25:].max() - last[chosen]}
    return {key: round(float(value), 4) if isinstance(value, float) else value for key, value in row.items()}


CRITERIA = ("hold-out", "ES-WMV", "ES-EMV")


def table(rows):
    """The rows as they are printed, with mean and worst over the photographs in colour."""
    printed = []
    for row in sorted(rows, key=lambda row: CASES.index((row["photograph"], row["255 σ"]))):
        line = {"photograph": row["photograph"], "255 σ": row["255 σ"], "noisy": f"{row['noisy']:.2f}"}
        line["best average, at step"] = f"{row['best average']:.2f}, {row['its step']}"
        for name in CRITERIA:
            gaps = row[f"{name}: gap"], row[f"{name}: gap of the last output"]
            line[f"{name}: step, gaps"] = f"{row[f'{name}: step']}, {gaps[0]:.2f} / {gaps[1]:.2f}"
        printed.append(line)
    colour = [row for row in rows if row["photograph"] != GREY]
    for summary in (np.mean, np.max) if colour else ():
        place = "mean" if summary is np.mean else "worst"
        line = dict.fromkeys(printed[0], "") | {"photograph": f"{place} in colour"}
        for name in CRITERIA:
            gaps = [summary([row[f"{name}: gap{kind}"] for row in colour]) for kind in ("", " of the last output")]
            line[f"{name}: step, gaps"] = " / ".join(f"{gap:.2f}" for gap in gaps)
        printed.append(line)
    return printed


def main():
    found = Table(HERE / "stopping.json")
    missing = [case for case in CASES if not found.find(**dict(zip(("photograph", "255 σ"), case, strict=True)))]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(measure, *zip(*missing, strict=True)) if missing else ():
            found.add(row)
            print(f"{row['photograph']}, 255 σ = {row['255 σ']}: done, {len(found.rows)} of {len(CASES)}", flush=True)
    show(table(found.rows))


if __name__ == "__main__":
    main()
