"""Changing the size of an image: the differentiable operator and the classical baselines."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from .engine.checks import check_choice, check_floating, check_image, check_integer

METHODS = ("nearest", "bicubic", "lanczos")


def lanczos(x):
    """The Lanczos kernel with two lobes, of x in coarse pixels: sinc(x) sinc(x / 2) for |x| < 2, else 0."""
    return torch.where(x.abs() < 2, torch.sinc(x) * torch.sinc(x / 2), torch.zeros_like(x))


class LanczosDownsampler(nn.Module):
    """The operator d of super-resolution: shrink by an integer factor, differentiably.

    Separable lanczos2 stretched by the factor, normalised to sum 1; output
    pixel i is centred on input position (i + ½)·factor - ½, so that both images
    cover the same area; the border is replicated. The weights are constants.

    Parameters
    ----------
    factor : int
        2 or above.

    Attributes
    ----------
    kernel : Tensor, (taps,)
        The weights along one axis: 4·factor of them, one fewer for odd factors.

    References
    ----------
    Deep Image Prior, section 3.2; the report's requirement 3.
    """

    def __init__(self, factor):
        super().__init__()
        check_integer("factor", factor, 2)
        self.factor = int(factor)
        taps = 4 * self.factor - self.factor % 2
        offsets = torch.arange(taps, dtype=torch.float64, device="cpu") - (taps - 1) / 2
        kernel = lanczos(offsets / self.factor)
        self.register_buffer("kernel", (kernel / kernel.sum()).float())

    def forward(self, image):
        """Shrink (..., H, W) to (..., H / factor, W / factor); both sides must be multiples of the factor."""
        check_floating("image", image)
        *lead, height, width = image.shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"image: got {height} × {width}; wants both sides multiples of the factor, {self.factor}")
        kernel = self.kernel.to(image.dtype)
        margin = (len(kernel) - self.factor) // 2
        planes = F.pad(image.reshape(-1, 1, height, width), (margin,) * 4, mode="replicate")
        planes = F.conv2d(planes, kernel.view(1, 1, -1, 1), stride=(self.factor, 1))
        planes = F.conv2d(planes, kernel.view(1, 1, 1, -1), stride=(1, self.factor))
        return planes.reshape(*lead, height // self.factor, width // self.factor)


def resize(image, height, width, method="lanczos"):
    """Resize an image (C, H, W) in [0, 1] with Pillow's "nearest", "bicubic" or "lanczos" to (C, height, width).

    For baselines, and to make low-resolution data. Pillow's lanczos has three
    lobes, `LanczosDownsampler` two. Clipped to [0, 1], since the last two methods
    overshoot at edges.
    """
    image = check_image("image", image)
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    check_choice("method", method, METHODS)
    kind = Image.Resampling[method.upper()]
    planes = [Image.fromarray(plane).resize((width, height), kind) for plane in image.numpy()]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)
