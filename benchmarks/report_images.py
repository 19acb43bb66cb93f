"""The report's numbers on the report's own pictures; `make report F16=… ZEBRA=…`.

The pictures are `F16_GT.png` and `zebra_GT.png` of the sample code
(github.com/DmitryUlyanov/deep-image-prior, folder data). They may not be
redistributed: whoever has them gives their paths. Network, noise, steps and
learning rate are the report's. A run takes about 35 minutes on two cores (steps
of 1.1 s), all four two hours and a half; it is saved every 200 steps under
results/, and the same command goes on where it was stopped.
"""

import argparse
import statistics

import dip_utils as dip

from .common import HERE, RESULTS, SIGMA, Table, by_strength, fit_in_pieces, restoration, show

FOLDER = RESULTS / "report_images"
STEPS = {2: 1800, 3: 2000}
SEEDS = {2: (0, 1, 2), 3: (0,)}
TITLES = {
    2: "Requirement 2: denoising F16, 512 × 512, σ = 25/255, 1800 steps",
    3: "Requirement 3: zebra enlarged four times, to 576 × 384 (width × height), 2000 steps",
}
#: Of a row's values, the names in the table.
COLUMNS = {
    2: {
        "before": "noisy", "last": "last output", "average": "average",
        "classic": "non-local means, tuned on this picture",
    },
    3: {"before": "bicubic", "last": "last output", "average": "average"},
}  # fmt: skip
#: What the report says, a row in the same columns.
REPORT = {
    2: ("the report", "20.364", "29.910, 30.561, 29.831; mean 30.101", "–", "–"),
    3: ("the report", "–", "23.753", "–"),
}


def denoising(path, seed):
    """Clean image, target, no operator, and the PSNR of the noisy image."""
    clean = dip.load_image(path)
    noisy = dip.add_gaussian_noise(clean, SIGMA, seed=seed)
    return clean, noisy, None, dip.psnr(clean, noisy)


def super_resolution(path, seed):
    """Clean image, target, operator, and the PSNR of bicubic interpolation."""
    clean = dip.crop(dip.load_image(path), 384, 576)
    # As in the sample code: Pillow makes the small picture, and the operator stands in for it.
    small = dip.resize(clean, 96, 144)
    bicubic = dip.resize(small, *clean.shape[1:], method="bicubic")
    return clean, small, dip.LanczosDownsampler(4), dip.psnr(clean, bicubic)


PROBLEMS = {2: denoising, 3: super_resolution}


def saved_run(requirement, seed):
    """Where a run is until it is complete."""
    return FOLDER / f"{requirement}_{seed}.pt"


def measure(requirement, path, seed):
    """One row: one run, in pieces that are saved."""
    clean, target, operator, before = PROBLEMS[requirement](path, seed)
    network, z = restoration(clean.shape[1:], seed)
    run = fit_in_pieces(
        saved_run(requirement, seed), f"requirement {requirement}, seed {seed}", network, z, target,
        operator=operator, steps=STEPS[requirement], reference=clean, seed=seed,
    )  # fmt: skip
    found = {"before": before, "last": float(run.psnr[-1]), "average": float(run.average_psnr[-1])}
    if "classic" in COLUMNS[requirement]:
        found["classic"] = max(by_strength(clean, target, "non-local means").values())
    key = {"requirement": requirement, "seed": seed}
    rounded = {name: round(value, 3) for name, value in found.items()}
    return key | rounded | {"steps": run.steps, "precision": run.precision}


def table(rows, requirement):
    """The runs, their mean and standard deviation, and what the report says."""
    names = COLUMNS[requirement]
    rows = sorted((row for row in rows if row["requirement"] == requirement), key=lambda row: row["seed"])
    lines = [{"seed": row["seed"], **{name: f"{row[key]:.3f}" for key, name in names.items()}} for row in rows]
    if len(rows) > 1:
        values = {name: [row[key] for row in rows] for key, name in names.items()}
        means = {name: f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for name, v in values.items()}
        lines.append({"seed": "mean", **means})
    return [*lines, dict(zip(("seed", *names.values()), REPORT[requirement], strict=True))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--f16", metavar="PATH", help="of F16_GT.png")
    parser.add_argument("--zebra", metavar="PATH", help="of zebra_GT.png")
    arguments = parser.parse_args()
    paths = {2: arguments.f16, 3: arguments.zebra}
    if not any(paths.values()):
        parser.error("wants F16=path/of/F16_GT.png, ZEBRA=path/of/zebra_GT.png or both")
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = Table(HERE / "report_images.json")
    for requirement, path in paths.items():
        for seed in SEEDS[requirement] if path else ():
            if not found.find(requirement=requirement, seed=seed):
                found.add(measure(requirement, path, seed))
                saved_run(requirement, seed).unlink()
    for requirement in TITLES:
        if any(row["requirement"] == requirement for row in found.rows):
            print(f"\n{TITLES[requirement]}; PSNR in dB\n")
            show(table(found.rows, requirement))


if __name__ == "__main__":
    main()
