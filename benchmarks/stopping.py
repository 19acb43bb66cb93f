"""When to stop, on every bundled photograph and three noise levels; `make stopping`.

For each a run without a stop: network 2, 96 × 96 pixels, 1600 steps; as many at a
time as there are cores, each on one. `HoldOut` is
computed on the way, the two variances from the run's trace. Printed are the
step at which the average is best (the oracle, which sees the clean image), the
step that each criterion chooses, and how much worse the average, and the last
output, are there than at their best. The last output jumps from step to step: its
PSNR is the median over the last 25 steps.
"""

import argparse
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch

import dip_utils as dip
from dip_utils.images import SAMPLES
from dip_utils.network import RESTORATION

CRITERIA = {
    "hold-out": dip.HoldOut(),
    "ES-WMV": dip.WindowedVariance(),
    "ES-EMV": dip.ExponentialVariance(),
}


def square(name, side):
    """The middle of a photograph, as a small square."""
    image = dip.sample(name)
    whole = min(image.shape[1:])
    return dip.resize(dip.crop(image, whole, whole), side, side)


def measure(name, sigma, side, steps):
    """One row: what each criterion chooses on one run, beside the best."""
    torch.set_num_threads(1)
    clean = square(name, side)
    noisy = dip.add_gaussian_noise(clean, sigma / 255, seed=0)
    network, z = dip.SkipNetwork(**RESTORATION, seed=0), dip.random_input(32, side, side, seed=0)
    run = dip.fit(network, z, noisy, steps=steps, reference=clean, seed=0, stop=dip.HoldOut(patience=None), trace=2048)
    average, last = run.average_psnr, scipy.ndimage.median_filter(run.psnr, 25, origin=12)
    best = int(np.argmax(average))
    row = {"photograph": name, "255 σ": sigma, "noisy (dB)": dip.psnr(clean, noisy)}
    row |= {"best average (dB)": average[best], "its step": best, "average at the end": average[-1]}
    for criterion, stop in CRITERIA.items():
        chosen = stop.choose(run.criterion if criterion == "hold-out" else stop.curve(run.trace))
        row |= {f"{criterion}: step": chosen, f"{criterion}: gap": average[best] - average[chosen]}
        row |= {f"{criterion}: gap of the last output": last[25:].max() - last[chosen]}
    return row


def show(row):
    print("  ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()), flush=True)


def main():
    """Print the rows as they come, then the means; write them as JSON where told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    cases = list(itertools.product((25, 50, 15), SAMPLES))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(measure, name, sigma, arguments.side, arguments.steps) for sigma, name in cases]
        for found in waiting:
            rows.append(found.result())
            if len(rows) == 1:
                print(" | ".join(rows[0]))
            show(rows[-1])
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for criterion in CRITERIA:
        for what in ("gap", "gap of the last output"):
            gaps = [row[f"{criterion}: {what}"] for row in rows]
            print(f"{criterion}: {what}: mean {np.mean(gaps):.2f}, worst {max(gaps):.2f} dB")


if __name__ == "__main__":
    main()
