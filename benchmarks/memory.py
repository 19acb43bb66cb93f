"""The model of a fit's memory against what a process grows by over twelve steps, each in a process of its own."""

import json
import sys

import dip_utils as dip
from dip_utils.engine.memory import dry_pass, memory_needed

from .common import NETWORKS, in_own_process, show
from .textbook import peak_memory

#: Network, height, width.
CASES = [
    ("net 1", 256, 192), ("net 1", 384, 544), ("net 1", 768, 512),
    ("net 2", 128, 128), ("net 2", 256, 256), ("net 2", 512, 512),
]  # fmt: skip


def measure(case):
    """Bytes by which twelve steps raise the peak, and what the model says."""
    network = dip.SkipNetwork(**NETWORKS[case["network"]], seed=0)
    precision = dip.choose_precision(case["precision"])
    z = dip.random_input(network.input_channels, *case["size"], seed=0)
    target = dip.uniform_noise(3, *case["size"], seed=0)
    output, kept = dry_pass(network, z.shape, precision)
    before = peak_memory()
    dip.fit(network, z, target, reference=target, steps=12, device="cpu", precision=case["precision"])
    grown = peak_memory() - before
    return {"measured": grown, "model": memory_needed(network, z.shape, kept, output, accelerated=True)}


def main():
    if sys.argv[1:]:
        return print(json.dumps(measure(json.loads(sys.argv[1]))))
    rows = []
    for precision in ("bfloat16", "float32"):
        for name, *size in CASES:
            found = in_own_process("memory", {"network": name, "size": size, "precision": precision})
            row = {"network": name, "size": f"{size[0]} × {size[1]}", "precision": precision}
            rows.append(row | {f"{key} (MB)": round(value / 1e6) for key, value in found.items()})
            print(*rows[-1].values(), flush=True)
    show(rows)


if __name__ == "__main__":
    main()
