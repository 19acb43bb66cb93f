"""The network's faster forms on the CPU: the same numbers up to rounding.

**The join of a scale.** The plain way enlarges y twofold, normalises it and
convolves the large image. Bilinear enlarging is zero stuffing (a zero behind each
pixel) followed by the blur (1, 3, 3, 1)/4 along each axis, and a blur commutes
with a convolution:

    convolve(blur(stuff(y)), w)  =  blur(convolve(stuff(y), w))

except at the border, which is corrected. In the form on the right three of four
products are with zeros, and a transposed convolution skips them: a quarter of the
arithmetic. The scale of the normalisation moves into w, and its moments are computed
from y, so that three large images are never made.

**Batch norm of few channels**, see `NarrowBatchNorm`.
"""

import itertools

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

#: Number of weights from which `Transposed` is faster than PyTorch's transposed convolution.
WIDE = 128 * 128 * 9
BLUR = (1 / 4, 3 / 4, 3 / 4, 1 / 4)
#: The autocorrelation of BLUR as seen on the small grid, with sum 1.
SMOOTH = (3 / 16, 10 / 16, 3 / 16)


def filter_channels(x, taps, padding=0):
    """Filter every channel of x by the same separable taps, with `padding` zeros around it."""
    taps = x.new_tensor(taps)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


class Blur(torch.autograd.Function):
    """Filter every channel of x by BLUR, no padding.

    Its gradient is the same filter again. Autograd, which does not know that, would
    keep x and take twice the time.
    """

    @staticmethod
    def forward(ctx, x):
        return filter_channels(x, BLUR)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return filter_channels(gradient, BLUR, padding=len(BLUR) - 1)


def as_rows(x, pixels):
    """An image as a matrix with this many pixels to a row; a view if it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, pixels * x.shape[1])


def pixels_to_a_row(x):
    """How many pixels of few channels to treat as one of many: PyTorch vectorises along the channels."""
    channels = x.shape[1]
    pixels, most = x.numel() // channels, max(1, 128 // channels)
    return max(number for number in range(1, most + 1) if pixels % number == 0)


def repeated(values, pixels):
    """A value for each channel, repeated for every pixel of a row."""
    # `repeat` takes six times as long.
    return torch.cat([values] * pixels)


def add_to_channels(x, shift, scale, y):
    """Add shift + scale · y to x, in place; shift and scale have one value for each channel."""
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

    y with its border replicated; mean and mean square of the enlarged y, per channel;
    a quarter of the difference between the rows and columns next to the border and those
    on it. One function, so that the backward pass adds up all five gradients in place.

    Where a side of the enlarged image is odd its last row or column has been cut off, and
    y's last one counts half.
    """

    @staticmethod
    def forward(ctx, y, height, width):
        ctx.cut = [dim for dim, side in ((2, height), (3, width)) if side % 2]
        # Of y, in all images of a batch.
        ctx.pixels = len(y) * height * width / 4
        padded = F.pad(y, (1, 1, 1, 1), mode="replicate")
        for dim in ctx.cut:
            # The last taps are (3, 5)/16 then, not (3, 10 + 3)/16.
            padded.narrow(dim, -1, 1).mul_(-5 / 3)
        smooth = filter_channels(padded, SMOOTH)
        for dim in ctx.cut:
            padded.narrow(dim, -1, 1).copy_(padded.narrow(dim, -2, 1))
        ctx.save_for_backward(smooth)
        exact = torch.promote_types(y.dtype, torch.float32)
        # The filter keeps the sum of what it counts.
        sums = (values.sum((0, 2, 3), dtype=exact) for values in (smooth if ctx.cut else y, y * smooth))
        mean, square = (total / ctx.pixels for total in sums)
        rows, columns = ((border(y, dim, 1) - border(y, dim)).div_(4) for dim in (2, 3))
        return padded, mean, square, rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx, padded, mean, square, rows, columns):
        (smooth,) = ctx.saved_tensors
        gradient = torch.ops.aten.replication_pad2d_backward(padded, smooth, [1, 1, 1, 1])
        shift = mean / ctx.pixels
        add_to_channels(gradient, shift, 2 * square / ctx.pixels, smooth)
        for dim in ctx.cut:
            gradient.narrow(dim, -1, 1).sub_(shift[:, None, None] / 2)
        if len(ctx.cut) == 2:
            gradient[..., -1:, -1:].add_(shift[:, None, None] / 4)
        for dim, steps in ((2, rows), (3, columns)):
            border(gradient, dim).sub_(steps, alpha=1 / 4)
            border(gradient, dim, 1).add_(steps, alpha=1 / 4)
        return gradient, None, None


class Transposed(torch.autograd.Function):
    """A transposed 3×3 convolution with stride 2, padded by 1.

    The gradient of the weight is assembled from four convolutions of stride 1, one for
    each parity of row and column: for a wide layer PyTorch's own takes up to twice as long.
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


def join_and_convolve(skip, y, height, width, norm, convolution):
    """Enlarge y twofold, cut it, put skip in front, batch-normalise, reflect the border, convolve 3×3.

    Exact up to a constant for each channel, which the batch norm behind it removes.
    y is (N, C, H, W) with at least 4 pixels on each side, height is 2 H or 2 H - 1, width
    2 W or 2 W - 1, skip (N, S, height, width) or None; norm and convolution take S + C channels.
    """
    skips = 0 if skip is None else skip.shape[1]
    padded, mean, square, rows, columns = Survey.apply(y, height, width)
    scale = norm.weight[skips:] * torch.rsqrt((square - mean * mean).clamp(min=0) + norm.eps)
    # The product is computed in full precision and rounded once, here; the weights may be rounded already.
    weight = convolution.weight[:, skips:] * scale[:, None, None]
    weight = weight.to(y.dtype, memory_format=torch.channels_last)

    turned, wide = weight.flip(2, 3).transpose(0, 1), weight.numel() >= WIDE
    stuffed = Transposed.apply(padded, turned) if wide else F.conv_transpose2d(padded, turned, stride=2, padding=1)
    joined = Blur.apply(stuffed[..., : height + 3, : width + 3])
    # So far the image went on beyond the border as if y were replicated; reflected, it
    # differs in the outermost pixels only, by three times as much where it is cut.
    if height % 2:
        rows = rows * rows.new_tensor([[1], [3]])
    if width % 2:
        columns = columns * columns.new_tensor([1, 3])
    rows = F.interpolate(rows, (2, 2 * y.shape[3]), mode="bilinear")[..., :width]
    columns = F.interpolate(columns, (2 * y.shape[2], 2), mode="bilinear")
    rows = F.pad(rows, (1, 1, 0, 0), mode="reflect")
    columns = F.pad(columns, (0, 0, 1, 1), mode="replicate")[..., : height + 2, :]
    # The first row or column meets the first taps, the last one the last.
    taps = weight[:, :, ::2].flip(2), weight[..., ::2].flip(3)
    border(joined, 2).add_(F.conv2d(rows, taps[0], stride=(2, 1), padding=(1, 0)))
    border(joined, 3).add_(F.conv2d(columns, taps[1], stride=(1, 2), padding=(0, 1)))
    if skip is None:
        return joined
    skip = F.batch_norm(skip, None, None, norm.weight[:skips], None, training=True, eps=norm.eps)
    skip = F.pad(skip, (1, 1, 1, 1), mode="reflect")
    return joined.add_(F.conv2d(skip, convolution.weight[:, :skips].to(skip.dtype)))


class NarrowBatchNorm(torch.autograd.Function):
    """Batch norm of few channels on the CPU.

    Several neighbouring pixels are treated as one of many channels, and their moments
    are combined.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        pixels = pixels_to_a_row(x)
        rows = as_rows(x, pixels)
        # Given these, it computes in float32.
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
        # So far the moments were constants; their own gradient is affine in x.
        inverse = torch.rsqrt(variance + ctx.eps)
        share = weight * inverse / -(x.numel() // x.shape[1])
        scale = share * inverse * to_weight
        add_to_channels(gradient, share * to_bias - scale * mean, scale, x)
        return gradient, to_weight, to_bias, None
