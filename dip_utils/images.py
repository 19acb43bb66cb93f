"""Images: one representation, from the file to the figure.

An image is a float32 tensor (C, H, W) on the CPU with values in [0, 1] and one
or three channels.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .runtime import check_integer

#: In the repository, and where an installed package has them.
FOLDERS = (Path(__file__).resolve().parent.parent / "images", Path(__file__).resolve().parent / "photographs")
SAMPLES = {"astronaut": "astronaut.png", "chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}


def check_image(name, image, *, bounded=True):
    """Raise unless `image` is a float32 tensor (C, H, W), finite, and in [0, 1] where `bounded`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what it got and what it wants.
    """
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"{name}: got {type(image).__name__}; wants a float32 tensor (C, H, W), as load_image returns")
    if image.dtype != torch.float32:
        hint = "; divide integers by their white, 255 or 65535" if not image.is_floating_point() else ""
        raise TypeError(f"{name}: got dtype {str(image.dtype)[6:]}; wants float32{hint}")
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"{name}: got shape {tuple(image.shape)}; wants (channels, height, width)")
    if image.device.type != "cpu":
        raise ValueError(f"{name}: got a tensor on {image.device}; wants it on the CPU, fit moves it")
    least, most = (value.item() for value in image.aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(f"{name}: got NaN or infinite values; wants finite ones")
    if bounded and (least < 0 or most > 1):
        raise ValueError(f"{name}: got values from {least:.3g} to {most:.3g}; wants them in [0, 1]")


def check_same_shape(name, image, other_name, other):
    """Raise unless two images have one shape."""
    if image.shape != other.shape:
        raise ValueError(
            f"{name}: got shape {tuple(image.shape)}; wants {tuple(other.shape)}, the shape of {other_name}"
        )


def sample(name):
    """Load one of the bundled photographs, whole.

    Parameters
    ----------
    name : {"astronaut", "chelsea", "coffee", "rocket"}

    Returns
    -------
    Tensor, (3, H, W)

    Raises
    ------
    ValueError
        If there is no such photograph.
    """
    if name not in SAMPLES:
        raise ValueError(f"name: got {name!r}; wants one of {', '.join(SAMPLES)}")
    folder = FOLDERS[0] if (FOLDERS[0] / SAMPLES[name]).exists() else FOLDERS[1]
    return load_image(folder / SAMPLES[name], multiple=1)


def load_image(path, *, longest=None, multiple=32):
    """Read an image file and say in one line what was done to it.

    Greyscale files without transparency give one channel, all others three.
    Transparency is laid over white, EXIF rotation is applied, of an animation
    the first frame is taken.

    Parameters
    ----------
    path : str or Path
        Any format that Pillow reads.
    longest : int, optional
        Shrink so that the longer side has at most this many pixels, but the
        shorter one no fewer than twice `multiple`.
    multiple : int
        Crop, centred, so that both sides are multiples of this; 32 = 2⁵ lets
        the five scales of the published networks halve them exactly.

    Returns
    -------
    Tensor, (C, H, W)
        float32 in [0, 1], C is 1 or 3.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no file at `path`.
    ValueError
        If the file is empty, truncated, not an image, larger than Pillow's
        limit for decompression, or has a side of less than twice `multiple`.
    """
    if longest is not None:
        check_integer("longest", longest, 1)
    check_integer("multiple", multiple, 1)
    # A network that halves an image to one pixel in some side has nothing to reflect there.
    least = 2 * multiple if multiple > 1 else 1
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path: got the folder {str(path)!r}; wants an image file")
    if not path.exists():
        raise FileNotFoundError(f"path: got {str(path)!r}, where there is no file; wants an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                pixels, done = _decode(file, longest, least)
    except UnidentifiedImageError as error:
        what = "an empty file" if path.stat().st_size == 0 else "a file that is not an image"
        raise ValueError(f"path: got {str(path)!r}, {what}; wants one that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"path: got {str(path)!r}, which is too large to open safely: {error}") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"path: got {str(path)!r}, which cannot be read, it may be truncated: {error}") from error
    image = torch.from_numpy(np.atleast_3d(pixels)).movedim(2, 0).contiguous()
    height, width = (side // multiple * multiple for side in image.shape[-2:])
    if min(height, width) < least:
        raise ValueError(
            f"path: got {str(path)!r} of {image.shape[1]} × {image.shape[2]} pixels (height × width); "
            f"wants at least {least} on each side"
        )
    if (height, width) != image.shape[-2:]:
        done.append(f"cropped from {image.shape[1]} × {image.shape[2]} to {height} × {width}, multiples of {multiple}")
        image = crop(image, height, width)
    if done:
        print(f"{path.name}: {'; '.join(done)}")
    return image


def _decode(file, longest, least):
    """Pixels of an open file as float32 (H, W) or (H, W, 3), and what was done to them."""
    done = []
    if getattr(file, "n_frames", 1) > 1:
        done.append(f"first of {file.n_frames} frames")
    if longest and file.format == "JPEG":
        # Decodes a large photograph at a fraction of its size.
        before = file.size
        file.draft(None, (longest, longest))
        if file.size != before:
            done.append(f"read from {before[1]} × {before[0]} pixels")
    picture = ImageOps.exif_transpose(file)
    if file.getexif().get(0x0112, 1) != 1:
        done.append("turned as its EXIF says")
    if picture.has_transparency_data and not picture.mode.startswith("I"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        done.append("transparency laid over white")
    white = 255
    if picture.mode.startswith("I"):
        white = 65535
        picture = Image.fromarray(np.asarray(picture, dtype=np.float32))
    elif picture.mode == "F":
        white = 1
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB"):
        done.append(f"converted from {picture.mode} to RGB")
        picture = picture.convert("RGB")
    pixels = np.asarray(picture, dtype=np.float32) / white
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise OSError(f"it has values outside of 0 to {white}")
    before = picture.size
    scale = max(longest / max(before), least / min(before)) if longest else 1
    if scale < 1:
        picture = picture.resize([max(1, round(side * scale)) for side in before], Image.Resampling.LANCZOS)
        pixels = np.asarray(picture, dtype=np.float32) / white
        done.append(f"shrunk from {before[1]} × {before[0]} to {picture.size[1]} × {picture.size[0]}")
    # Shrinking a picture of floats may overshoot at its edges.
    return (pixels.clip(0, 1) if longest else pixels), done


def crop(image, height, width, *, top=None, left=None):
    """Cut a rectangle out of an image.

    Parameters
    ----------
    image : Tensor, (C, H, W)
    height, width : int
        Size of the rectangle in pixels.
    top, left : int, optional
        Its upper left corner; centred where not given.

    Returns
    -------
    Tensor, (C, height, width)

    Raises
    ------
    ValueError
        If the rectangle leaves the image.
    """
    check_image("image", image, bounded=False)
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    for name, corner in (("top", top), ("left", left)):
        if corner is not None:
            check_integer(name, corner, 0)
    top = (image.shape[1] - height) // 2 if top is None else top
    left = (image.shape[2] - width) // 2 if left is None else left
    if top < 0 or left < 0 or top + height > image.shape[1] or left + width > image.shape[2]:
        raise ValueError(
            f"height, width: got {height} × {width} at ({top}, {left}); "
            f"wants a rectangle inside {image.shape[1]} × {image.shape[2]}"
        )
    return image[:, top : top + height, left : left + width].contiguous()


def to_uint8(image):
    """An image as Pillow and the browser want it.

    Parameters
    ----------
    image : Tensor, (C, H, W)
        Values outside [0, 1] are clipped.

    Returns
    -------
    ndarray of uint8, (H, W) or (H, W, 3)
    """
    check_image("image", image, bounded=False)
    pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, 2).numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def save_image(image, path):
    """Write an image as an 8-bit file; the ending of `path` names the format.

    Parameters
    ----------
    image : Tensor, (C, H, W)
        Values in [0, 1].
    path : str or Path

    Raises
    ------
    TypeError, ValueError
        If `image` is not an image, or Pillow does not know the ending.
    """
    check_image("image", image)
    if Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
        raise ValueError(f"path: got {str(path)!r}; wants a name that ends with .png, .jpg or the like")
    Image.fromarray(to_uint8(image)).save(path)
