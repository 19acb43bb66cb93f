"""The loop as a student writes it from the sample code; imports nothing of dip_utils.

Contiguous float32, stock modules, stock Adam, fresh noise; at every step the loss is
read and the PSNR computed on the host. The weights of the batch norms begin at 1, as
PyTorch makes them, or as in 2018 if the case says so. A case is JSON: the network, the
image and the steps. Prints one line of JSON for each case: "best" is the best PSNR,
"best_step" the number of updates before it, after the warm ones.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn import functional as F


def block(inputs, outputs, size, stride=1):
    return nn.Sequential(
        nn.ReflectionPad2d(size // 2),
        nn.Conv2d(inputs, outputs, size, stride),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.2, inplace=True),
    )


class Level(nn.Module):
    def __init__(self, inputs, channels, skips):
        super().__init__()
        width, skip = channels[0], skips[0]
        self.down = nn.Sequential(block(inputs, width, 3, 2), block(width, width, 3))
        self.deeper = Level(width, channels[1:], skips[1:]) if channels[1:] else nn.Identity()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.skip = block(inputs, skip, 1) if skip else None
        joined = skip + (channels[1] if channels[1:] else width)
        self.up = nn.Sequential(nn.BatchNorm2d(joined), block(joined, width, 3), block(width, width, 1))

    def forward(self, x):
        y = self.upsample(self.deeper(self.down(x)))
        if self.skip is not None:
            y = torch.cat([self.skip(x), y], 1)
        return self.up(y)


def build(inputs, channels, skips):
    return nn.Sequential(Level(inputs, channels, skips), nn.Conv2d(channels[0], 3, 1), nn.Sigmoid())


def psnr(reference, image):
    return 10 * np.log10(1 / np.mean((reference - image) ** 2))


def peak_memory():
    """Bytes of this process at its peak; Linux's ru_maxrss would count the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    if os.name == "nt":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def train(network, z, target, reference, steps, noise):
    """Yield the PSNR of each step's output."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    clean = reference.cpu().numpy()
    for _ in range(steps):
        optimizer.zero_grad()
        output = network(z + noise * torch.randn_like(z))
        loss = F.mse_loss(output, target)
        loss.backward()
        optimizer.step()
        loss.item()
        yield psnr(clean, output.detach().cpu().numpy())


def measure(case):
    device = torch.device(case["device"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(case["seed"])
    network = build(case["input_channels"], case["channels"], case["skip_channels"]).to(device)
    if case.get("as in 2018"):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight)
    if case["image"]:
        reference, target = (torch.from_numpy(np.load(path))[None].to(device) for path in case["image"])
    else:
        reference = target = torch.rand(1, 3, *case["size"], device=device)
    z = torch.rand(1, case["input_channels"], *target.shape[2:], device=device) * 0.1
    training = train(network, z, target, reference, case["warm"] + case["steps"], case.get("input_noise", 1 / 30))
    for _ in range(case["warm"]):
        next(training)
    begun = time.perf_counter()
    curve = list(training)
    seconds = time.perf_counter() - begun
    peak = peak_memory()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    found = {"step": seconds / case["steps"], "peak": peak, "psnr": float(curve[-1])}
    return found | {"best": float(max(curve)), "best_step": int(np.argmax(curve))}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(measure(json.loads(argument))), flush=True)
