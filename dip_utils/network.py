"""The untrained network: an hourglass of convolutions with skip connections.

Ulyanov, Vedaldi, Lempitsky, *Deep Image Prior*, CVPR 2018, supplementary
material, section 1. The report's requirements 1 to 3 use two instances of it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .kernels import NarrowBatchNorm, join_and_convolve
from .runtime import check_integer, check_number, seeded

LEAK = 0.2
#: From this many numbers in a tensor on, the forms in `kernels` are faster on the CPU.
LARGE = 2**18
#: Up to this many channels, `NarrowBatchNorm` is faster.
NARROW = 32

#: Requirement 1 of the report: 572,827 parameters.
PARAMETRIZATION = dict(input_channels=3, channels=(8, 16, 32, 64, 128), skip_channels=(0, 0, 0, 4, 4))
#: Requirements 2 and 3, the paper's denoising network: 2,217,831 parameters.
RESTORATION = dict(input_channels=32, channels=(128,) * 5, skip_channels=(4,) * 5)


def is_large(x):
    """Whether a form from `kernels` pays for x: on a GPU it was not measured."""
    return x.device.type == "cpu" and x.numel() >= LARGE


class Convolution(nn.Conv2d):
    """A convolution with reflection padding that computes in the dtype of its input.

    The weights stay float32: they are rounded for the product only, so that
    Adam's small steps are not lost when the activations are bfloat16.
    """

    def __init__(self, inputs, outputs, size, stride=1):
        super().__init__(inputs, outputs, size, stride)
        self.margin = size // 2

    def forward(self, x):
        """(1, inputs, H, W) to (1, outputs, H / stride, W / stride)."""
        if self.margin:
            x = F.pad(x, (self.margin,) * 4, mode="reflect")
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride)


class Normalization(nn.BatchNorm2d):
    """Batch norm that always uses the statistics of the image at hand."""

    def __init__(self, channels):
        super().__init__(channels, track_running_stats=False)

    def forward(self, x):
        """(1, channels, H, W), each channel to its own mean and variance."""
        if is_large(x) and self.num_features <= NARROW and x.is_contiguous(memory_format=torch.channels_last):
            return NarrowBatchNorm.apply(x, self.weight, self.bias, self.eps)
        return super().forward(x)


def block(inputs, outputs, size, stride=1):
    """Convolution, batch norm, LeakyReLU(0.2)."""
    return nn.Sequential(
        Convolution(inputs, outputs, size, stride), Normalization(outputs), nn.LeakyReLU(LEAK, inplace=True)
    )


class Scale(nn.Module):
    """One scale of the hourglass, with the smaller scales inside it."""

    def __init__(self, inputs, channels, skip_channels):
        super().__init__()
        width, skip = channels[0], skip_channels[0]
        self.down = nn.Sequential(block(inputs, width, 3, stride=2), block(width, width, 3))
        self.deeper = Scale(width, channels[1:], skip_channels[1:]) if channels[1:] else nn.Identity()
        self.skip = block(inputs, skip, 1) if skip else None
        joined = skip + (channels[1] if channels[1:] else width)
        self.join = Normalization(joined)
        self.up = nn.Sequential(block(joined, width, 3), block(width, width, 1))

    def forward(self, x):
        """(1, inputs, H, W) to (1, channels[0], H, W)."""
        height, width = x.shape[-2:]
        skip = None if self.skip is None else self.skip(x)
        y = self.deeper(self.down(x))
        (convolution, *activation), last = self.up
        if is_large(y) and height % 2 == width % 2 == 0:
            y = join_and_convolve(skip, y, self.join, convolution)
        else:
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            # An odd side was rounded up on the way down.
            y = y[..., :height, :width]
            y = convolution(self.join(y if skip is None else torch.cat([skip, y], dim=1)))
        for layer in (*activation, last):
            y = layer(y)
        return y


class Generator(nn.Module):
    """What `fit` can train: it maps z to an image of the same height and width.

    Attributes
    ----------
    input_channels, output_channels : int
        Of z and of the image.
    channels : tuple of int
        Of each scale, from the largest image to the smallest.
    smallest_side : int
        Of z, in pixels.
    size : tuple of int or None
        Height and width, for a generator that makes images of one size only.
    """

    size = None

    def __init__(self, input_channels, channels, output_channels):
        super().__init__()
        self.input_channels, self.output_channels = input_channels, output_channels
        self.channels = channels
        self.smallest_side = 2 ** len(channels) + 1 if channels else 1

    @property
    def parameter_count(self):
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class SkipNetwork(Generator):
    """The generator f_θ: an encoder-decoder with skip connections.

    Each scale is a 3×3 convolution with stride 2 and a 3×3 convolution; then,
    after the smaller scales, a bilinear ×2 upsampling, concatenation with the
    skip branch (a 1×1 convolution, in front), batch norm, a 3×3 and a 1×1
    convolution. Every convolution has reflection padding, a bias, batch norm
    in training mode and LeakyReLU(0.2). The head is a 1×1 convolution and a
    sigmoid.

    Parameters
    ----------
    input_channels : int
        Channels of the input z.
    channels : sequence of int
        Channels of each scale, from the largest image to the smallest, the
        same on the way down and up.
    skip_channels : sequence of int
        Channels of each skip branch; 0 for no branch. As long as `channels`.
    output_channels : int
        3 for RGB, 1 for greyscale.
    uniform_gain : bool
        Whether the weights of the batch norms begin uniform in (0, 1), as
        PyTorch drew them up to version 1.1, when paper and report were written,
        and not at 1. What it does is measured in `benchmarks/README.md`.
    seed : int
        Seed of the initial weights. The global random state is not touched.

    Raises
    ------
    ValueError, TypeError
        If an argument has no meaning; the message names it.

    Examples
    --------
    >>> network = SkipNetwork(3, channels=(8, 16, 32, 64, 128), skip_channels=(0, 0, 0, 4, 4), seed=0)
    >>> network.parameter_count
    572827

    References
    ----------
    Deep Image Prior, supplementary material, section 1 and figure 1.
    """

    def __init__(self, input_channels, channels, skip_channels, output_channels=3, *, uniform_gain=False, seed):
        check_integer("input_channels", input_channels, 1)
        check_integer("output_channels", output_channels, 1)
        channels, skip_channels = tuple(channels), tuple(skip_channels)
        if not channels or len(channels) != len(skip_channels):
            raise ValueError(
                f"skip_channels: got {len(skip_channels)} numbers for {len(channels)} scales; "
                "give one number for each number in channels, and at least one"
            )
        for width in channels:
            check_integer("channels", width, 1)
        for width in skip_channels:
            check_integer("skip_channels", width, 0)
        seed = seeded(seed, "weights").initial_seed()
        super().__init__(input_channels, channels, output_channels)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.scales = Scale(input_channels, channels, skip_channels)
            self.head = Convolution(channels[0], output_channels, 1)
            if uniform_gain:
                for module in self.modules():
                    if isinstance(module, Normalization):
                        nn.init.uniform_(module.weight)

    def forward(self, z):
        """Map z to an image.

        Parameters
        ----------
        z : Tensor, (1, input_channels, H, W)
            float32, or bfloat16 to compute the activations in bfloat16.

        Returns
        -------
        Tensor, (1, output_channels, H, W)
            float32, values in (0, 1).
        """
        output = self.head(self.scales(z))
        return torch.sigmoid(output.to(torch.promote_types(output.dtype, torch.float32)))


def random_input(channels, height, width, *, scale=0.1, seed):
    """The network's input z: independent values, uniform in [0, scale).

    Parameters
    ----------
    channels, height, width : int
        As many channels as the network's `input_channels`; the size of the image.
    scale : float
        1/10 in the paper and the report.
    seed : int

    Returns
    -------
    Tensor, (channels, height, width)
    """
    for name, value in (("channels", channels), ("height", height), ("width", width)):
        check_integer(name, value, 1)
    check_number("scale", scale, above=0)
    return torch.rand(channels, height, width, generator=seeded(seed, "input")) * scale
