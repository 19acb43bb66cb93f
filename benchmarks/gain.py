"""Batch norm weights that begin uniform in (0, 1), as in 2018, against weights that begin at 1.

Denoising every bundled photograph, 128 × 128, σ = 25/255, 600 steps: the PSNR of the
average at the end and at its best, both ways; about ten minutes on two cores.
"""

from stopping import square

import dip_utils as dip
from dip_utils.images import SAMPLES
from dip_utils.network import RESTORATION


def main():
    print("photograph   weights   at the end   at its best, step")
    for name in SAMPLES:
        clean = square(name, 128)
        noisy = dip.add_gaussian_noise(clean, 25 / 255, seed=0)
        z = dip.random_input(32, 128, 128, seed=0)
        for uniform in (False, True):
            network = dip.SkipNetwork(**RESTORATION, uniform_gain=uniform, seed=0)
            average = dip.fit(network, z, noisy, steps=600, reference=clean, seed=0).average_psnr
            weights = "uniform" if uniform else "ones"
            print(f"{name:12} {weights:9} {average[-1]:10.2f} {average.max():13.2f}, {average.argmax()}", flush=True)


if __name__ == "__main__":
    main()
