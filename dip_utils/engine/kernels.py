"""The network in faster forms, for the duration of a fit: the same numbers up to rounding.

Nothing here is needed to understand the network: its plain form is in `network.py`,
and tests check that the two agree. This file decides which layer gets which form. The
forms are in `cpu.py` and `card.py`, but for one, which serves both:

**No bias in front of a batch norm.** The batch norm removes whatever is the same
for all pixels: the bias of the convolution in front of it, and the shift of a
normalisation in front of that convolution. They have no effect, and no gradient
but rounding errors.
"""

import contextlib
import functools
import itertools

import torch
from torch import nn
from torch.nn import functional as F

from ..network import Join, Scale, SkipNetwork
from .card import Reflected, doubling, enlarge
from .cpu import NarrowBatchNorm, join_and_convolve
from .machine import TUNING

#: Up to this many channels `NarrowBatchNorm` is faster.
NARROW = 8
#: Longest side for `enlarge`, whose arithmetic grows with its cube; measured up to 544.
LONGEST = 1024
#: Layers known to compute the same in channels-last. PyTorch's instance norm (2.13, CPU),
#: for one, has a wrong gradient there.
ANY_LAYOUT = {SkipNetwork, Scale, Join, nn.Sequential, nn.Identity, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU}


def takes_channels_last(network, device, precision):
    """Whether a network can compute in channels-last, and is faster so: on a card only in 16 bits."""
    faster = TUNING["channels_last"] and (device.type == "cpu" or precision.itemsize == 2)
    return faster and all(type(layer) in ANY_LAYOUT for layer in network.modules())


def is_untouched(layer):
    """Whether a layer has no hooks, and no forward of its own set on it."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return not any(hooks) and "forward" not in vars(layer)


def is_own_convolution(layer):
    """Whether a layer is a convolution as `SkipNetwork` makes them."""
    shapes = {(1, 1): ((0, 0), "zeros"), (3, 3): ((1, 1), "reflect")}
    return (
        type(layer) is nn.Conv2d
        and shapes.get(layer.kernel_size) == (layer.padding, layer.padding_mode)
        and layer.stride in ((1, 1), (2, 2))
        and layer.groups == 1 == max(layer.dilation)
        and is_untouched(layer)
    )


def is_own_norm(layer):
    """Whether a layer is a batch norm as `SkipNetwork` makes them."""
    own = type(layer) is nn.BatchNorm2d and layer.bias is not None and not layer.track_running_stats
    return own and is_untouched(layer)


def chain(layer):
    """The layers of a Sequential, and of those in it, in the order in which they compute; else the layer alone."""
    plain = type(layer) is nn.Sequential and is_untouched(layer)
    return [part for child in layer for part in chain(child)] if plain else [layer]


def before_batch_norm(network):
    """The set of convolutions in a network's scales that are followed at once by a batch norm."""
    pairs = []
    for scale in (layer for layer in network.modules() if type(layer) is Scale and "forward" not in vars(layer)):
        join = [scale.join.convolution] if type(scale.join) is Join and is_untouched(scale.join) else []
        for layers in (chain(scale.down), chain(scale.skip), join + chain(scale.up)):
            pairs += itertools.pairwise(layers)
    return {first for first, second in pairs if is_own_convolution(first) and is_own_norm(second)}


@contextlib.contextmanager
def accelerated(network):
    """Swap the faster forms into a network, and take them out at the end.

    Yields the set of parameters that have no effect meanwhile.
    """
    convolutions = before_batch_norm(network)
    norms = [layer for layer in network.modules() if is_own_norm(layer) and layer.num_features <= NARROW]
    joins = [
        layer for layer in network.modules()
        if type(layer) is Join and is_own_norm(layer.norm)
        and layer.convolution in convolutions and layer.convolution.kernel_size == (3, 3)
        and layer.convolution.stride == (1, 1)
    ]  # fmt: skip
    # A cache for each fit: its graph knows the matrices by their addresses.
    join = functools.partial(_join, functools.cache(doubling))
    forms = dict.fromkeys(convolutions, _convolution) | dict.fromkeys(norms, _batch_norm) | dict.fromkeys(joins, join)
    for layer, form in forms.items():
        layer.forward = functools.partial(form, layer)
    try:
        yield {layer.bias for layer in convolutions} | {join.norm.bias for join in joins}
    finally:
        for layer in forms:
            del layer.forward


def _pays(x):
    """Whether x is large enough for the forms of the CPU to pay off."""
    return x.device.type == "cpu" and x.numel() >= TUNING["large"]


def _lies_on_card(x):
    """Whether x is an image as the forms for CUDA take it."""
    # With one channel both layouts look alike.
    innermost = x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type != "cpu" and len(x) == 1 and innermost


def _join(doubling, layer, skip, below, height, width):
    rows, columns = below.shape[2:]
    doubled = 2 * rows - height in (0, 1) and 2 * columns - width in (0, 1)
    if _pays(below) and doubled and min(rows, columns) >= 4:
        return join_and_convolve(skip, below, height, width, layer.norm, layer.convolution)
    if _lies_on_card(below) and below.element_size() == 2 and max(height, width) <= LONGEST:
        x = enlarge(below, height, width, doubling)
        return layer.convolution(layer.norm(x if skip is None else torch.cat([skip, x], 1)))
    return Join.forward(layer, skip, below, height, width)


def _batch_norm(layer, x):
    if _pays(x) and x.is_contiguous(memory_format=torch.channels_last):
        return NarrowBatchNorm.apply(x, layer.weight, layer.bias, layer.eps)
    return nn.BatchNorm2d.forward(layer, x)


def _convolution(layer, x):
    if layer.padding_mode != "reflect":
        return F.conv2d(x, layer.weight, stride=layer.stride)
    # With stride 2 the border behind an even side is not read; if it is padded all the same, oneDNN's gradient may
    # take twenty times as long.
    bottom, right = behind = [1 - (side - 1) % layer.stride[0] for side in x.shape[2:]]
    if _lies_on_card(x) and min(x.shape[2:]) >= 4:
        return Reflected.apply(x, layer.weight, layer.stride, behind)
    return F.conv2d(F.pad(x, (1, right, 1, bottom), mode="reflect"), layer.weight, stride=layer.stride)
