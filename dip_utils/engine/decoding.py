"""Reading image files, with the bit depths, colours and oddities that they come with."""

import contextlib
import io
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from .checks import ROUNDING

with contextlib.suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def decode(path, longest, white):
    """The image (C, H, W) of a file, and a list of what was done to it. A JPEG may be read small, down to `longest`."""
    got = f"path: got {str(path)!r}"
    if path.is_dir():
        raise IsADirectoryError(f"{got}, a folder; wants an image file")
    if not path.is_file():
        raise FileNotFoundError(f"{got}, where there is no file; wants an image file")
    try:
        with path.open("rb") as file:
            head = file.read(12)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            deep = _read_deep_tiff(path) if head.startswith(TIFF) else None
            pixels, most, done = deep or _read_picture(path, longest if head.startswith(b"\xff\xd8\xff") else None)
    except UnidentifiedImageError as error:
        kind = "a file of no known image format" if head else "an empty file"
        if head[4:8] == b"ftyp" and head[8:] in HEIC:
            kind = "a HEIC file, which `pip install pillow-heif` makes readable"
        raise ValueError(f"{got}, {kind}; wants an image that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{got}, too large to open safely; with longest=… a JPEG is read small: {error}") from error
    except ValueError as error:
        raise ValueError(f"{got}, which cannot be read: {error}") from error
    except Exception as error:  # Broken files make decoders raise anything.
        raise ValueError(f"{got}, which cannot be read, it may be damaged or truncated: {error}") from error

    colour, alpha = pixels, None
    if pixels.shape[2] in (2, 4):
        colour, alpha = pixels[..., :-1], np.divide(pixels[..., -1:], most, dtype=np.float32)
        done.append("transparency laid over white")
    least, largest, top = colour.min(), colour.max(), white or most
    if not (np.isfinite(least) and np.isfinite(largest)):
        raise ValueError(f"{got}, which holds NaN or infinite values; wants finite ones")
    if least < -ROUNDING * top:
        raise ValueError(f"{got} with negative values, from {least:.7g} to {largest:.7g}; wants none below 0")
    # White is rarely the brightest value of a picture: rather the largest number of as many bits.
    likely = 2 ** int(np.ceil(largest)).bit_length() - 1
    if largest > (1 + ROUNDING) * top:
        raise ValueError(f"{got} with values up to {largest:.7g}; wants them up to {top:g}, or perhaps white={likely}")
    if white is None and most > 255 and 0 < largest < most / 8:
        done.append(
            f"dark: its values end at {largest} of {most}; if its white is {likely}, load it with white={likely}"
        )
    image = np.divide(colour, top, dtype=np.float32)
    if alpha is not None:
        # Grey becomes three channels too.
        image = 1 - np.repeat(alpha, 3, axis=2) * (1 - image)
    return torch.from_numpy(image.clip(0, 1)).movedim(2, 0).contiguous(), done


def _read_deep_tiff(path):
    """Like `_read_picture`, for a TIFF of other than 8 bits, which Pillow may cut, invert or refuse; else None."""
    import tifffile  # takes a tenth of a second, and few read a TIFF

    with tifffile.TiffFile(path) as file:
        page, count = file.pages.first, len(file.pages)
        if page.dtype in (np.uint8, np.bool_):
            return None
        _check_pixels(page.imagewidth, page.imagelength)
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        profile = page.tags.valueof("InterColorProfile")
        try:
            if not (
                str(page.dtype).startswith(("uint", "int", "float"))
                and page.axes in ("YX", "YXS", "SYX")
                and 0 not in page.shape
                and (inverted or page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB))
                and page.extrasamples in ((), (tifffile.EXTRASAMPLE.UNASSALPHA,))
                and page.tags.valueof("Orientation", 1) == 1
                and (profile is None or _is_srgb(profile))
            ):
                raise ValueError(f"a TIFF of shape {page.shape}, {page.dtype}, {page.photometric!r}")
            pixels = page.asarray()
        except ValueError:
            # Pillow turns, converts and decompresses more of them, in fewer bits; but it leaves values inverted.
            with contextlib.suppress(UnidentifiedImageError), Image.open(path):
                if not inverted:
                    return None
            raise
    most = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    pixels = most - pixels if inverted else pixels
    pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else np.atleast_3d(pixels)
    return pixels, most, [f"first of {count} frames"] * (count > 1)


def _read_picture(path, small):
    """The pixels (H, W, 1 to 4) of a file, the largest value of their type, and a list of what was done to them.

    Pillow reads them. With `small` a JPEG is read at a fraction of its size, but no smaller than this.
    """
    # `Image.open` would refuse a large JPEG before it can be told to read it small.
    with JpegImageFile(path) if small else Image.open(path) as file:
        # Pillow keeps 16 bits for grey alone, and forgets how a file was stored once it is loaded.
        stored = str(file.tile)
        white = re.search(r"'RGB', (\d+)\)", stored)  # of a PPM
        bits = 16 if ";16" in stored else int(white[1]).bit_length() if white else 8
        count = getattr(file, "n_frames", 1)
        done = [f"first of {count} frames"] * (count > 1)
        if small:
            width, height = file.size
            file.draft(None, (small, small))
            _check_pixels(*file.size)
            if file.size != (width, height):
                done.append(f"read from {height} x {width} pixels")
        if file.getexif().get(0x0112, 1) != 1:
            done.append("turned as its EXIF says")
        profile, transparent = file.info.get("icc_profile"), file.info.get("transparency")
        picture = ImageOps.exif_transpose(file)
    if picture.mode[0] in "IF":
        if profile:
            done.append("its colour profile ignored")
        pixels, most = np.atleast_3d(np.asarray(picture)), 1 if picture.mode == "F" else 65535
        if transparent is not None:
            pixels = np.concatenate([pixels, np.where(pixels == transparent, 0, most)], axis=2)
        return pixels, most, done
    if bits > 8:
        done.append(f"read in 8 of its {bits} bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode == "P" and profile:
        picture = picture.convert("RGB")
    if profile and not _is_srgb(profile):
        converted = _to_srgb(picture, profile)
        done.append("colours converted to sRGB" if converted else "its colour profile ignored")
        picture = converted or picture
    if picture.mode not in ("L", "RGB", "RGBA"):
        done.append(f"converted from {picture.mode} to RGB")
        picture = picture.convert("RGB")
    return np.atleast_3d(np.asarray(picture)), 255, done


def _check_pixels(width, height):
    """Raise for a picture above Pillow's limit on pixels, as Pillow does for files that it opens itself."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{height} × {width} pixels, more than {limit}")


def _to_srgb(picture, profile):
    """A picture in L, RGB or RGBA, its colours converted from a profile; None if that fails."""
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (OSError, ImageCms.PyCMSError):
        return None
    return converted.convert("L") if picture.mode == "L" else converted


def _is_srgb(profile):
    """Whether a profile leaves RGB colours as they are; its name does not say."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(6, 36, 3)
    converted = _to_srgb(Image.fromarray(colours), profile)
    return converted is not None and np.abs(np.asarray(converted) - colours.astype(int)).max() <= 3
