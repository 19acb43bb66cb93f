"""Step time and memory of `fit` beside the textbook loop, on the CPU; `make benchmark`. For a card: `make cuda`.

Both run in processes of their own, in alternation, so that the ratio stands
when the machine's speed drifts; the median over the rounds is printed. GFLOP/s
count the textbook network's convolutions, whatever `fit` saves of them; the
ceiling is a large 3×3 convolution, forward and backward, in the same dtype.
What the rest of the time is spent on stands in `benchmarks/README.md`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import dip_utils as dip
from dip_utils.engine.machine import WORTH, bfloat16_gain

from .common import NETWORKS, SIGMA, about, in_own_process, show, square, write_json
from .textbook import build

#: Network, height, width, steps of the textbook loop; `fit` takes three times as many.
CASES = [("net 1", 384, 544, 20), ("net 2", 256, 256, 8), ("net 2", 512, 512, 4)]
QUICK_CASES = [("net 1", 192, 256, 20), ("net 2", 128, 128, 8)]


def flops_of_a_step(network, height, width):
    """Of the textbook network's convolutions, forward and backward."""
    module = build(network["input_channels"], network["channels"], network["skip_channels"]).to("meta")
    z = torch.empty(1, network["input_channels"], height, width, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(z).sum().backward()
    return counter.get_total_flops()


def ceiling(dtype):
    """FLOP/s of a 3×3 convolution of 128 channels at 512², forward and backward."""
    weight = torch.randn(128, 128, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    x = torch.randn(1, 128, 512, 512).to(dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(), weight.requires_grad_()
    pull = torch.ones_like(x)
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), pull)
        times.append(time.perf_counter() - begun)
    return 3 * 2 * 128 * 128 * 9 * 512 * 512 / min(times[1:])


def rates():
    """What a convolution reaches in either dtype, and which of them "auto" takes here."""
    found = {f"convolution in {name} (GFLOP/s)": round(ceiling(getattr(torch, name)) / 1e9) for name in RATES}
    gain = round(bfloat16_gain(), 2)
    chosen = str(dip.choose_precision())[6:]
    print(", ".join(f"{name}: {value}" for name, value in found.items()))
    print(f'bfloat16 is {gain} times as fast in the trial of "auto", which asks for {WORTH}: it takes {chosen}')
    return found | {"gain of bfloat16 in the trial": gain, "auto": chosen}


RATES = ("float32", "bfloat16")


def measure(name, height, width, steps, precision, rounds):
    """One row of the table."""
    case = NETWORKS[name] | dict(size=[height, width], device="cpu", precision=precision, seed=0, image=None)
    pairs = []
    for number in range(rounds):
        print(f"{name} at {height} × {width}: round {number + 1} of {rounds}", flush=True)
        plain = in_own_process("textbook", case | {"steps": steps, "warm": 3})
        ours = in_own_process("one_fit", case | {"steps": 3 * steps, "warm": 5})
        pairs.append((plain, ours))
    step = [statistics.median(pair[i]["step"] for pair in pairs) for i in (0, 1)]
    flops = flops_of_a_step(NETWORKS[name], height, width)
    used = pairs[0][1]["precision"]
    return {
        "network": name,
        "size": f"{height} × {width}",
        "precision": used,
        "textbook (s)": round(step[0], 4),
        "fit (s)": round(step[1], 4),
        "ratio": round(statistics.median(a["step"] / b["step"] for a, b in pairs), 2),
        "peak textbook (GB)": round(max(a["peak"] for a, _ in pairs) / 1e9, 2),
        "peak fit (GB)": round(max(b["peak"] for _, b in pairs) / 1e9, 2),
        "GFLOP/s": round(flops / step[1] / 1e9),
        "of the ceiling": f"{flops / step[1] / ceiling(getattr(torch, used)):.0%}",
    }


def time_to_quality(steps):
    """Seconds until the average reaches the quality of the textbook loops; with the report's noise on z, and without.

    The quality of a loop is that of its last output; without noise on z it has by
    then copied the photograph's noise, and its best output counts.
    """
    clean = square("astronaut", 256)
    noisy = dip.add_gaussian_noise(clean, SIGMA, seed=0)
    loops = {"textbook": {}, "textbook as in 2018": {"as in 2018": True}, "textbook, no noise on z": {"input_noise": 0}}
    plain, rows, ends = {}, [], {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("clean.npy", "noisy.npy")]
        for path, image in zip(paths, (clean, noisy), strict=True):
            np.save(path, image.numpy())
        case = NETWORKS["net 2"] | dict(device="cpu", precision="auto", seed=0, image=paths, warm=0, steps=steps)
        for name, options in loops.items():
            print(f"{name}: {steps} steps", flush=True)
            found = in_own_process("textbook", case | options)
            quality, step = (found["best"], found["best_step"]) if "input_noise" in options else (found["psnr"], steps)
            plain[name] = quality, found["step"] * step
            print(f"  {quality:.2f} dB in {found['step'] * step:.0f} s", flush=True)
        levels = [quality for quality, _ in plain.values()]
        for noise, value in {"1/30": 1 / 30, "0": 0}.items():
            print(f"fit with noise on z of {noise}: {steps} steps", flush=True)
            ours = in_own_process("one_fit", case | {"input_noise": value, "levels": levels})
            ends[noise] = round(ours["average_psnr"], 2)
            for (name, (quality, taken)), reached in zip(plain.items(), ours["steps_to_levels"], strict=True):
                row = {"loop": name, "its output (dB)": round(quality, 2), "its time (s)": round(taken)}
                seconds = reached and ours["step"] * reached
                row |= {"fit's noise on z": noise, "fit's steps": reached, "fit (s)": seconds and round(seconds)}
                rows.append(row | {"ratio": seconds and round(taken / seconds, 2)})
    print(f"fit's average at the end, by its noise on z: {ends}")
    return {"steps": steps, "fit's average at the end (dB)": ends, "loops": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one round")
    parser.add_argument(
        "--quality",
        type=int,
        metavar="STEPS",
        help="add the time to quality of the textbook loop's STEPS steps, for example 1800",
    )
    parser.add_argument("--precision", default="auto", help="of fit's activations, for example float32")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the tables there too; one that is not measured stays"
    )
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text("utf-8")) if arguments.json and arguments.json.exists() else {}
    found |= about() | rates()
    print(f"CPU: {found['cpu']}; {found['system']}; torch {found['torch']}")
    rounds, cases = (1, QUICK_CASES) if arguments.quick else (3, CASES)
    found["steps"] = [measure(*case, arguments.precision, rounds) for case in cases]
    show(found["steps"])
    # Already here: what follows takes hours.
    if arguments.json:
        write_json(arguments.json, found)
    if arguments.quality:
        found["time to quality"] = time_to_quality(arguments.quality)
        show(found["time to quality"]["loops"])
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
