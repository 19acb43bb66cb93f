"""What the lab does to a good image: noise, shuffles, compression.

The four targets of the report's requirement 1 and the noise of requirement 2.
What is random takes a seed and leaves the global random state alone.
"""

import io

import numpy as np
import torch
from PIL import Image

from .images import check_image, to_uint8
from .runtime import check_integer, check_number, seeded


def add_gaussian_noise(image, sigma, *, seed, clip=True):
    """Add white Gaussian noise N(0, sigma²).

    Parameters
    ----------
    image : Tensor, (C, H, W)
        Values in [0, 1].
    sigma : float
        Standard deviation in units of the image's range: 25/255 in the paper.
    seed : int
    clip : bool
        Clip the result to [0, 1], as a stored image would be (recipe B). The
        report's recipe A does not: its target leaves [0, 1].

    Returns
    -------
    Tensor, (C, H, W)
    """
    check_image("image", image)
    check_number("sigma", sigma, least=0)
    noise = torch.empty_like(image).normal_(generator=seeded(seed, "noise on an image"))
    noisy = image + sigma * noise
    return noisy.clamp_(0, 1) if clip else noisy


def uniform_noise(channels, height, width, *, seed):
    """An image of independent values, uniform in [0, 1).

    Returns
    -------
    Tensor, (channels, height, width)
    """
    for name, value in (("channels", channels), ("height", height), ("width", width)):
        check_integer(name, value, 1)
    return torch.rand(channels, height, width, generator=seeded(seed, "uniform noise"))


def shuffle_rows_and_columns(image, *, seed):
    """Shuffle the elements of every row, then those of every column, within each channel.

    Recipe A of the report (Figure 2): each channel keeps its values.

    Parameters
    ----------
    image : Tensor, (C, H, W)
    seed : int

    Returns
    -------
    Tensor, (C, H, W)
    """
    check_image("image", image)
    generator = seeded(seed, "shuffle")
    for dim in (2, 1):
        keys = torch.rand(image.shape, generator=generator, dtype=torch.float64)
        image = image.gather(dim, keys.argsort(dim))
    return image


def shuffle_elements(image, *, seed):
    """One shuffle of all elements of the flattened array, channels mixed.

    Recipe B of the report (Figure 3): only the multiset of values is kept.

    Parameters
    ----------
    image : Tensor, (C, H, W)
    seed : int

    Returns
    -------
    Tensor, (C, H, W)
    """
    check_image("image", image)
    order = torch.randperm(image.numel(), generator=seeded(seed, "shuffle"))
    return image.flatten()[order].reshape(image.shape)


def permute_channels(image, order=(1, 2, 0)):
    """Permute whole channels: the report's mistaken shuffle, which shuffles nothing.

    Parameters
    ----------
    image : Tensor, (C, H, W)
    order : sequence of int
        A permutation of 0 … C - 1.

    Returns
    -------
    Tensor, (C, H, W)
    """
    check_image("image", image)
    if sorted(order) != list(range(len(image))):
        raise ValueError(f"order: got {tuple(order)}; wants a permutation of the {len(image)} channels")
    return image[list(order)]


def compress_jpeg(image, quality):
    """Compress and decompress: 8 × 8 blocks, ringing at edges, lost colour.

    Parameters
    ----------
    image : Tensor, (C, H, W)
        Values in [0, 1].
    quality : int
        From 1 to 95, as Pillow takes it.

    Returns
    -------
    Tensor, (C, H, W)

    References
    ----------
    Deep Image Prior, section 3.1, blind restoration of a compressed image.
    """
    check_image("image", image)
    check_integer("quality", quality, 1)
    if quality > 95:
        raise ValueError(f"quality: got {quality}; wants at most 95")
    file = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(file, "JPEG", quality=int(quality))
    pixels = np.atleast_3d(np.asarray(Image.open(file), dtype=np.float32) / 255)
    return torch.from_numpy(pixels).movedim(2, 0).contiguous()
