"""How much memory a fit needs, known before it starts.

The model: activations in proportion to the pixels and channels of every scale,
48 bytes for each parameter (weights, gradients, Adam's moments, two copies of
weights and moments to go back to, short copies), and a constant for what the
libraries set up at the first step. Its numbers were measured:
`benchmarks/README.md`.
"""

import gc
from pathlib import Path

import psutil
import torch

from .runtime import release_freed_memory

#: Activations alive at the peak of a step, for each channel and pixel of a scale.
LIVE_ACTIVATIONS = 12
#: The same where the plain form of the join is used: on CUDA, not yet measured there.
LIVE_ACTIVATIONS_PLAIN = 21
BYTES_PER_PARAMETER = 48
LIBRARIES = 100e6
#: Limit, use and statistics of a container's memory: control groups, version 2 and 1, of Linux.
CONTROL_GROUPS = [
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
]


def memory_needed(network, height, width, *, precision, device):
    """Bytes that a fit adds to the process at its peak.

    Parameters
    ----------
    network : SkipNetwork
    height, width : int
        Of the image, in pixels.
    precision : torch.dtype
    device : torch.device

    Returns
    -------
    int
    """
    live = LIVE_ACTIVATIONS if device.type == "cpu" else LIVE_ACTIVATIONS_PLAIN
    numbers = sum(channels * height * width / 4**scale for scale, channels in enumerate(network.channels))
    images = 4 * height * width * (3 * network.input_channels + 8 * network.output_channels)
    activations = live * precision.itemsize * numbers
    return int(LIBRARIES + BYTES_PER_PARAMETER * network.parameter_count + activations + images)


def available_memory(device):
    """Bytes that a fit may still take on this device."""
    if device.type == "cuda":
        # What PyTorch holds unused counts as free.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *(left for group in CONTROL_GROUPS for left in left_in(*group))])


def left_in(limit, used, statistics):
    """Bytes that a container may still take, in a list; an empty list where there is no limit."""
    limit, used, statistics = (Path(name) for name in (limit, used, statistics))
    if not all(path.is_file() for path in (limit, used, statistics)) or not limit.read_text().strip().isdigit():
        return []
    # Cached pages of files count as used, and are given up on demand.
    cached = dict(line.split() for line in statistics.read_text().splitlines()).get("inactive_file", 0)
    return [max(0, int(limit.read_text()) - int(used.read_text()) + int(cached))]


def check_records(images, values, size):
    """Raise where kept images and a trace cannot fit into the free memory.

    Parameters
    ----------
    images : int
        To keep, each of `size` numbers.
    values : int
        Of the trace, over all steps.
    size : int
    """
    needed, free = 4 * (images * size + values), available_memory(torch.device("cpu"))
    if needed > free:
        raise MemoryError(
            f"keep, trace: {images} images and {values:,} values need {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; wants fewer"
        )


def check_memory(network, height, width, *, precision, device):
    """Raise where a fit of this size cannot fit into the free memory.

    Raises
    ------
    MemoryError
        Names the largest size of this shape that would fit.
    """
    needed = memory_needed(network, height, width, precision=precision, device=device)
    free = available_memory(device)
    if needed > free:
        # What earlier fits have left in the allocator can be had back.
        release_memory(device)
        free = available_memory(device)
    if needed > free:
        raise too_large(network, height, width, precision, device, free, f"needs about {needed / 1e9:.1f} GB")


def too_large(network, height, width, precision, device, free, what):
    """The error that names the largest size that would fit."""
    unit = max(1, network.smallest_side - 1)
    # Of the same shape, in multiples that the network halves exactly.
    advice = "no size of this shape would fit"
    for share in range(63, 0, -1):
        smaller = [side * share // (64 * unit) * unit for side in (height, width)]
        if min(smaller) > unit and memory_needed(network, *smaller, precision=precision, device=device) < 0.9 * free:
            advice = f"wants at most {smaller[0]} × {smaller[1]}: shrink it or crop it"
            break
    return MemoryError(f"z: a fit of {height} × {width} {what}, {free / 1e9:.1f} GB are free on {device}; {advice}")


def release_memory(device):
    """Give back to the system what is held and not used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        release_freed_memory()
