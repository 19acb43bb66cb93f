"""Step time and memory of `fit` beside the textbook loop; `make benchmark`.

Both run in processes of their own, in alternation, so that the ratio stands
when the machine's speed drifts; the median over the rounds is printed. GFLOP/s
count the textbook network's convolutions, whatever `fit` saves of them; the
ceiling is a large 3×3 convolution, forward and backward, in the same dtype.
What the rest of the time is spent on stands in `benchmarks/README.md`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from textbook import build, peak_memory
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
NETWORKS = {
    "net 1": dict(input_channels=3, channels=[8, 16, 32, 64, 128], skip_channels=[0, 0, 0, 4, 4]),
    "net 2": dict(input_channels=32, channels=[128] * 5, skip_channels=[4] * 5),
}
#: Network, height, width, steps of the textbook loop; `fit` takes three times as many.
CASES = [("net 1", 384, 544, 20), ("net 2", 256, 256, 8), ("net 2", 512, 512, 4)]
QUICK_CASES = [("net 1", 192, 256, 20), ("net 2", 128, 128, 8)]


def fit_case(case):
    """In a process of its own: `fit` on one case; prints one line of JSON."""
    import dip_utils as dip

    if case["image"]:
        reference, target = (torch.from_numpy(np.load(path)) for path in case["image"])
    else:
        reference = target = dip.uniform_noise(3, *case["size"], seed=0)
    shape = {name: case[name] for name in ("input_channels", "channels", "skip_channels")}
    network = dip.SkipNetwork(**shape, seed=case["seed"])
    z = dip.random_input(case["input_channels"], *target.shape[1:], seed=case["seed"])
    options = dict(reference=reference, device=case["device"], precision=case["precision"], seed=case["seed"])
    # What comes once, the libraries' set-up and CUDA's capture, is in the first two: their times cancel out.
    runs = [dip.fit(network, z, target, steps=case["warm"], **options) for _ in range(2 if case["warm"] else 0)]
    after = dip.fit(network, z, target, steps=case["warm"] + case["steps"], **options)
    seconds = after.seconds - (runs[-1].seconds if runs else 0)
    peak = peak_memory()
    if case["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated()
    found = {
        "step": seconds / case["steps"],
        "peak": peak,
        "psnr": after.psnr[-1],
        "average_psnr": after.average_psnr[-1],
    }
    found["precision"] = after.precision
    reached = np.flatnonzero(after.average_psnr >= case.get("level", np.inf))
    found["steps_to_level"] = int(reached[0]) if len(reached) else None
    print(json.dumps(found))


def in_own_process(script, case):
    command = [sys.executable, str(HERE / script), json.dumps(case)]
    if script == Path(__file__).name:
        command.insert(2, "--fit")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def flops_of_a_step(network, height, width):
    """Of the textbook network's convolutions, forward and backward."""
    module = build(network["input_channels"], network["channels"], network["skip_channels"]).to("meta")
    z = torch.empty(1, network["input_channels"], height, width, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(z).sum().backward()
    return counter.get_total_flops()


def ceiling(device, dtype):
    """FLOP/s of a 3×3 convolution of 128 channels at 512², forward and backward."""
    weight = torch.randn(128, 128, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    x = torch.randn(1, 128, 512, 512, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(), weight.requires_grad_()
    pull = torch.ones_like(x)
    times = []
    for _ in range(6):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), pull)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 3 * 2 * 128 * 128 * 9 * 512 * 512 / min(times[1:])


def measure(name, height, width, steps, device, precision, rounds):
    """One row of the table."""
    case = NETWORKS[name] | dict(size=[height, width], device=device, precision=precision, seed=0, image=None, warm=3)
    pairs = []
    for _ in range(rounds):
        plain = in_own_process("textbook.py", case | {"steps": steps})
        ours = in_own_process("benchmark.py", case | {"steps": 3 * steps, "warm": 5})
        pairs.append((plain, ours))
    step = [statistics.median(pair[i]["step"] for pair in pairs) for i in (0, 1)]
    flops = flops_of_a_step(NETWORKS[name], height, width)
    used = pairs[0][1]["precision"]
    return {
        "network": name,
        "size": f"{height} × {width}",
        "device": device,
        "precision": used,
        "textbook (s)": round(step[0], 4),
        "fit (s)": round(step[1], 4),
        "ratio": round(statistics.median(a["step"] / b["step"] for a, b in pairs), 2),
        "peak textbook (GB)": round(max(a["peak"] for a, _ in pairs) / 1e9, 2),
        "peak fit (GB)": round(max(b["peak"] for _, b in pairs) / 1e9, 2),
        "GFLOP/s": round(flops / step[1] / 1e9),
        "of the ceiling": f"{flops / step[1] / ceiling(device, getattr(torch, used)):.0%}",
    }


def time_to_quality(device, steps):
    """Seconds until the average reaches what the textbook loop's last output has after its steps."""
    import dip_utils as dip

    clean = dip.resize(dip.sample("astronaut"), 256, 256)
    noisy = dip.add_gaussian_noise(clean, 25 / 255, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("clean.npy", "noisy.npy")]
        for path, image in zip(paths, (clean, noisy), strict=True):
            np.save(path, image.numpy())
        case = NETWORKS["net 2"] | dict(device=device, precision="auto", seed=0, image=paths, warm=0, steps=steps)
        plain = in_own_process("textbook.py", case)
        ours = in_own_process("benchmark.py", case | {"level": plain["psnr"]})
    found = {"textbook's last output (dB)": round(plain["psnr"], 2), "textbook (s)": round(plain["step"] * steps)}
    found |= {
        "fit's average at the end (dB)": round(ours["average_psnr"], 2),
        "steps to its level": ours["steps_to_level"],
    }
    if ours["steps_to_level"]:
        seconds = ours["step"] * ours["steps_to_level"]
        found |= {"fit (s)": round(seconds), "ratio": round(plain["step"] * steps / seconds, 2)}
    return found


def show(rows):
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one round")
    parser.add_argument(
        "--quality", type=int, metavar="STEPS", help="add the time to quality after so many steps (1800)"
    )
    parser.add_argument("--precision", default="auto", help="of fit's activations on the CPU, for example float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--fit", metavar="CASE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        return fit_case(json.loads(arguments.fit))
    settings = [("cpu", arguments.precision)]
    if torch.cuda.is_available():
        settings.append(("cuda", "auto"))
    cpu = f"{torch.get_num_threads()} threads, {torch.cpu.get_capabilities()['cpu_name']}"
    print(f"CPU: {cpu}; {platform.platform()}; torch {torch.__version__}")
    rows = [
        measure(*case, device, precision, 1 if arguments.quick else 3)
        for device, precision in settings
        for case in (QUICK_CASES if arguments.quick else CASES)
    ]
    show(rows)
    found = {"cpu": cpu, "torch": torch.__version__, "steps": rows}
    if arguments.quality:
        found["time to quality"] = time_to_quality(settings[-1][0], arguments.quality)
        show([found["time to quality"]])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
