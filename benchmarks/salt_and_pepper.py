"""Salt-and-pepper noise: an L1 loss against the mean squared error, on a photograph.

Network 2, chelsea, 96 × 96, a tenth of the values set to 0 or 1, 1000 steps each;
some minutes. Noted is the best step that there is, found with the clean image,
and the one that hold-out finds without it.
"""

from torch.nn import functional as F

import dip_utils as dip

from .common import HERE, Progress, Table, complete, restoration, show, square

PHOTOGRAPH, SIDE, SHARE, STEPS = "chelsea", 96, 0.1, 1000
LOSSES = {"mean squared error": F.mse_loss, "L1": F.l1_loss}


def measure(name):
    """One row: one fit."""
    clean = square(PHOTOGRAPH, SIDE)
    noisy = dip.add_salt_and_pepper(clean, SHARE, seed=0)
    network, z = restoration((SIDE, SIDE), seed=0)
    run = complete(dip.fit(
        network, z, noisy, loss=LOSSES[name], steps=STEPS, reference=clean, stop=dip.HoldOut(patience=None),
        watch=Progress(name),
    ))  # fmt: skip
    average = run.average_psnr
    chosen = dip.choose_step(run.held_out, dip.HoldOut().patience, dip.HoldOut().first)
    values = {"noisy": dip.psnr(clean, noisy), "last output": run.psnr[-1], "best output": run.psnr.max()}
    values |= {"best average": average.max(), "average at the step of the hold-out": average[chosen]}
    rounded = {key: round(float(value), 2) for key, value in values.items()}
    return {"loss": name} | rounded | {"its step": chosen, "seconds": round(run.seconds)}


def table(rows):
    """The rows as they are printed."""
    names = ("noisy", "last output", "best output", "best average")
    printed = []
    for row in rows:
        line = {"loss": row["loss"]} | {name: f"{row[name]:.2f}" for name in names}
        chosen = f"{row['average at the step of the hold-out']:.2f}, {row['its step']}"
        printed.append(line | {"average where hold-out stops, at step": chosen})
    return printed


def main():
    found = Table(HERE / "salt_and_pepper.json")
    for name in LOSSES:
        if not found.find(loss=name):
            found.add(measure(name))
    show(table(found.rows))


if __name__ == "__main__":
    main()
