"""How the batch norms begin: weights uniform in (0, 1), as in 2018, against the ones of today's PyTorch; `make gain`.

Denoising each of four photographs, σ = 25/255, three seeds, 600 steps at
128 × 128 and at 256 × 256. Noted is the PSNR of the average at its best and at
the end. An hour and a half on two cores, most of it for 256 × 256.
"""

import argparse
import itertools
import statistics

from torch import nn

import dip_utils as dip

from .common import HERE, PHOTOGRAPHS, SIGMA, Progress, Table, complete, restoration, show, square

SIDES, STEPS = (128, 256), 600
SEEDS = (0, 1, 2)
WEIGHTS = ("ones", "as in 2018")


def measure(side, name, seed, weights):
    """One row: one fit."""
    clean = square(name, side)
    noisy = dip.add_gaussian_noise(clean, SIGMA, seed=seed)
    network, z = restoration((side, side), seed)
    if weights == "ones":
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.ones_(layer.weight)
    watch = Progress(f"{name}, {side} × {side}, seed {seed}, {weights}")
    run = complete(dip.fit(network, z, noisy, steps=STEPS, reference=clean, seed=seed, watch=watch))
    average = run.average_psnr
    found = {"best": round(float(average.max()), 3), "its step": int(average.argmax())}
    key = {"side": side, "photograph": name, "seed": seed, "weights": weights}
    return key | found | {"at the end": round(float(average[-1]), 3), "steps": run.steps, "precision": run.precision}


def table(rows):
    """A line for each photograph and size of which all seeds are there: means over the seeds, and the difference."""
    printed = []
    for side, name in itertools.product(SIDES, PHOTOGRAPHS):
        ones, uniform = (
            sorted((r for r in rows if (r["side"], r["photograph"], r["weights"]) == (side, name, weights)),
                   key=lambda row: row["seed"])
            for weights in WEIGHTS
        )  # fmt: skip
        if len(ones) == len(uniform) == len(SEEDS):
            gains = [after["best"] - before["best"] for before, after in zip(ones, uniform, strict=True)]
            line = {"photograph": name, "size": f"{side} × {side}"}
            for weights, found in zip(WEIGHTS, (ones, uniform), strict=True):
                means = [statistics.mean(row[key] for row in found) for key in ("best", "at the end")]
                line[f"{weights}: best, at the end"] = f"{means[0]:.2f}, {means[1]:.2f}"
            printed.append(line | {"gain": f"{statistics.mean(gains):.2f} ± {statistics.stdev(gains):.2f}"})
    return printed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, choices=SIDES, help="only this size")
    side = parser.parse_args().side
    found = Table(HERE / "gain.json")
    cases = list(itertools.product([side] if side else SIDES, PHOTOGRAPHS, SEEDS, WEIGHTS))
    for number, case in enumerate(cases, 1):
        key = dict(zip(("side", "photograph", "seed", "weights"), case, strict=True))
        if not found.find(**key):
            found.add(measure(*case))
            row = found.rows[-1]
            print(f"{number} of {len(cases)}: {', '.join(map(str, case))}: best {row['best']:.2f} dB", flush=True)
    if printed := table(found.rows):
        show(printed)


if __name__ == "__main__":
    main()
