"""How much memory a fit needs, estimated before it starts.

The model: what autograd keeps of one forward pass, counted on PyTorch's meta
device, where nothing is computed; some bytes for each parameter (weights,
gradient, Adam's moments, a copy of each to go back to); and a constant for what
the libraries set up at the first step. Its constants were measured on the CPU.
"""

import contextlib
import gc
import math
from pathlib import Path

import psutil
import torch
from torch.func import functional_call

from .machine import release_memory

#: Peak of a step, as a multiple of what autograd keeps of its forward pass: 2.0 to 2.5 for three plain networks.
PEAK = 2.1
#: The same for the faster forms of a `SkipNetwork`.
PEAK_ACCELERATED = 1.15
BYTES_PER_PARAMETER = 40
LIBRARIES = 60e6
#: Limit, use and statistics of a container's memory, in Linux control groups of version 2 and 1.
CONTROL_GROUPS = {
    "/sys/fs/cgroup": ("memory.max", "memory.current", "memory.stat"),
    "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
}


def tensors_in_place(network):
    """A dict of parameters and buffers, by the names under which `functional_call` is to replace them.

    A tensor that two layers share has two names. A layer that stands in two places
    counts once: given both names, `functional_call` would leave the other tensor in it.
    """
    return {
        name: tensor
        for prefix, layer in network.named_modules()
        for own in (layer.named_parameters, layer.named_buffers)
        for name, tensor in own(prefix, recurse=False, remove_duplicate=False)
    }


@contextlib.contextmanager
def left_alone(network):
    """Undo what a first call leaves in a network, such as a grid or a buffer: here it is on the meta device."""
    # A compiled module cannot gain anything.
    layers = [layer for layer in network.modules() if not isinstance(layer, torch.jit.ScriptModule)]
    before = [(now, dict(now)) for layer in layers for now in (vars(layer), layer._buffers)]
    try:
        yield
    finally:
        for now, old in before:
            now.clear()
            now.update(old)


def dry_pass(network, shape, dtype):
    """The output, of the right shape but without values, and the bytes that autograd keeps of the forward pass."""
    twins, kept = {}, {}
    for name, tensor in tensors_in_place(network).items():
        own = dtype if tensor.is_floating_point() else tensor.dtype
        twins[name] = torch.empty_like(tensor, device="meta", dtype=own, requires_grad=tensor.requires_grad)

    def keep(tensor):
        # Nothing is returned: the graph would hold an output that holds the graph.
        kept[tensor.untyped_storage()._cdata] = tensor

    with (
        left_alone(network),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing),
    ):
        z = torch.empty(1, *shape, device="meta", dtype=dtype)
        output = functional_call(network, twins, (z,), tie_weights=False)
    for twin in twins.values():
        kept.pop(twin.untyped_storage()._cdata, None)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    # The output's graph holds `keep`, which holds what it has kept: a cycle that Python cannot see.
    kept.clear()
    return output, total


def memory_needed(network, shape, kept, output, *, accelerated):
    """Bytes that a fit adds to the process at its peak, from what `dry_pass` found."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    peak = PEAK_ACCELERATED if accelerated else PEAK
    images = 4 * (3 * math.prod(shape) + 10 * output.numel())
    return int(LIBRARIES + BYTES_PER_PARAMETER * parameters + peak * kept + images)


def available_memory(device):
    """Bytes that a fit may still take on this device."""
    if device.type == "cuda":
        # What PyTorch holds and does not use counts as free.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    groups = ([Path(folder) / name for name in names] for folder, names in CONTROL_GROUPS.items())
    return min([psutil.virtual_memory().available, *(left for group in groups for left in left_in(*group))])


def left_in(limit, used, statistics):
    """A list of the bytes that a container may still take; empty if there is no limit."""
    if not all(path.is_file() for path in (limit, used, statistics)) or not limit.read_text().strip().isdigit():
        return []
    # Cached pages of files count as used, but are given up on demand.
    cached = dict(line.split() for line in statistics.read_text().splitlines()).get("inactive_file", 0)
    return [max(0, int(limit.read_text()) - int(used.read_text()) + int(cached))]


def check_memory(network, size, needed, device):
    """Raise if a fit needs more bytes than are free; name the largest size of this shape that would fit."""
    free = available_memory(device)
    if needed > free:
        # Earlier work may have left some in the allocators.
        gc.collect()
        release_memory(device)
        free = available_memory(device)
    if needed <= free:
        return
    fixed = LIBRARIES + BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in network.parameters())
    share = max(0, (0.9 * free - fixed) / (needed - fixed)) ** (1 / len(size))
    # Multiples of 32, which five scales halve exactly.
    smaller = [int(side * share) // 32 * 32 for side in size]
    advice = f"wants at most {by(smaller)}: shrink it or crop it" if min(smaller) else "no size of this shape would fit"
    raise MemoryError(
        f"z: a fit of {by(size)} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}; {advice}"
    )


def check_records(curves, keep, trace, device):
    """Raise if curves, kept images (on the CPU) or a trace of this many numbers do not fit into memory."""
    cpu = torch.device("cpu")
    for name, numbers, place in (("steps", curves, device), ("keep", keep, cpu), ("trace", trace, device)):
        needed, free = 4 * numbers, available_memory(place)
        if needed > free:
            raise MemoryError(
                f"{name}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {place}; wants less to record"
            )


def by(size):
    """Sides as a text: 512 × 384."""
    return " × ".join(map(str, size))


def is_out_of_memory(error):
    """Whether an error says that the system or a card is out of memory."""
    words = ["can't allocate memory", "not enough memory"]  # Linux and macOS; Windows
    # CUDA and its libraries; cuDNN finds no engine if none fits.
    words += ["out of memory", "ALLOC_FAILED", "unable to find an engine"]
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)
