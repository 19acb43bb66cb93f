"""What might make the average better at no extra step time, and what it gave; `python -m benchmarks.average`.

Denoising each of four photographs at 128 × 128, σ = 25/255, three seeds on the
same noisy picture, until hold-out ends the fit. All outputs are kept, and the
averages worked out from them. Half an hour on two cores.
"""

import statistics

import numpy as np
import torch

import dip_utils as dip

from .common import HERE, PHOTOGRAPHS, SIGMA, Progress, Table, complete, restoration, show, square

SIDE, STEPS, SEEDS = 128, 1800, (0, 1, 2)
#: Of the newest output; `fit` has 0.01.
WEIGHTS = (0.0025, 0.005, 0.02, 0.04)
#: Steps with all pixels after hold-out has ended the fit. Adam begins anew there, whose first steps are as large as
#: the learning rate: with `fit`'s 0.01 they destroy what was learnt.
MORE, LEARNING_RATE = 100, 0.001
#: The pixels that `HoldOut` leaves out.
PLACES = dip.HoldOut().choose(SIDE * SIDE)


def averages(outputs, weight):
    """The average after each output."""
    average = torch.zeros_like(outputs[0])
    for step, output in enumerate(outputs):
        average = average.lerp(output, max(weight, 1 / (step + 1)))
        yield average


def pick(image):
    """The pixels that are left out, (C, pixels)."""
    return image.flatten(1)[:, PLACES]


def fitted(image):
    """The others, (C, 1, pixels)."""
    is_fitted = torch.ones(SIDE * SIDE, dtype=torch.bool)
    is_fitted[PLACES] = False
    return image.flatten(1)[:, None, is_fitted]


def chosen(outputs, noisy, weight):
    """The average whose held-out error is least."""
    seen, counted = pick(noisy), list(averages(outputs, weight))[dip.HoldOut().first :]
    return min(counted, key=lambda average: dip.mse(pick(average), seen))


def combined(images, noisy):
    """The combination, of weights with sum 1, whose held-out error is least."""
    last, *others = (pick(image).flatten().double().numpy() for image in images)
    differences = np.stack([other - last for other in others], axis=1)
    shares = np.linalg.lstsq(differences, pick(noisy).flatten().double().numpy() - last, rcond=None)[0]
    weights = np.array([1 - shares.sum(), *shares])
    return sum(weight * image for weight, image in zip(weights.tolist(), images, strict=True))


def measure(name):
    """One row: what three runs on a photograph achieve, and what the variants add to it."""
    clean = square(name, SIDE)
    noisy = dip.add_gaussian_noise(clean, SIGMA, seed=0)
    row, best = {"photograph": name, "one run": [], "gains": {}}, []

    def note(variant, psnr, instead_of):
        row["gains"].setdefault(variant, []).append(round(float(psnr) - dip.psnr(clean, instead_of), 4))

    for seed in SEEDS:
        network, z = restoration((SIDE, SIDE), seed)
        watch = Progress(f"{name}, seed {seed}")
        run = complete(dip.fit(
            network, z, noisy, steps=STEPS, keep=range(STEPS + 1),
            reference=clean, stop=dip.HoldOut(), seed=seed, watch=watch,
        ))  # fmt: skip
        result = run.result
        best.append(result)
        row["one run"].append(round(dip.psnr(clean, result), 4))
        outputs = [run.kept[step] for step in range(run.steps + 1)]
        for weight in WEIGHTS:
            image = chosen(outputs, noisy, weight)
            note(f"weight {weight} for the newest output", dip.psnr(clean, image), result)
        note("the best step, known from the clean image", run.average_psnr.max(), result)
        note("the fitted pixels alone", dip.psnr(fitted(clean), fitted(result)), result)
        options = dict(steps=MORE, learning_rate=LEARNING_RATE, seed=seed + len(SEEDS))
        more = complete(dip.fit(network, z, noisy, **options)).average
        note(f"{MORE} more steps with all pixels, their mean", dip.psnr(clean, more), result)
        note("the same, and the average before it: the mean of both", dip.psnr(clean, (more + result) / 2), result)
    mean = sum(best) / len(best)
    for image in best:
        note("mean of three runs", dip.psnr(clean, mean), image)
    note("three runs combined by held-out error, instead of their mean", dip.psnr(clean, combined(best, noisy)), mean)
    return row


def table(rows):
    """A line for each variant: the mean gain on each photograph, mean and standard deviation over all."""
    printed = []
    for variant in rows[0]["gains"] if rows else ():
        gains = {row["photograph"]: row["gains"][variant] for row in rows}
        line = {name: f"{statistics.mean(values):+.2f}" for name, values in gains.items()}
        every = [gain for values in gains.values() for gain in values]
        line["all"] = f"{statistics.mean(every):+.2f} ± {statistics.stdev(every):.2f}"
        printed.append({"gain in dB": variant} | line)
    return printed


def main():
    found = Table(HERE / "average.json")
    for name in PHOTOGRAPHS:
        if not found.find(photograph=name):
            found.add(measure(name))
    show(table(found.rows))


if __name__ == "__main__":
    main()
