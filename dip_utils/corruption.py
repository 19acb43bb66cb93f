"""What the lab does to a good image: noise, shuffles, compression.

The four targets of the report's requirement 1 and the noise of requirement 2.
Images are (C, H, W) and signals (C, T), with values in [0, 1]; the result has the
same shape. Random functions take a seed and leave the global random state alone.
"""

import io

import numpy as np
import torch
from PIL import Image

from .engine.checks import check_image, check_integer, check_number, check_several, check_size
from .engine.machine import say, seeded
from .images import to_uint8

#: A sigma above this was probably meant in levels of 255: of an image in [0, 1] it leaves nothing to see.
LOUD = 4


def add_gaussian_noise(image, sigma, *, seed, clip=True):
    """Add white Gaussian noise N(0, sigma²) to an image or a signal; sigma is 25/255 in the paper.

    With `clip` the result is clipped to [0, 1], as a stored image would be (recipe
    B of the report). Recipe A does not clip: its target leaves [0, 1].
    """
    image = check_image("image", image, signal=True)
    check_number("sigma", sigma, least=0)
    if sigma > LOUD:
        say(f"sigma: {sigma:g} is {sigma:g} times white; for {sigma:g} of 255 levels, write {sigma:g} / 255.")
    # Not `randn_like`: the order of an image in memory would change the numbers.
    noise = torch.randn(image.shape, generator=seeded(seed, "noise on an image"), dtype=torch.float32, device="cpu")
    noisy = image + sigma * noise
    return noisy.clamp_(0, 1) if clip else noisy


def add_salt_and_pepper(image, share, *, seed):
    """Set a share of the values of an image or a signal to 0 or 1, with equal chances, channels independently."""
    image = check_image("image", image, signal=True)
    check_number("share", share, least=0, most=1)
    chance = torch.rand(image.shape, generator=seeded(seed, "salt and pepper"), dtype=torch.float32, device="cpu")
    return image.masked_fill(chance < share, 1).masked_fill(chance < share / 2, 0)


def uniform_noise(channels, *size, seed):
    """An image (channels, height, width) or a signal (channels, time) of independent values, uniform in [0, 1)."""
    check_size(channels, size)
    return torch.rand(channels, *size, generator=seeded(seed, "uniform noise"), dtype=torch.float32, device="cpu")


def shuffle_rows_and_columns(image, *, seed):
    """Shuffle the elements of every row, then those of every column, within each channel.

    Recipe A of the report (Figure 2). Each channel keeps its values.
    """
    image = check_image("image", image)
    generator = seeded(seed, "shuffle")
    for dim in (2, 1):
        keys = torch.rand(image.shape, generator=generator, dtype=torch.float64, device="cpu")
        image = image.gather(dim, keys.argsort(dim))
    return image


def shuffle_elements(image, *, seed):
    """One shuffle of all elements of the flattened array, channels mixed.

    Recipe B of the report (Figure 3). Only the multiset of the values of the image
    or signal is kept.
    """
    image = check_image("image", image, signal=True)
    order = torch.randperm(image.numel(), generator=seeded(seed, "shuffle"), device="cpu")
    return image.flatten()[order].reshape(image.shape)


def permute_channels(image, order=(1, 2, 0)):
    """Permute whole channels of an image: the report's mistaken shuffle, which shuffles nothing."""
    image = check_image("image", image)
    # PyTorch would take tensors in it for an index per axis, and booleans for a mask.
    order = tuple(np.asarray(check_several("order", order, "a permutation of the channels")).tolist())
    if sorted(order) != list(range(len(image))) or bool in map(type, order):
        raise ValueError(f"order: got {order}; wants a permutation of the {len(image)} channels")
    return image[list(order)]


def compress_jpeg(image, quality):
    """Compress an image of one or three channels with a quality from 1 to 95, and decompress it.

    This leaves 8 × 8 blocks, ringing at edges and less colour. Section 3.1 of Deep
    Image Prior restores such an image.
    """
    image = check_image("image", image)
    if len(image) not in (1, 3):
        raise ValueError(f"image: got {len(image)} channels; wants 1 or 3")
    check_integer("quality", quality, 1, most=95)
    file = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(file, "JPEG", quality=int(quality))
    pixels = np.atleast_3d(np.asarray(Image.open(file), dtype=np.float32) / 255)
    return torch.from_numpy(pixels).movedim(2, 0).contiguous()
