"""The network's faster forms on a CUDA card, for channels-last images: the same numbers up to rounding.

PyTorch's own reflection and bilinear upsampling take many times as long as reading
and writing the images would; their gradients are summed one number at a time.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .cpu import border


def doubling(length, doubled, dtype, device):
    """The matrix that upsamples `length` values ×2 bilinearly, cut to the first `doubled`; exact in any dtype."""
    basis = torch.eye(length, dtype=torch.float32, device=device)
    matrix = F.interpolate(basis[None], scale_factor=2, mode="linear", align_corners=False)[0].T
    return matrix[:doubled].to(dtype).contiguous()


def enlarge(y, height, width, doubling=doubling):
    """Bilinear ×2 upsampling of a channels-last image, cut to a size: a matrix product along each axis."""
    _, channels, rows, columns = y.shape
    down, along = (doubling(*sides, y.dtype, y.device) for sides in ((rows, height), (columns, width)))
    y = down @ y.permute(0, 2, 3, 1).view(rows, -1)
    y = torch.bmm(along.expand(len(down), -1, -1), y.view(len(down), columns, channels))
    return y[None].permute(0, 3, 1, 2)


def copy_image(target, source):
    """Copy a channels-last image, eight bytes at a time where they fit."""
    target, source = (image.permute(0, 2, 3, 1) for image in (target, source))
    if target.stride(3) == source.stride(3) == 1 and target.shape[3] * target.element_size() % 8 == 0:
        target, source = target.view(torch.int64), source.view(torch.int64)
    target.copy_(source)


def ends(x, dim, depth, last):
    """The first row (dim 2) or column (dim 3) of x at this depth; with `last` the last one too."""
    return border(x, dim, depth) if last else x.narrow(dim, depth, 1)


class Reflected(torch.autograd.Function):
    """A convolution of a channels-last image, its border reflected by one pixel.

    `behind` says how many pixels, 1 or 0, to reflect below and on the right. The image
    has at least 4 pixels on each side.
    """

    @staticmethod
    def forward(ctx, x, weight, stride, behind):
        _, channels, height, width = x.shape
        # In 16 bits cuDNN would otherwise make a copy with channels in multiples of 8.
        extra = -channels % 8 if x.element_size() == 2 else 0
        ctx.stride, ctx.behind = stride, behind
        ctx.inside = slice(None), slice(channels), slice(1, 1 + height), slice(1, 1 + width)
        size = (1, channels + extra, 1 + height + behind[0], 1 + width + behind[1])
        padded = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if extra:
            padded[:, channels:] = 0
            weight = F.pad(weight, (0, 0, 0, 0, 0, extra))
        copy_image(padded[ctx.inside], x)
        for dim, last in ((3, behind[1]), (2, behind[0])):
            ends(padded, dim, 0, last).copy_(ends(padded, dim, 2, last))
        ctx.save_for_backward(padded, weight)
        return F.conv2d(padded, weight, stride=stride)

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
            inside = to_x[ctx.inside]
            to_x = torch.empty_like(inside, memory_format=torch.channels_last)
            copy_image(to_x, inside)
        if to_weight is not None:
            to_weight = to_weight[ctx.inside[:2]].contiguous(memory_format=torch.channels_last)
        return to_x, to_weight, None, None


class Round(torch.autograd.Function):
    """Many weights rounded to a dtype of fewer bits: one launch on a card, and one for their gradients."""

    @staticmethod
    def forward(ctx, dtype, *weights):
        ctx.weights = weights
        rounded = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(rounded, weights)
        ctx.mark_non_differentiable(*[r for r, w in zip(rounded, weights, strict=True) if not w.requires_grad])
        return tuple(rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        exact = [torch.empty_like(weight) for weight in ctx.weights]
        torch._foreach_copy_(exact, gradients)
        return None, *exact
