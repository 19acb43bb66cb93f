"""`fit` on the cases of its arguments, in a process of its own: the counterpart of `textbook.py`.

A case is JSON. Prints one line of JSON for each case: seconds per step, bytes at the
peak, PSNR at the end, and the steps at which the average has reached some levels.
"""

import json
import sys

import numpy as np
import torch

import dip_utils as dip
from dip_utils.engine.machine import tuned

from .textbook import peak_memory


def measure(case):
    if case["image"]:
        reference, target = (torch.from_numpy(np.load(path)) for path in case["image"])
    else:
        reference = target = dip.uniform_noise(3, *case["size"], seed=0)
    shape = {name: case[name] for name in ("input_channels", "channels", "skip_channels")}
    network = dip.SkipNetwork(**shape, seed=case["seed"])
    z = dip.random_input(case["input_channels"], *target.shape[1:], seed=case["seed"])
    options = dict(reference=reference, device=case["device"], precision=case["precision"], seed=case["seed"])
    options["input_noise"] = case.get("input_noise", 1 / 30)
    if case["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def timed(steps):
        run = dip.fit(network, z, target, steps=steps, **options)
        if run.steps < run.planned:
            sys.exit(f"The fit ended at step {run.steps} of {run.planned}.")
        return run

    with tuned(**case.get("tuned", {})):
        # The libraries' set-up is in the first only; CUDA's capture is in each, and cancels out in the difference.
        # The runs are not kept: the copy of the weights that each holds would count as memory of the last.
        warm = [timed(case["warm"]).seconds for _ in range(2 if case["warm"] else 0)]
        run = timed(case["warm"] + case["steps"])
    return {
        # Seconds of the first fit beyond the second's; CUDA's capture is in both.
        "set-up": warm[0] - warm[-1] if warm else None,
        "step": (run.seconds - (warm[-1] if warm else 0)) / case["steps"],
        "peak": torch.cuda.max_memory_allocated() if case["device"] == "cuda" else peak_memory(),
        "psnr": float(run.psnr[-1]),
        "average_psnr": float(run.average_psnr[-1]),
        "precision": run.precision,
        "steps_to_levels": [dip.steps_to_reach(run.average_psnr, level) for level in case.get("levels", ())],
        "remarks": run.remarks,
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(measure(json.loads(argument))), flush=True)
