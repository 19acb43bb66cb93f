"""The machine underneath: budget, device, precision, seeds, allocator."""

import contextlib
import ctypes
import functools
import os
import platform
import re
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from .checks import check_choice, check_integer

BUDGETS = ("full", "quick", "smoke")
#: How many times as fast as float32 bfloat16 must be to be worth its rounding.
WORTH = 1.2
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


#: How a fit uses the machine: what benchmarks and tests vary, and nobody else.
TUNING = {
    # CPU: from this many numbers in a tensor on, the faster forms are used.
    "large": 2**16,
    # CPU: try whether a step is faster with fewer threads.
    "threads": True,
    # CUDA: capture a step as a graph.
    "graph": True,
    # Channels-last images, where that is faster.
    "channels_last": True,
}


@contextlib.contextmanager
def tuned(**changes):
    """Use other settings in this block, in all threads."""
    assert changes.keys() <= TUNING.keys(), changes
    before = dict(TUNING)
    TUNING.update(changes)
    try:
        yield
    finally:
        TUNING.update(before)


def seeded(seed, purpose="", device="cpu"):
    """A random generator of its own, so that no function touches the global one.

    For each purpose the same seed gives other numbers. Otherwise the noise on an
    image and the input z would, with one seed, be made of the same random
    numbers, and the network could learn the noise from z: it did. Without a
    purpose the generator is torch's own for this seed. A seed is below 2**63.
    """
    check_integer("seed", seed, 0)
    if seed >= 2**63:
        raise ValueError(f"seed: got {seed}; wants an integer below 2**63")
    if purpose:
        state = np.random.SeedSequence([int(seed), *purpose.encode()]).generate_state(1, np.uint64)
        seed = state[0] >> np.uint64(1)
    return torch.Generator(device).manual_seed(int(seed))


def say(line):
    """Print a line, with a ? for what the terminal cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding))


class Pace:
    """Holds something to a share of the time; its first time, which sets things up, would silence it for long."""

    def __init__(self, share):
        self.share, self.begun, self.spent = share, None, 0.0

    def is_due(self):
        """Whether the share is not used up."""
        return self.begun is None or self.spent < self.share * (time.perf_counter() - self.begun)

    @contextlib.contextmanager
    def counted(self):
        """Count the time of this block, but for the first one's."""
        before = time.perf_counter()
        yield
        now = time.perf_counter()
        if self.begun is None:
            self.begun = now
        else:
            self.spent += now - before


@functools.cache
def has_card():
    """Whether there is a CUDA card that this PyTorch was built for; where it was not, a line says so."""
    if not torch.cuda.is_available():
        return False
    # PyTorch counts cards too that are too old for it. Code for a card, sm_86, also runs on those with the same first
    # digit and a later second one, compute_86 on all later ones.
    major, minor = torch.cuda.get_device_capability()
    names = torch.cuda.get_arch_list()
    built = [found.groups() for name in names if (found := re.match(r"(sm|compute)_(\d+)(\d)", name))]
    runs = any(
        (major, minor) >= (int(first), int(second)) and (kind == "compute" or major == int(first))
        for kind, first, second in built
    )
    # AMD's have other names.
    if built and not runs:
        own, wanted = f"{major}.{minor}", ", ".join(names)
        say(f"The CUDA card is not used: its compute capability is {own}, this PyTorch is built for {wanted}.")
        return False
    return True


def choose_budget():
    """How much work a notebook does, from ``DIP_BUDGET``; where it is not set "full" with CUDA, else "quick".

    "full" means the report's sizes and steps, "quick" minutes on a laptop, "smoke"
    is for automatic tests.
    """
    budget = os.environ.get("DIP_BUDGET") or ("full" if has_card() else "quick")
    check_choice("DIP_BUDGET", budget, BUDGETS)
    return budget


def choose_device(device="auto"):
    """The torch.device of "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N", if it is there."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if has_card() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}; wants 'auto', 'cpu', 'cuda' or 'cuda:0'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: got {device!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen


@functools.cache
def bfloat16_gain():
    """How many times as fast as in float32 a 3×3 convolution is in bfloat16 on this CPU, forward and backward.

    Measured, once per process and in some hundredths of a second: a processor's
    flags do not tell.
    """

    def tensors(dtype):
        shapes = (1, 64, 64, 64), (64, 64, 3, 3)
        x, weight = (torch.zeros(shape, dtype=dtype, device="cpu") for shape in shapes)
        return [t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, weight)]

    threads = torch.get_num_threads()
    try:
        # On a busy machine several threads would measure how long they wait for each other.
        torch.set_num_threads(1)
        with torch.inference_mode(False), torch.enable_grad():
            trials = {dtype: (tensors(dtype), []) for dtype in (torch.float32, torch.bfloat16)}
            for _ in range(7):
                # In turn, so that both meet the same load.
                for (x, weight), times in trials.values():
                    begun = time.perf_counter()
                    F.conv2d(x, weight, padding=1).sum().backward()
                    times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    exact, rounded = (min(times) for _, times in trials.values())
    return exact / rounded


def choose_precision(precision="auto", device="cpu"):
    """The dtype of the activations; weights and statistics have at least float32.

    "auto" takes bfloat16 where it is clearly faster: on recent CUDA cards, and on a
    CPU where a trial shows it; float16 on older cards with tensor cores; else
    float32. "float64" computes everything in float64: slow, for checks. "float16"
    is not for the CPU.
    """
    device = torch.device(device)
    check_choice("precision", precision, ("auto", *PRECISIONS))
    if precision == "auto" and device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        precision = "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
    elif precision == "auto":
        # Where these instructions are missing there is nothing to try.
        has = torch.cpu.get_capabilities()
        native = has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16")
        precision = "bfloat16" if native and bfloat16_gain() >= WORTH else "float32"
    if precision == "float16" and device.type == "cpu":
        raise ValueError("precision: got 'float16' on the CPU; wants another one there")
    return PRECISIONS[precision]


def describe_machine(budget):
    """Print one line on the budget, the device and the versions."""
    device = choose_device()
    precision = str(choose_precision("auto", device))[6:]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"CPU with {threads} thread{'s' * (threads > 1)}, no CUDA: everything runs, only more slowly"
    say(f"budget {budget} on {name}; {precision}; Python {platform.python_version()}, torch {torch.__version__}")


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next step; elsewhere do nothing.

    A step frees and allocates the same gigabytes again. By default glibc gives
    them back to the system in between, and the page faults cost more than the
    arithmetic. It holds for the process, from its first fit on; what a fit has
    left is given back at its end.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, most_mmaps = -1, -3, -4
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(trim_threshold, 2**31 - 1)
    if not mallopt(mmap_threshold, 1 << 30):
        # Older versions refuse so large a threshold.
        mallopt(most_mmaps, 0)


def release_memory(device):
    """Give back to the system what the allocators of a device and of glibc hold and do not use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
