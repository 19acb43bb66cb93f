"""Does the fast step change the result? 600 steps of denoising at 128 × 128 over several seeds, both ways.

The slow way: float32 and the plain forms of the network. The fast way: as `fit`
does it on this machine. Prints the PSNR of the average at the end, and the mean
difference with its standard error.
"""

import argparse
import statistics

import dip_utils as dip
from dip_utils.engine.machine import tuned

from .common import SIGMA, Progress, complete, restoration

#: Precision, and how the machine is used: from no size on are the faster forms used in the slow way.
WAYS = {"float32, plain forms": ("float32", {"large": 2**62}), "as fit does it": ("auto", {})}


def average_psnr(clean, noisy, seed, way):
    precision, changes = WAYS[way]
    network, z = restoration(clean.shape[1:], seed)
    with tuned(**changes):
        run = complete(dip.fit(
            network, z, noisy, steps=600, reference=clean, seed=seed, precision=precision, device="cpu",
            watch=Progress(f"{way}, seed {seed}"),
        ))  # fmt: skip
    return run.average_psnr[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    clean = dip.resize(dip.crop(dip.sample("astronaut"), 256, 256, top=0, left=92), 128, 128)
    noisy = dip.add_gaussian_noise(clean, SIGMA, seed=0)
    rows = []
    for way in WAYS:
        found = [average_psnr(clean, noisy, seed, way) for seed in seeds]
        values = [*found, statistics.mean(found), statistics.stdev(found)]
        print(f"{way:22}" + "".join(f"{value:8.3f}" for value in values) + "  (the last two: mean, std)", flush=True)
        rows.append(found)
    differences = [fast - slow for slow, fast in zip(*rows, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    print(f"difference, paired by seed: {statistics.mean(differences):.3f} ± {error:.3f} (standard error)")


if __name__ == "__main__":
    main()
