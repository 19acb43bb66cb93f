"""Denoising, blind, beside classical denoisers; `make denoising`, ARGS="--folder PATH" for your own pictures.

Noise of σ = 25/255 on four of scikit-image's photographs at 256 × 256, or on every picture
of a folder. Network 2 learns neither σ nor the clean picture: of 1800 steps
hold-out chooses the one whose average is taken. Three seeds, all on the same
noisy picture. The strengths of the classical denoisers are those of notebook 2,
tuned on the other pictures, and on the very picture as an upper bound. A run
takes about eight minutes on two cores, all twelve less than two hours; it is
saved every 200 steps under results/, and the same command goes on where it was
stopped.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dip_utils as dip
from dip_utils.baselines import STRENGTHS

from .common import HERE, PHOTOGRAPHS, RESULTS, SIGMA, Table, by_strength, fit_in_pieces, restoration, show, square

SIDE, STEPS, SEEDS = 256, 1800, (0, 1, 2)


def pictures(folder=None, longest=None):
    """Clean images by name: of a folder's image files that are large enough, or four of scikit-image's photographs."""
    if folder is None:
        return {name: square(name, SIDE) for name in PHOTOGRAPHS}
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in readable)
    images = {path.name: dip.load_image(path, longest=longest) for path in files}
    # Smaller ones the network refuses.
    least = 2 ** len(dip.RESTORATION["channels"]) + 1
    small = [name for name, image in images.items() if min(image.shape[1:]) < least]
    if small:
        print(f"Left out, smaller than {least} pixels: {', '.join(small)}")
    return {name: image for name, image in images.items() if name not in small}


def noisy_version(clean):
    """The noisy picture, the same for all seeds: with noise of its own each run would see more than one could."""
    return dip.add_gaussian_noise(clean, SIGMA, seed=0)


def measure_classical(name, clean):
    """One row: what each classical denoiser achieves with each strength."""
    noisy = noisy_version(clean)
    row = {"picture": name, "noisy": round(dip.psnr(clean, noisy), 4)}
    for method, strengths in STRENGTHS.items():
        # JSON has no other keys than strings.
        found = {str(strength): round(psnr, 4) for strength, psnr in by_strength(clean, noisy, method).items()}
        if max(found.values()) in (found[str(strengths[0])], found[str(strengths[-1])]):
            print(f"{name}: {method} is best at an end of the strengths tried, {strengths}", flush=True)
        row[method] = found
    return row


def measure(name, clean, seed, steps, folder):
    """One row: one run; also what the mean of its chosen average and those of the seeds before it achieves."""
    earlier = [folder / f"{name}_{other}_average.pt" for other in SEEDS[: SEEDS.index(seed)]]
    if missing := [str(path) for path in earlier if not path.is_file()]:
        sys.exit(f"{', '.join(missing)}: no longer there; delete the JSON file as well, to measure all anew")
    network, z = restoration(clean.shape[1:], seed, len(clean))
    saved = folder / f"{name}_{seed}.pt"
    run = fit_in_pieces(
        saved, f"{name}, seed {seed}", network, z, noisy_version(clean),
        steps=steps, reference=clean, seed=seed, stop=dip.HoldOut(patience=None),
    )  # fmt: skip
    torch.save(run.result, folder / f"{name}_{seed}_average.pt")
    together = torch.stack([*map(torch.load, earlier), run.result]).mean(dim=0)
    found = {"last output": run.psnr[-1], "average at the end": run.average_psnr[-1]}
    found |= {"chosen average": dip.psnr(clean, run.result), "together": dip.psnr(clean, together)}
    key = {"picture": name, "seed": seed}
    row = key | {column: round(float(value), 4) for column, value in found.items()} | {"chosen_step": run.chosen_step}
    return row | {"steps": run.steps, "seconds": round(run.seconds), "precision": run.precision}


def tuned(own, others):
    """PSNR with the strength that is best in the mean over the others (NaN if there are none), and at best."""
    if not others:
        return float("nan"), max(own.values())
    chosen = max(own, key=lambda strength: np.mean([other[strength] for other in others]))
    return own[chosen], max(own.values())


def table(rows):
    """A line for each picture, and their mean; nothing while runs are missing."""
    classical = [row for row in rows if "seed" not in row]
    runs = {(row["picture"], row["seed"]): row for row in rows if "seed" in row}
    if len(runs) < len(classical) * len(SEEDS):
        return []
    found = []
    for row in classical:
        first, last = (runs[row["picture"], seed] for seed in (SEEDS[0], SEEDS[-1]))
        line = {"noisy": (row["noisy"],)}
        for method in STRENGTHS:
            line[method] = tuned(row[method], [other[method] for other in classical if other is not row])
        line |= {column: (first[column],) for column in ("last output", "average at the end", "chosen average")}
        found.append(line | {"three together": (last["together"],), "seconds": (first["seconds"],)})
    found.append({column: np.mean([line[column] for line in found], axis=0) for column in found[0]})
    names = [*(row["picture"] for row in classical), "mean"]
    cells = [{column: written(column, values) for column, values in line.items()} for line in found]
    return [{"picture": name} | line for name, line in zip(names, cells, strict=True)]


def written(column, values):
    """Numbers as a cell of the table, NaN as a dash."""
    digits = 0 if column == "seconds" else 2
    return " / ".join("–" if np.isnan(value) else f"{value:.{digits}f}" for value in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, metavar="PATH", help="of pictures, instead of four of scikit-image's photographs"
    )
    parser.add_argument("--longest", type=int, metavar="N", help="shrink the folder's pictures to N pixels at most")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run; %(default)s where not given")
    given = parser.parse_args()
    if given.longest and not given.folder:
        parser.error("--longest is for the pictures of --folder")
    clean = pictures(given.folder, given.longest)
    if not clean:
        parser.error(f"--folder: there is no picture in {given.folder}")
    origin = given.folder.resolve().parts[1:] if given.folder else ("bundled",)
    folder = RESULTS / "denoising" / "_".join(map(str, [*origin, given.longest or "native", given.steps]))
    folder.mkdir(parents=True, exist_ok=True)
    published = given.folder is None and given.steps == STEPS
    found = Table(HERE / "denoising.json" if published else folder / "results.json")
    if not found.rows:
        # Of what was deleted to be measured anew.
        for old in folder.glob("*.pt"):
            old.unlink()
    for name, image in clean.items():
        if not found.find(picture=name):
            found.add(measure_classical(name, image))
    for seed, name in itertools.product(SEEDS, clean):
        if not found.find(picture=name, seed=seed):
            found.add(measure(name, clean[name], seed, given.steps, folder))
            (folder / f"{name}_{seed}.pt").unlink()
    print("\nPSNR in dB; classical denoisers: strength tuned on the other pictures / on this one\n")
    show(table([row for row in found.rows if row["picture"] in clean]))


if __name__ == "__main__":
    main()
