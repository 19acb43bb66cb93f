"""Checks of arguments. Each message names the argument, what it got and what it wants."""

import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

#: How far rounding may carry a value of an image beyond 0 or 1.
ROUNDING = 1e-5
#: Values beyond this many times white are not of an image in [0, 1], or near it as recipe A's targets are.
FAR = 20
WHITE = "divide it by its white, for example 255"


def check_integer(name, value, least, most=math.inf):
    """Raise unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}; wants an integer")
    if value < least:
        raise ValueError(f"{name}: got {value}; wants an integer of at least {least}")
    if value > most:
        raise ValueError(f"{name}: got {value}; wants an integer of at most {most}")


def check_number(name, value, *, above=-math.inf, least=-math.inf, below=math.inf, most=math.inf):
    """Raise unless `value` is a finite real number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}; wants a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: got {value}; wants a finite number")
    for bound, holds, words in (
        (above, value > above, "above"),
        (least, value >= least, "of at least"),
        (below, value < below, "below"),
        (most, value <= most, "of at most"),
    ):
        if not holds:
            raise ValueError(f"{name}: got {value}; wants a number {words} {bound}")


def check_size(channels, size):
    """Raise unless the channels and all sides of an image or a signal, one or more, are at least 1."""
    check_integer("channels", channels, 1)
    if not size:
        raise TypeError("size: got none; wants height and width of an image, or the length of a signal")
    for side in size:
        check_integer("size", side, 1)


def check_several(name, values, wants):
    """Return several values as a tuple, or raise for a single one, or for an image."""
    if isinstance(values, torch.Tensor | np.ndarray):
        if values.ndim != 1:
            raise TypeError(f"{name}: got {type(values).__name__} of shape {tuple(values.shape)}; wants {wants}")
        values = values.tolist()
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {values!r}; wants {wants}")
    return tuple(values)


def check_function(name, function, wants="a function"):
    """Raise unless `function` can be called, and for a class, of which an instance was meant."""
    if isinstance(function, type):
        raise TypeError(f"{name}: got the class {function.__name__}; wants an instance of it")
    if not callable(function):
        raise TypeError(f"{name}: got {type(function).__name__}; wants {wants}")


def check_path(path, endings=()):
    """Return a path with ~ expanded, or raise; a file to be written needs one of `endings`."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: got {type(path).__name__}; wants the path of a file")
    path = Path(path).expanduser()
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"path: got {str(path)!r}; wants a name that ends with {', '.join(endings)}")
    if endings and not path.parent.is_dir():
        raise FileNotFoundError(f"path: got {str(path)!r}; wants a folder that is there")
    return path


def check_choice(name, value, choices):
    """Raise unless `value` is one of `choices`."""
    if value not in tuple(choices):
        raise ValueError(f"{name}: got {value!r}; wants one of {', '.join(map(str, choices))}")


def check_image(name, image, *, bounded=True, signal=False):
    """Return an image (C, H, W), or a `signal` (C, T), without its history of gradients, or raise.

    It has to be float32, finite and on the CPU. If `bounded`, values must lie in
    [0, 1]; what rounding has carried beyond is clipped.
    """
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"{name}: got {type(image).__name__}; wants a float32 tensor (C, H, W), as load_image returns")
    if image.dtype != torch.float32:
        hint = "; divide integers by their white, 255 or 65535" if not image.dtype.is_floating_point else ""
        hint = "; take its real part or its magnitude" if image.dtype.is_complex else hint
        raise TypeError(f"{name}: got dtype {str(image.dtype)[6:]}; wants float32{hint}")
    if image.ndim not in ((2, 3) if signal else (3,)) or 0 in image.shape:
        or_signal = " or (channels, time)" if signal else ""
        raise ValueError(f"{name}: got shape {tuple(image.shape)}; wants (channels, height, width){or_signal}")
    if image.device.type != "cpu":
        raise ValueError(f"{name}: got a tensor on {image.device}; wants it on the CPU, fit moves it")
    # A plain tensor: `load_fit` would refuse a subclass.
    image = image.detach().as_subclass(torch.Tensor)
    least, most = (value.item() for value in image.aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(f"{name}: got NaN or infinite values; wants finite ones")
    if bounded and (least < -ROUNDING or most > 1 + ROUNDING):
        hint = ": .clamp(0, 1) clips them" if least > -0.5 and most < 1.5 else f": {WHITE}" if most > FAR else ""
        raise ValueError(f"{name}: got values from {least:.7g} to {most:.7g}; wants them in [0, 1]{hint}")
    return image.clamp(0, 1) if bounded and (least < 0 or most > 1) else image


def check_range(name, image, white=1.0):
    """Raise if the values of an image are far beyond this white."""
    least, most = (value.item() for value in image.aminmax())
    if max(-least, most) > FAR * max(1, white):
        raise ValueError(
            f"{name}: got values from {least:.4g} to {most:.4g}; wants an image in [0, 1], or near it: {WHITE}"
        )


def check_same_shape(name, image, other_name, other):
    """Raise unless two images have the same shape."""
    if image.shape != other.shape:
        raise ValueError(
            f"{name}: got shape {tuple(image.shape)}; wants {tuple(other.shape)}, the shape of {other_name}"
        )


def check_curve(name, values):
    """Return a number, or one for each step, as an array, or raise. Tensors may have gradients."""
    wants = "wants numbers, one for each step"
    if values is None:
        raise TypeError(f"{name}: got None; {wants}")
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: got {type(values).__name__}; {wants}") from error
    if values.ndim > 1:
        raise ValueError(f"{name}: got shape {values.shape}; {wants}")
    return values


def first_line(error):
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_floating(name, image):
    """Raise unless `image` is a tensor (..., H, W) of floating-point numbers."""
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"{name}: got {type(image).__name__}; wants a tensor")
    if not image.is_floating_point():
        raise TypeError(f"{name}: got dtype {str(image.dtype)[6:]}; wants floating-point numbers")
    if image.ndim < 2 or 0 in image.shape:
        raise ValueError(f"{name}: got shape {tuple(image.shape)}; wants (..., height, width)")
