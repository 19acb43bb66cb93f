"""Images: files in and out, scikit-image's photographs.

An image is a float32 tensor (C, H, W) on the CPU with values in [0, 1]. Three
channels are red, green and blue; any other number of channels is shown and saved
as their mean, in grey.
"""

import numpy as np
import skimage  # loads its parts when they are first used
import torch
from PIL import Image

from .engine.checks import check_choice, check_image, check_integer, check_number, check_path
from .engine.decoding import decode
from .engine.machine import say
from .resampling import resize

SAMPLES = ("astronaut", "chelsea", "coffee", "rocket", "retina", "grass")
#: How files are written: lossless, or nearly so.
FINE = {"quality": 95, "subsampling": 0}
ENDINGS = {".png": {}, ".jpg": FINE, ".jpeg": FINE, ".webp": {"lossless": True}, ".tif": {}, ".tiff": {}, ".bmp": {}}


def sample(name):
    """A photograph of scikit-image: "astronaut", "chelsea", "coffee", "rocket", "retina", or "grass" in grey."""
    check_choice("name", name, SAMPLES)
    pixels = np.atleast_3d(getattr(skimage.data, name)()) / np.float32(255)
    return torch.from_numpy(pixels).movedim(2, 0).contiguous()


def load_image(path, *, longest=None, white=None):
    """Read an image file and say in one line what was done to it.

    Greyscale files without transparency give one channel, all others three.
    Transparency is laid over white, the EXIF orientation is applied, colours are
    converted to sRGB, and of an animation the first frame is taken. Greyscale files
    and TIFF keep their bit depth; other files give 8 bits.

    Parameters
    ----------
    path : str or Path
        Any format that Pillow reads; HEIC where pillow-heif is installed.
    longest : int, optional
        Shrink so that the longer side has at most this many pixels.
    white : float, optional
        The stored value that becomes 1, such as 4095 for a 12-bit picture in a
        16-bit file. If not given, the largest value of the file's integer type,
        and 1 for floating-point numbers.

    Returns
    -------
    Tensor, (C, H, W)
        float32 in [0, 1], C is 1 or 3.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no file at `path`.
    ValueError
        If the file cannot be read, exceeds Pillow's limit on pixels (a JPEG: after
        it was shrunk), or has values below 0 or above white.
    """
    path = check_path(path)
    if longest is not None:
        check_integer("longest", longest, 1)
    if white is not None:
        check_number("white", white, above=0)
    image, done = decode(path, longest, white)
    height, width = image.shape[1:]
    if longest and longest < max(height, width):
        smaller = [max(1, round(side * longest / max(height, width))) for side in (height, width)]
        image = resize(image, *smaller)
        done.append(f"shrunk from {height} x {width} to {smaller[0]} x {smaller[1]}")
    if done:
        say(f"{path.name}: {'; '.join(done)}")
    return image


def crop(image, height, width, *, top=None, left=None):
    """The part (C, height, width) of an image (C, H, W) that starts at (top, left); by default the middle."""
    image = check_image("image", image, bounded=False)
    for name, value, least in (("height", height, 1), ("width", width, 1), ("top", top, 0), ("left", left, 0)):
        if value is not None or least:
            check_integer(name, value, least)
    top = (image.shape[1] - height) // 2 if top is None else top
    left = (image.shape[2] - width) // 2 if left is None else left
    if top < 0 or left < 0 or top + height > image.shape[1] or left + width > image.shape[2]:
        raise ValueError(
            f"height, width: got {height} × {width} at ({top}, {left}); "
            f"wants a rectangle inside {image.shape[1]} × {image.shape[2]}"
        )
    return image[:, top : top + height, left : left + width].clone(memory_format=torch.contiguous_format)


def to_uint8(image):
    """An image as Pillow and browsers take it: uint8, (H, W) or (H, W, 3), values outside [0, 1] clipped."""
    image = check_image("image", image, bounded=False)
    if len(image) not in (1, 3):
        image = image.mean(dim=0, keepdim=True)
    pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, 2).numpy()
    return pixels[..., 0] if len(image) == 1 else pixels


def save_image(image, path):
    """Write an image (C, H, W) in [0, 1] as an 8-bit file; the ending of `path` names the format.

    JPEG loses a little; all others keep every pixel. Unless there are one or three
    channels, their mean is saved, and a line says so.
    """
    image, path = check_image("image", image), check_path(path, ENDINGS)
    Image.fromarray(to_uint8(image)).save(path, **ENDINGS[path.suffix.lower()])
    if len(image) not in (1, 3):
        say(f"{path.name}: the mean of {len(image)} channels, in grey")
