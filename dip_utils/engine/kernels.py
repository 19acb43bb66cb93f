"""The network in faster forms, for the time of a fit: the same numbers to rounding.

Nothing here is needed to understand the network: the plain forms stand in
`network.py`, and a test holds the two equal.

**The join of a scale** (CPU). The plain way enlarges y twofold, normalises it and
convolves the large image. Bilinear enlarging is zero stuffing (a zero behind each
pixel) followed by the blur (1, 3, 3, 1)/4 along each axis, and a blur commutes
with a convolution:

    convolve(blur(stuff(y)), w)  =  blur(convolve(stuff(y), w))

On the right three of four products are with zeros, and a transposed convolution
leaves them out: a quarter of the arithmetic. The scale of the normalisation moves
into w, and its moments are taken from y, so that three large images are never made.

**No bias in front of a batch norm**, which takes out what is the same for all
pixels: the bias of a convolution, and the shift of a normalisation in front of
that convolution. They have no effect, and no gradient but rounding.

**Batch norm of few channels** (CPU), see `NarrowBatchNorm`.

**A convolution that reflects its border itself, and enlarging as matrix products** (CUDA), see `Reflected`
and `enlarge`: PyTorch's own reflection and bilinear upsampling take several times what a copy takes.

**All weights rounded at once** (CUDA), see `Round`.
"""

import contextlib
import functools
import itertools
import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ..network import Join, Scale, SkipNetwork
from .machine import TUNING

#: Up to this many channels `NarrowBatchNorm` is faster.
NARROW = 8
#: From this many weights on `Transposed` is faster than PyTorch's transposed convolution.
WIDE = 128 * 128 * 9
#: Layers that compute the same with the channels innermost. Of others it is not known, and PyTorch's
#: instance norm (2.13, CPU) has a wrong gradient there.
ANY_LAYOUT = {SkipNetwork, Scale, Join, nn.Sequential, nn.Identity, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU}
BLUR = (1 / 4, 3 / 4, 3 / 4, 1 / 4)
#: The autocorrelation of BLUR as seen on the small grid, with sum 1.
SMOOTH = (3 / 16, 10 / 16, 3 / 16)


def filter_channels(x, taps, padding=0):
    """Filter every channel of x by the same separable taps, with zeros around x."""
    taps = x.new_tensor(taps)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


class Blur(torch.autograd.Function):
    """Filter every channel of x by BLUR, no padding.

    Its gradient is the same filter again, which autograd does not know: it would
    keep x for it, and take twice the time.
    """

    @staticmethod
    def forward(ctx, x):
        return filter_channels(x, BLUR)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return filter_channels(gradient, BLUR, padding=len(BLUR) - 1)


def as_rows(x, pixels):
    """An image as a matrix with so many pixels to a row; a view where it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, pixels * x.shape[1])


def pixels_to_a_row(x):
    """How many pixels of few channels to take for one of many: PyTorch vectorises along the channels."""
    channels = x.shape[1]
    return math.gcd(x.numel() // channels, max(1, 128 // channels))


def repeated(values, pixels):
    """Values of the channels, for each pixel of a row anew."""
    # `repeat` takes six times as long.
    return torch.cat([values] * pixels)


def add_to_channels(x, shift, scale, y):
    """Add shift + scale · y to x, in place; shift and scale are of one value for each channel."""
    shift, scale = shift.to(x.dtype), scale.to(x.dtype)
    if x.is_contiguous(memory_format=torch.channels_last):
        pixels = pixels_to_a_row(x)
        shift, scale = repeated(shift, pixels), repeated(scale, pixels)
        as_rows(x, pixels).add_(torch.addcmul(shift, as_rows(y, pixels), scale))
    else:
        x.add_(torch.addcmul(shift[:, None, None], y, scale[:, None, None]))


def border(x, dim, depth=0):
    """The first and the last row (dim 2) or column (dim 3) of x; with depth 1 those next to them."""
    length = x.shape[dim]
    return torch.ops.aten.slice(x, dim, depth, length - depth, length - 1 - 2 * depth)


class Survey(torch.autograd.Function):
    """Statistics and border terms of y that the join needs.

    y with its border replicated; mean and mean square of y enlarged, per channel;
    a quarter of the steps from its outermost rows and columns inward. In one
    function, so that the backward pass adds up the gradients of all five in place.
    """

    @staticmethod
    def forward(ctx, y):
        padded = F.pad(y, (1, 1, 1, 1), mode="replicate")
        smooth = filter_channels(padded, SMOOTH)
        ctx.save_for_backward(smooth)
        exact = torch.promote_types(y.dtype, torch.float32)
        mean, square = (values.mean((0, 2, 3), dtype=exact) for values in (y, y * smooth))
        rows, columns = ((border(y, dim, 1) - border(y, dim)).div_(4) for dim in (2, 3))
        return padded, mean, square, rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx, padded, mean, square, rows, columns):
        (smooth,) = ctx.saved_tensors
        pixels = smooth.numel() // smooth.shape[1]
        gradient = torch.ops.aten.replication_pad2d_backward(padded, smooth, [1, 1, 1, 1])
        add_to_channels(gradient, mean / pixels, 2 * square / pixels, smooth)
        for dim, steps in ((2, rows), (3, columns)):
            border(gradient, dim).sub_(steps, alpha=1 / 4)
            border(gradient, dim, 1).add_(steps, alpha=1 / 4)
        return gradient


class Transposed(torch.autograd.Function):
    """A transposed 3×3 convolution with stride 2, padded by 1.

    The gradient of its weight is put together from four of stride 1, one for each
    parity of row and column: of a wide layer PyTorch's own takes up to twice the time.
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        to_weight = torch.empty_like(weight)
        for row, column in itertools.product((0, 1), repeat=2):
            taps = to_weight[..., row::2, column::2]
            seen = gradient[..., 1 - row :: 2, 1 - column :: 2].contiguous(memory_format=torch.channels_last)
            taps.copy_(conv2d_weight(seen, taps.shape, x, padding=(1 - row, 1 - column)))
        return F.conv2d(gradient, weight, stride=2, padding=1), to_weight


class AddToBorder(torch.autograd.Function):
    """Add two rows to the first and last row of x, in place, and two columns likewise."""

    @staticmethod
    def forward(ctx, x, rows, columns):
        ctx.mark_dirty(x)
        border(x, 2).add_(rows)
        border(x, 3).add_(columns)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient, border(gradient, 2), border(gradient, 3)


def join_and_convolve(skip, y, norm, convolution):
    """Enlarge y twofold, put skip in front of it, batch-normalise, reflect the border, convolve 3×3.

    Right up to a constant for each channel, which a batch norm right behind takes
    out. y is (1, C, H, W) with at least 4 pixels on each side, skip (1, S, 2 H, 2 W) or None;
    norm and convolution are of S + C channels. The result is 2 H × 2 W.
    """
    skips = 0 if skip is None else skip.shape[1]
    padded, mean, square, rows, columns = Survey.apply(y)
    scale = norm.weight[skips:] * torch.rsqrt((square - mean * mean).clamp(min=0) + norm.eps)
    # As exact as the normalisation that moves into them, also where they were rounded for the convolutions.
    weight = convolution.weight[:, skips:] * scale[:, None, None]
    weight = weight.to(y.dtype, memory_format=torch.channels_last)

    turned, wide = weight.flip(2, 3).transpose(0, 1), weight.numel() >= WIDE
    stuffed = Transposed.apply(padded, turned) if wide else F.conv_transpose2d(padded, turned, stride=2, padding=1)
    joined = Blur.apply(stuffed)
    # So far y went on beyond its border as the border pixels are; its reflection
    # differs from that in the outermost pixels only.
    height, width = joined.shape[-2:]
    rows = F.interpolate(rows, (2, width), mode="bilinear")
    columns = F.interpolate(columns, (height, 2), mode="bilinear")
    # The first of the two meets the first taps, the last one the last.
    taps = weight[:, :, ::2].flip(2), weight[..., ::2].flip(3)
    rows = F.conv2d(F.pad(rows, (1, 1, 0, 0), mode="reflect"), taps[0], stride=(2, 1), padding=(1, 0))
    columns = F.conv2d(F.pad(columns, (0, 0, 1, 1), mode="replicate"), taps[1], stride=(1, 2), padding=(0, 1))
    joined = AddToBorder.apply(joined, rows, columns)
    if skip is None:
        return joined
    skip = F.batch_norm(skip, None, None, norm.weight[:skips], None, training=True, eps=norm.eps)
    skip = F.pad(skip, (1, 1, 1, 1), mode="reflect")
    return joined.add_(F.conv2d(skip, convolution.weight[:, :skips].to(skip.dtype)))


class NarrowBatchNorm(torch.autograd.Function):
    """Batch norm of few channels on the CPU.

    Several pixels side by side count as one of many channels, and their moments
    are put together.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        pixels = pixels_to_a_row(x)
        rows = as_rows(x, pixels)
        # With these it computes in float32.
        unused = weight.new_zeros(2, rows.shape[1])
        moments = torch.batch_norm_update_stats(rows, *unused, 0.0)
        means, variances = (values.view(pixels, -1) for values in moments)
        variance, mean = torch.var_mean(means, 0, correction=0)
        variance += variances.mean(0)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, variance)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        spread = (repeated(values, pixels) for values in (weight, bias, mean, variance))
        torch.ops.aten.native_batch_norm.out(
            rows, *spread, False, 0.0, eps,
            out=as_rows(out, pixels), save_mean=weight.new_empty(0), save_invstd=weight.new_empty(0),
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, mean, variance = ctx.saved_tensors
        pixels = pixels_to_a_row(x)
        rows = (as_rows(values, pixels) for values in (gradient, x))
        spread = (repeated(values, pixels) for values in (weight, mean, variance))
        gradient, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            *rows, *spread, None, None, False, ctx.eps, [True] * 3
        )
        gradient = gradient.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        to_weight, to_bias = (values.view(pixels, -1).sum(0) for values in (to_weight, to_bias))
        # So far the moments counted as constants; what they add is affine in x.
        inverse = torch.rsqrt(variance + ctx.eps)
        share = weight * inverse / -(x.numel() // x.shape[1])
        scale = share * inverse * to_weight
        add_to_channels(gradient, share * to_bias - scale * mean, scale, x)
        return gradient, to_weight, to_bias, None


@functools.cache
def doubling(length, doubled, dtype, device):
    """The matrix of a bilinear ×2 upsampling of so many values to the first `doubled`: exact in any dtype."""
    # Kept for good: a graph knows it by its address.
    basis = torch.eye(length, dtype=torch.float32, device=device)
    matrix = F.interpolate(basis[None], scale_factor=2, mode="linear", align_corners=False)[0].T
    return matrix[:doubled].to(dtype).contiguous()


def enlarge(y, height, width):
    """Bilinear ×2 upsampling of a channels-last image, cut to this size: a matrix product along each axis."""
    _, channels, rows, columns = y.shape
    matrices = (doubling(*sides, y.dtype, y.device) for sides in ((rows, height), (columns, width)))
    above, along = matrices
    y = above @ y.permute(0, 2, 3, 1).view(rows, -1)
    y = torch.bmm(along.expand(height, -1, -1), y.view(height, columns, channels))
    return y[None].permute(0, 3, 1, 2)


def copy_image(target, source):
    """Copy a channels-last image, eight bytes at a time where they fit."""
    target, source = (image.permute(0, 2, 3, 1) for image in (target, source))
    if target.stride(3) == source.stride(3) == 1 and target.shape[3] * target.element_size() % 8 == 0:
        target, source = target.view(torch.int64), source.view(torch.int64)
    target.copy_(source)


def ends(x, dim, depth, last):
    """The first row (dim 2) or column (dim 3) of x at this depth, and the last one where it is wanted."""
    return border(x, dim, depth) if last else x.narrow(dim, depth, 1)


class Reflected(torch.autograd.Function):
    """A convolution of a channels-last image with its border reflected, one pixel wide.

    `behind` is 0 below and on the right where no border is wanted. The image has at
    least 4 pixels on each side.
    """

    @staticmethod
    def forward(ctx, x, weight, stride, behind):
        _, channels, height, width = x.shape
        # Without these, in 16 bits, cuDNN would make a copy that has them.
        extra = -channels % 8 if x.element_size() == 2 else 0
        ctx.shape, ctx.stride, ctx.behind = x.shape, stride, behind
        size = (1, channels + extra, 1 + height + behind[0], 1 + width + behind[1])
        padded = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if extra:
            padded[:, channels:] = 0
            weight = F.pad(weight, (0, 0, 0, 0, 0, extra))
        copy_image(Reflected.inside(ctx, padded), x)
        for dim, last in ((3, behind[1]), (2, behind[0])):
            ends(padded, dim, 0, last).copy_(ends(padded, dim, 2, last))
        ctx.save_for_backward(padded, weight)
        return F.conv2d(padded, weight, stride=stride)

    @staticmethod
    def inside(ctx, padded):
        """What of the padded image is the image."""
        _, channels, height, width = ctx.shape
        return padded[:, :channels, 1 : 1 + height, 1 : 1 + width]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        to_x, to_weight, _ = torch.ops.aten.convolution_backward(
            gradient, *ctx.saved_tensors, None, ctx.stride, (0, 0), (1, 1), False, (0, 0), 1,
            (*ctx.needs_input_grad[:2], False),
        )  # fmt: skip
        if to_x is not None:
            for dim, last in ((2, ctx.behind[0]), (3, ctx.behind[1])):
                ends(to_x, dim, 2, last).add_(ends(to_x, dim, 0, last))
            inside = Reflected.inside(ctx, to_x)
            to_x = torch.empty(ctx.shape, dtype=to_x.dtype, device=to_x.device, memory_format=torch.channels_last)
            copy_image(to_x, inside)
        if to_weight is not None:
            to_weight = to_weight[:, : ctx.shape[1]].contiguous(memory_format=torch.channels_last)
        return to_x, to_weight, None, None


class Round(torch.autograd.Function):
    """Many weights in a dtype of fewer bits; on a card in one launch, and their gradients back in one."""

    @staticmethod
    def forward(ctx, dtype, *weights):
        ctx.weights = weights
        rounded = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(rounded, weights)
        return tuple(rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        exact = [torch.empty_like(weight) for weight in ctx.weights]
        torch._foreach_copy_(exact, gradients)
        return None, *exact


def takes_channels_last(network, device, precision):
    """Whether a network may compute with the channels innermost and is faster so: on a card in 16 bits only."""
    faster = TUNING["channels_last"] and (device.type == "cpu" or precision.itemsize == 2)
    return faster and all(type(layer) in ANY_LAYOUT for layer in network.modules())


def is_untouched(layer):
    """Whether nobody has put a hook on a layer, or a forward of their own into it."""
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


def before_batch_norm(network):
    """The convolutions of a network's scales that have a batch norm right behind them: a set."""
    pairs = []
    for scale in (layer for layer in network.modules() if type(layer) is Scale):
        parts = [part for part in (scale.down, scale.skip, scale.up) if type(part) is nn.Sequential]
        blocks = [block for part in parts for block in part if type(block) is nn.Sequential]
        for chain in parts + blocks:
            pairs += itertools.pairwise(chain)
        if type(scale.join) is Join and scale.up in parts:
            pairs += [(scale.join.convolution, layer) for layer in scale.up[:1]]
    return {first for first, second in pairs if is_own_convolution(first) and is_own_norm(second)}


@contextlib.contextmanager
def accelerated(network):
    """Swap the faster forms into the layers of a network that have one; take them out at the end.

    Yields the parameters that have no effect meanwhile: a set.
    """
    convolutions = before_batch_norm(network)
    norms = [layer for layer in network.modules() if is_own_norm(layer) and layer.num_features <= NARROW]
    joins = [
        layer for layer in network.modules()
        if type(layer) is Join and is_untouched(layer) and is_own_norm(layer.norm)
        and layer.convolution in convolutions and layer.convolution.kernel_size == (3, 3)
    ]  # fmt: skip
    forms = dict.fromkeys(convolutions, _convolution) | dict.fromkeys(norms, _batch_norm) | dict.fromkeys(joins, _join)
    for layer, form in forms.items():
        layer.forward = functools.partial(form, layer)
    try:
        yield {layer.bias for layer in convolutions} | {join.norm.bias for join in joins}
    finally:
        for layer in forms:
            del layer.forward


def _pays(x):
    """Whether x is large enough for the forms that are for the CPU."""
    return x.device.type == "cpu" and x.numel() >= TUNING["large"]


def _lies_on_card(x):
    """Whether x is of the kind that the forms for CUDA take."""
    return x.device.type != "cpu" and len(x) == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _join(layer, skip, below, height, width):
    if _pays(below) and height % 2 == width % 2 == 0 and min(below.shape[2:]) >= 4:
        return join_and_convolve(skip, below, layer.norm, layer.convolution)
    if not _lies_on_card(below) or below.element_size() != 2:
        return Join.forward(layer, skip, below, height, width)
    x = enlarge(below, height, width)
    return layer.convolution(layer.norm(x if skip is None else torch.cat([skip, x], 1)))


def _batch_norm(layer, x):
    if _pays(x) and x.is_contiguous(memory_format=torch.channels_last):
        return NarrowBatchNorm.apply(x, layer.weight, layer.bias, layer.eps)
    return nn.BatchNorm2d.forward(layer, x)


def _convolution(layer, x):
    if layer.padding_mode != "reflect":
        return F.conv2d(x, layer.weight, stride=layer.stride)
    # Only what is read: with stride 2 the border behind an even side is not, and where it is there, oneDNN's
    # gradient may take twenty times as long.
    bottom, right = behind = [1 - (side - 1) % layer.stride[0] for side in x.shape[2:]]
    if _lies_on_card(x) and min(x.shape[2:]) >= 4:
        return Reflected.apply(x, layer.weight, layer.stride, behind)
    return F.conv2d(F.pad(x, (1, right, 1, bottom), mode="reflect"), layer.weight, stride=layer.stride)
