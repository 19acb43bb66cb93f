"""The untrained network: an hourglass of convolutions with skip connections, and its input z.

Ulyanov, Vedaldi, Lempitsky, *Deep Image Prior*, CVPR 2018, supplementary
material, section 1. The report's requirements 1 to 3 use two instances of it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .engine.checks import check_integer, check_number, check_several, check_size
from .engine.machine import seeded

#: Requirement 1 of the report: 572,827 parameters.
PARAMETRIZATION = dict(input_channels=3, channels=(8, 16, 32, 64, 128), skip_channels=(0, 0, 0, 4, 4))
#: Requirements 2 and 3, the paper's denoising network: 2,217,831 parameters.
RESTORATION = dict(input_channels=32, channels=(128,) * 5, skip_channels=(4,) * 5)


def convolution(inputs, outputs, size, stride=1):
    """A convolution that keeps the size of the image, or halves it with stride 2; the border is reflected."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, padding_mode="reflect" if size > 1 else "zeros")


def norm(channels):
    """Batch norm that always uses the statistics of the current image."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def block(inputs, outputs, size, stride=1):
    """Convolution, batch norm, LeakyReLU."""
    return nn.Sequential(convolution(inputs, outputs, size, stride), norm(outputs), nn.LeakyReLU(0.2, inplace=True))


class Join(nn.Module):
    """Upsample ×2 what comes from below, put the skip branch in front of it, batch norm, 3×3 convolution."""

    def __init__(self, skip, below, outputs):
        super().__init__()
        self.norm = norm(skip + below)
        self.convolution = convolution(skip + below, outputs, 3)

    def forward(self, skip, below, height, width):
        """(1, skip, height, width) or None, and (1, below, height / 2, width / 2), to (1, outputs, height, width)."""
        x = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        # An odd side was rounded up on the way down.
        x = x[..., :height, :width]
        if skip is not None:
            x = torch.cat([skip, x], dim=1)
        return self.convolution(self.norm(x))


class Scale(nn.Module):
    """One scale of the hourglass, with the smaller scales inside it."""

    def __init__(self, inputs, channels, skip_channels):
        super().__init__()
        (width, *deeper), (skip, *deeper_skip) = channels, skip_channels
        self.down = nn.Sequential(block(inputs, width, 3, stride=2), block(width, width, 3))
        self.deeper = Scale(width, deeper, deeper_skip) if deeper else nn.Identity()
        self.skip = block(inputs, skip, 1) if skip else None
        self.join = Join(skip, deeper[0] if deeper else width, width)
        self.up = nn.Sequential(norm(width), nn.LeakyReLU(0.2, inplace=True), block(width, width, 1))

    def forward(self, x):
        """(1, inputs, H, W) to (1, channels[0], H, W)."""
        skip = None if self.skip is None else self.skip(x)
        return self.up(self.join(skip, self.deeper(self.down(x)), *x.shape[-2:]))


class SkipNetwork(nn.Module):
    """The generator f_θ: an encoder-decoder with skip connections.

    Each scale is a 3×3 convolution with stride 2 and a 3×3 convolution; then,
    after the smaller scales, a bilinear ×2 upsampling, concatenation with the
    skip branch (a 1×1 convolution, in front), batch norm, a 3×3 and a 1×1
    convolution. Every convolution has reflection padding, a bias, batch norm
    in training mode and LeakyReLU(0.2). The head is a 1×1 convolution and a
    sigmoid.

    The weights are drawn as PyTorch drew them in 2018. Those of the batch norms are
    uniform in (0, 1), whereas today they are 1; `benchmarks/README.md` shows the
    difference that this makes.

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
    seed : int
        Of the initial weights. The global random state is not touched.

    Examples
    --------
    >>> network = SkipNetwork(3, channels=(8, 16, 32, 64, 128), skip_channels=(0, 0, 0, 4, 4), seed=0)
    >>> network.parameter_count
    572827

    References
    ----------
    Deep Image Prior, supplementary material, section 1 and figure 1.
    """

    def __init__(self, input_channels, channels, skip_channels, output_channels=3, *, seed):
        check_integer("input_channels", input_channels, 1)
        check_integer("output_channels", output_channels, 1)
        channels = check_several("channels", channels, "an integer for each scale")
        skip_channels = check_several("skip_channels", skip_channels, "an integer for each scale")
        if not channels or len(channels) != len(skip_channels):
            numbers = f"{len(skip_channels)} numbers for {len(channels)} scales"
            raise ValueError(f"skip_channels: got {numbers}; wants one for each number in channels, and at least one")
        for width, skip in zip(channels, skip_channels, strict=True):
            check_integer("channels", width, 1)
            check_integer("skip_channels", skip, 0)
        generator = seeded(seed, "weights")
        super().__init__()
        self.input_channels, self.channels = input_channels, channels
        # The meta device makes layers without weights, which PyTorch would draw from the global random state.
        with torch.device("meta"):
            self.scales = Scale(input_channels, channels, skip_channels)
            self.head = convolution(channels[0], output_channels, 1)
        self.float().to_empty(device="cpu")
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator):
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                bound = layer.weight[0].numel() ** -0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                # As in PyTorch up to 1.1, and so in paper, report and sample code; since then they are 1.
                layer.weight.uniform_(0, 1, generator=generator)
                layer.bias.zero_()

    @property
    def parameter_count(self):
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, z):
        """Map z to an image.

        Parameters
        ----------
        z : Tensor, (1, input_channels, H, W)
            More than 2**scales pixels on each side.

        Returns
        -------
        Tensor, (1, output_channels, H, W)
            Values in (0, 1), in float32 or float64.

        Raises
        ------
        ValueError
            If z is not an image, has another number of channels, or is too small for the
            scales.
        """
        if z.ndim != 4:
            raise ValueError(f"z: got shape {tuple(z.shape)}; wants (1, {self.input_channels}, height, width)")
        _, inputs, height, width = z.shape
        if inputs != self.input_channels:
            raise ValueError(f"z: got {inputs} channels; wants {self.input_channels}, the network's input_channels")
        smallest = 2 ** len(self.channels) + 1
        if min(height, width) < smallest:
            raise ValueError(f"z: got {height} × {width}; wants at least {smallest} on each side, for its scales")
        output = self.head(self.scales(z))
        return torch.sigmoid(output.to(torch.promote_types(output.dtype, torch.float32)))


def random_input(channels, *size, scale=0.1, seed):
    """The network's input z, (channels, *size): independent values, uniform in [0, scale).

    `channels` is the network's `input_channels`, `size` the height and width of the
    image, or the length of a signal. The scale is that of paper and report.
    """
    check_size(channels, size)
    check_number("scale", scale, above=0)
    return torch.rand(channels, *size, generator=seeded(seed, "input"), dtype=torch.float32, device="cpu") * scale
