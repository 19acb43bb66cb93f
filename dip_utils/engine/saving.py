"""Saving and loading a run: written whole or not at all, read without running code."""

import os

import numpy as np
import torch

from .checks import check_path

FILE_FORMAT = "dip_utils.Fit 6"


def save(fields, path):
    """Write a dict of tensors, arrays and plain values; it appears under its name only when complete."""
    path = check_path(path, [".pt"])
    content = {"format": FILE_FORMAT}
    for name, value in fields.items():
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        # A view would be saved with all that it is a view of.
        content[name] = value.clone() if isinstance(value, torch.Tensor) else value
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path):
    """Read what `save` wrote."""
    path = check_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: got {str(path)!r}, where there is no file; wants a saved run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FILE_FORMAT:
            raise KeyError("format")
    except OSError:
        raise
    # On a foreign file the unpickler may raise anything.
    except Exception as error:
        raise ValueError(f"path: got {str(path)!r}, truncated, or not a run that this version has saved") from error
    return content
