"""Does the fast step change the result? 600 steps of denoising at 128 × 128 over several seeds, both ways.

The slow way: float32 and the plain forms of `dip_utils.kernels`. The fast way: as
`fit` does it on this machine. Prints the PSNR of the average at the end, and the
mean difference with its standard error.
"""

import argparse
import statistics

import dip_utils as dip
from dip_utils import network as networks


def average_psnr(clean, noisy, seed, precision, large):
    networks.LARGE = large
    network = dip.SkipNetwork(**networks.RESTORATION, seed=seed)
    z = dip.random_input(32, *clean.shape[1:], seed=seed)
    return dip.fit(
        network, z, noisy, steps=600, reference=clean, seed=seed, precision=precision, device="cpu"
    ).average_psnr[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    large = networks.LARGE
    clean = dip.resize(dip.crop(dip.sample("astronaut"), 256, 256, top=0, left=92), 128, 128)
    noisy = dip.add_gaussian_noise(clean, 25 / 255, seed=0)
    ways = {"float32, plain forms": ("float32", 2**62), "as fit does it": ("auto", large)}
    print("seed                  " + "".join(f"{seed:8}" for seed in seeds) + "    mean     std")
    rows = []
    for name, way in ways.items():
        found = [average_psnr(clean, noisy, seed, *way) for seed in seeds]
        row = [*found, statistics.mean(found), statistics.stdev(found)]
        print(f"{name:22}" + "".join(f"{value:8.3f}" for value in row), flush=True)
        rows.append(found)
    differences = [fast - slow for slow, fast in zip(*rows, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    print(f"difference, paired by seed: {statistics.mean(differences):.3f} ± {error:.3f} (standard error)")


if __name__ == "__main__":
    main()
