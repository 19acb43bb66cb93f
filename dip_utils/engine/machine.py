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
#: The speed-up over float32 from which bfloat16 is worth its rounding.
WORTH = 1.2
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


#: How a fit uses the machine; only benchmarks and tests change it.
TUNING = {
    # CPU: the number of values in a tensor from which the faster forms are used.
    "large": 2**16,
    # CPU: test whether fewer threads are faster.
    "threads": True,
    # CUDA: capture a step as a graph.
    "graph": True,
    # Keep images in channels-last where that is faster.
    "channels_last": True,
}


@contextlib.contextmanager
def tuned(**changes):
    """Change settings in this block, for all threads."""
    assert changes.keys() <= TUNING.keys(), changes
    before = dict(TUNING)
    TUNING.update(changes)
    try:
        yield
    finally:
        TUNING.update(before)


def seeded(seed, purpose="", device="cpu"):
    """A new random generator, so that no function touches the global one.

    With another purpose the same seed gives other numbers. Otherwise, with one seed,
    the noise on an image and the input z would be made of the same random numbers,
    and the network could learn the noise from z: it did. Without a purpose this is
    torch's own generator for this seed. A seed is below 2**63.
    """
    check_integer("seed", seed, 0)
    if seed >= 2**63:
        raise ValueError(f"seed: got {seed}; wants an integer below 2**63")
    if purpose:
        state = np.random.SeedSequence([int(seed), *purpose.encode()]).generate_state(1, np.uint64)
        seed = state[0] >> np.uint64(1)
    return torch.Generator(device).manual_seed(int(seed))


def say(line):
    """Print a line, with a ? for each character that the terminal cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding))


class Pace:
    """Limits an activity to a share of the time. Its first run, which sets things up, is not counted."""

    def __init__(self, share):
        self.share, self.begun, self.spent = share, None, 0.0

    def is_due(self):
        """Whether some of the share is left."""
        return self.begun is None or self.spent < self.share * (time.perf_counter() - self.begun)

    @contextlib.contextmanager
    def counted(self):
        """Count the time of this block, unless it is the first."""
        before = time.perf_counter()
        yield
        now = time.perf_counter()
        if self.begun is None:
            self.begun = now
        else:
            self.spent += now - before


@functools.cache
def has_card():
    """Whether there is a CUDA card that this PyTorch supports; if there is one that it does not, a line says so."""
    if not torch.cuda.is_available():
        return False
    # PyTorch also counts cards that are too old for it. Code for sm_86 runs on cards of the same major version and
    # the same or a later minor one, code for compute_86 on all later cards too.
    major, minor = torch.cuda.get_device_capability()
    names = torch.cuda.get_arch_list()
    built = [found.groups() for name in names if (found := re.match(r"(sm|compute)_(\d+)(\d)", name))]
    runs = any(
        (major, minor) >= (int(first), int(second)) and (kind == "compute" or major == int(first))
        for kind, first, second in built
    )
    # AMD's architectures have other names.
    if built and not runs:
        own, wanted = f"{major}.{minor}", ", ".join(names)
        say(f"The CUDA card is not used: its compute capability is {own}, this PyTorch is built for {wanted}.")
        return False
    return True


def choose_budget():
    """How much work a notebook does: ``DIP_BUDGET``, or if it is not set, "full" with CUDA, else "quick".

    "full" means the report's steps and larger pictures, "quick" minutes on a laptop; "smoke" is
    for automatic tests.
    """
    budget = os.environ.get("DIP_BUDGET") or ("full" if has_card() else "quick")
    check_choice("DIP_BUDGET", budget, BUDGETS)
    return budget


def choose_device(device="auto"):
    """The torch.device for "cpu", "cuda", "cuda:N" or "auto" (CUDA if there is a card, else the CPU), or an error."""
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
    """The speed-up of a 3×3 convolution, forward and backward, in bfloat16 over float32 on this CPU.

    Measured once per process, in one or two tenths of a second: a processor's flags do
    not tell.
    """

    def tensors(dtype):
        shapes = (1, 64, 64, 64), (64, 64, 3, 3)
        x, weight = (torch.zeros(shape, dtype=dtype, device="cpu") for shape in shapes)
        return [t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, weight)]

    threads = torch.get_num_threads()
    try:
        # On a busy machine several threads would spend their time waiting for each other.
        torch.set_num_threads(1)
        with torch.inference_mode(False), torch.enable_grad():
            trials = {dtype: (tensors(dtype), []) for dtype in (torch.float32, torch.bfloat16)}
            for _ in range(7):
                # In turn, so that both see the same load.
                for (x, weight), times in trials.values():
                    begun = time.perf_counter()
                    F.conv2d(x, weight, padding=1).sum().backward()
                    times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    exact, rounded = (min(times) for _, times in trials.values())
    return exact / rounded


def choose_precision(precision="auto", device="cpu"):
    """The dtype of the activations; weights and statistics are in float32 at least.

    "auto" is bfloat16 where that is clearly faster: on recent CUDA cards, and on a CPU
    if a trial shows it; float16 on older cards with tensor cores; else float32. With
    "float64" everything is in float64: slow, for checks. "float16" is not for the CPU.
    """
    device = choose_device(device)
    check_choice("precision", precision, ("auto", *PRECISIONS))
    if precision == "auto" and device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        precision = "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
    elif precision == "auto":
        # Without these instructions there is nothing to try.
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

    Each step frees gigabytes and allocates them again. By default glibc returns them
    to the system in between, and the page faults cost more than the arithmetic. The
    setting stays for the rest of the process; at the end of each fit the memory is
    released.
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
    """Return unused memory, which the allocators of a device and of glibc hold, to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
