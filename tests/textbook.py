"""The deep image prior as a student writes it, in double precision: the oracle of every test of `fit`."""

from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from .conftest import build


def textbook(
    z,
    target,
    steps,
    *,
    network=None,
    operator=lambda x: x,
    loss=F.mse_loss,
    regularizer=lambda x: 0,
    learning_rate=0.01,
    input_noise=1 / 30,
    seed=0,
    seen=None,
    device="cpu",
):
    """Train and return the losses, the outputs (C, H, W) and the averages, of steps 0 to `steps`.

    `seen`, of the target's height and width, is true where a pixel is fitted.
    """
    network = (network or build()).double().to(device)
    z, target = z.to(device), target[None].to(device).double()
    seen = torch.ones(target.shape[2:], dtype=torch.bool) if seen is None else seen
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    losses, outputs, averages = [], [], []
    for step in range(steps + 1):
        noise = torch.randn(z.shape, generator=generator, device=device)
        output = network((z + input_noise * noise)[None].double())
        data_term = loss(operator(output)[..., seen], target[..., seen])
        losses.append(data_term.item())
        outputs.append(output.detach()[0].cpu())
        weight = max(0.01, 1 / (step + 1))
        averages.append(outputs[0] if step == 0 else (1 - weight) * averages[-1] + weight * outputs[-1])
        optimizer.zero_grad()
        (data_term + regularizer(output)).backward()
        optimizer.step()
    return SimpleNamespace(loss=np.array(losses), outputs=outputs, averages=averages)
