"""A step of a small fit on a machine that is busy with something else, beside a quiet one.

One competing process for all cores but one keeps them busy. Network 2 at 96 × 96,
as `fit` does it and with all threads always.
"""

import os
import statistics
import subprocess
import sys

from .common import NETWORKS, in_own_process, show

SIDE, STEPS, ROUNDS = 96, 150, 3
CASE = NETWORKS["net 2"] | dict(
    size=[SIDE, SIDE], steps=STEPS, warm=0, device="cpu", precision="auto", seed=0, image=None
)
WAYS = {"as fit does it": {}, "with all threads always": {"threads": False}}


def milliseconds(tuned):
    """Of a step, the mean over the whole fit: finding the number of threads is part of it."""
    return 1000 * in_own_process("one_fit", CASE | {"tuned": tuned})["step"]


def with_competitors(measure, *arguments):
    """What a function measures while all cores but one are taken."""
    command = [sys.executable, "-c", "while True: pass"]
    competitors = [subprocess.Popen(command) for _ in range(max(1, os.cpu_count() - 1))]
    try:
        return measure(*arguments)
    finally:
        for process in competitors:
            process.kill()


def main():
    rows = []
    for name, tuned in WAYS.items():
        times = [(milliseconds(tuned), with_competitors(milliseconds, tuned)) for _ in range(ROUNDS)]
        quiet, busy = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        rows.append({"": name, "quiet (ms)": round(quiet), "busy (ms)": round(busy), "ratio": f"{ratio:.1f}"})
        print(*rows[-1].values(), flush=True)
    show(rows)


if __name__ == "__main__":
    main()
