"""How good an image is. A ground truth, where there is one, is the first argument."""

import math

import numpy as np
import skimage  # loads its parts when they are first used
import torch

from .engine.checks import check_curve, check_image, check_integer, check_number, check_range, check_same_shape


def _pair(reference, image, *, signal=True):
    """Two images (or signals) of one shape, without gradients, or an error."""
    reference = check_image("reference", reference, bounded=False, signal=signal)
    image = check_image("image", image, bounded=False, signal=signal)
    check_same_shape("image", image, "reference", reference)
    return reference, image


def mse(reference, image):
    """Mean squared error over all values of two images (C, H, W) or signals (C, T), as a float."""
    reference, image = _pair(reference, image)
    return (reference.double() - image.double()).square().mean().item()


def psnr(reference, image, *, border=0):
    """Peak signal-to-noise ratio for images whose range is 1.

    Parameters
    ----------
    reference, image : Tensor, (C, H, W) or (C, T)
    border : int
        Pixels to leave out at each side, as the super-resolution literature does.

    Returns
    -------
    float
        10 log₁₀(1 / MSE), in dB; infinite for equal images.
    """
    reference, image = _pair(reference, image)
    check_range("reference", reference)
    check_integer("border", border, 0)
    if 2 * border >= min(reference.shape[1:]):
        raise ValueError(f"border: got {border}; wants less than half of {min(reference.shape[1:])}, the shorter side")
    inside = (slice(None), *(slice(border, side - border) for side in reference.shape[1:]))
    error = mse(reference[inside], image[inside])
    return -10 * math.log10(error) if error else math.inf


def ssim(reference, image):
    """Structural similarity of two images (C, H, W), at least 11 pixels on each side; 1 for equal ones.

    With the Gaussian window of Wang et al. (2004), the mean over the channels; by scikit-image.
    """
    reference, image = _pair(reference, image, signal=False)
    if min(reference.shape[1:]) < 11:
        raise ValueError(f"reference: got shape {tuple(reference.shape)}; wants at least 11 pixels on each side")
    options = dict(channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(skimage.metrics.structural_similarity(reference.numpy(), image.numpy(), **options))


def luma(image):
    """The luma Y of ITU-R BT.601, on which super-resolution is scored: (3, H, W) to (1, H, W).

    In studio range: 16/255 for black, 235/255 for white.
    """
    image = check_image("image", image, bounded=False)
    if len(image) != 3:
        raise ValueError(f"image: got {len(image)} channels; wants 3")
    return torch.from_numpy(skimage.color.rgb2ycbcr(image.double().numpy(), channel_axis=0)[:1] / 255).float()


def share_explained(target, loss):
    """The share of the target's variance that an output with this loss explains: 1 - loss / Var(target).

    1 is a perfect copy; 0 is no better than the target's mean colour. It makes
    losses comparable between targets of different variance.

    Parameters
    ----------
    target : Tensor, (C, H, W) or (C, T)
        Its variance is that within the channels.
    loss : array_like
        Mean squared errors against `target`.

    Returns
    -------
    ndarray or float
    """
    target = check_image("target", target, bounded=False, signal=True)
    variance = target.double().flatten(1).var(dim=1, correction=0).mean().item()
    if variance == 0:
        raise ValueError("target: got an image of one colour; wants one whose variance is not 0")
    return 1 - check_curve("loss", loss) / variance


def steps_to_reach(curve, level):
    """The first step at which a curve of one value per step is at a level or above it; None if it never is."""
    check_number("level", level)
    reached = np.flatnonzero(check_curve("curve", curve) >= level)
    return int(reached[0]) if len(reached) else None


def radial_power(image, *, bands=16):
    """The power spectrum of an image (C, H, W), averaged over directions and channels.

    The frequencies, from 0 to just below 1/2 cycle per pixel (a pattern that changes
    from pixel to pixel), are divided into rings of equal width. Returns two arrays
    (bands,): the middle of each ring, and the mean power in it. White noise of
    variance v has power v in every ring. Each side must have at least 2 · bands pixels.
    """
    image = check_image("image", image, bounded=False)
    check_integer("bands", bands, 1)
    height, width = image.shape[1:]
    # The window leaves nothing of two pixels.
    least = max(3, 2 * bands)
    if min(height, width) < least:
        raise ValueError(f"image: got {height} × {width}; wants at least {least} on each side for {bands} bands")
    pixels = image.double().numpy()
    # The window keeps the borders from looking like detail.
    taper = skimage.filters.window("hann", (height, width))
    pixels = (pixels - pixels.mean(axis=(1, 2), keepdims=True)) * taper
    power = (np.abs(np.fft.fft2(pixels)) ** 2).mean(axis=0) / (taper**2).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = (radius * 2 * bands).astype(int).ravel()
    # Beyond 1/2, in the corners of the spectrum, not all directions exist.
    total, count = (np.bincount(ring, weights)[:bands] for weights in (power.ravel(), None))
    return (np.arange(bands) + 0.5) / (2 * bands), total / count
