"""The alternatives: classical denoisers, and pixels without a network."""

import numpy as np
import skimage  # loads its parts when they are first used
import torch
from torch import nn

from .corruption import add_gaussian_noise
from .engine.checks import check_choice, check_floating, check_image, check_number, check_several, check_size
from .engine.machine import say
from .metrics import psnr

#: The strengths to choose from for each denoiser, for noise of standard deviation 1/10.
STRENGTHS = {
    "Gaussian blur": (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0),
    "total variation": (0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.3, 0.4),
    "non-local means": (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2),
    "wavelet": (0.5, 0.65, 0.8, 1.0, 1.25),
}


def denoise(noisy, method, sigma, strength):
    """Remove noise with one of scikit-image's denoisers.

    Parameters
    ----------
    noisy : Tensor, (C, H, W)
        Values in [0, 1].
    method : {"Gaussian blur", "total variation", "non-local means", "wavelet"}
    sigma : float
        Standard deviation of the noise; used by non-local means and the wavelets.
    strength : float
        Width of the blur in pixels; weight of the total variation; h / sigma of
        non-local means; the wavelets' sigma as a multiple of `sigma`.

    Returns
    -------
    Tensor, (C, H, W)
        Clipped to [0, 1].
    """
    noisy = check_image("noisy", noisy)
    check_number("sigma", sigma, above=0)
    check_number("strength", strength, above=0)
    check_choice("method", method, STRENGTHS)
    image, axis = (noisy.numpy(), 0) if len(noisy) > 1 else (noisy[0].numpy(), None)
    if method == "Gaussian blur":
        clean = skimage.filters.gaussian(image, strength, channel_axis=axis)
    elif method == "total variation":
        clean = skimage.restoration.denoise_tv_chambolle(image, weight=strength, channel_axis=axis)
    elif method == "non-local means":
        clean = skimage.restoration.denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=strength * sigma, sigma=sigma, fast_mode=True, channel_axis=axis
        )
    else:
        clean = skimage.restoration.denoise_wavelet(
            image, sigma=strength * sigma, method="BayesShrink", convert2ycbcr=len(noisy) == 3, channel_axis=axis
        )
    return torch.from_numpy(np.asarray(clean, dtype=np.float32)).reshape(noisy.shape).clamp(0, 1)


def tune_denoiser(photographs, method, sigma):
    """The strength that is best, in mean PSNR, on clean photographs (C, H, W) to which noise of `sigma` is added.

    A fair way to set a baseline's parameter: on photographs other than the one that
    it is judged on. The strengths to choose from suit a `sigma` of about 1/10; a line is
    printed if the best one is the first or the last.
    """
    check_choice("method", method, STRENGTHS)
    photographs = check_several("photographs", photographs, "a list of images (C, H, W)")
    photographs = [check_image("photographs", photograph) for photograph in photographs]
    if not photographs:
        raise ValueError("photographs: got none; wants at least one")
    noisy = [add_gaussian_noise(clean, sigma, seed=seed) for seed, clean in enumerate(photographs)]

    def mean_psnr(strength):
        pairs = zip(photographs, noisy, strict=True)
        return np.mean([psnr(clean, denoise(image, method, sigma, strength)) for clean, image in pairs])

    strengths = STRENGTHS[method]
    best = max(strengths, key=mean_psnr)
    if best in (strengths[0], strengths[-1]):
        say(f"{method}: the best strength, {best}, is an end of what was tried; a better one may lie beyond.")
    return best


class Pixels(nn.Module):
    """An image without a network: f_θ(z) = z + θ, one parameter for each value.

    With `fit(..., input_noise=0)` this is gradient descent on the pixels themselves,
    starting from the image z. Write `Pixels(channels, height, width)`, or for a signal
    `Pixels(channels, time)`. In Deep Image Prior, section 3.2, it is
    super-resolution without a prior.
    """

    def __init__(self, channels, *size):
        check_size(channels, size)
        super().__init__()
        self.change = nn.Parameter(torch.zeros(1, channels, *size, device="cpu"))

    def forward(self, z):
        """(1, channels, *size) to the same."""
        if z.shape != self.change.shape:
            raise ValueError(f"z: got shape {tuple(z.shape[1:])}; wants {tuple(self.change.shape[1:])}, that of Pixels")
        return z + self.change


def total_variation(image):
    """The mean absolute difference of neighbouring values, the classical prior for edges.

    Anisotropic: the mean over vertical neighbours plus that over horizontal ones
    (0 where a side of 1 has none), of a tensor (..., H, W).
    """
    check_floating("image", image)
    steps = image.diff(dim=-2).abs(), image.diff(dim=-1).abs()
    return sum(step.mean() if step.numel() else step.sum() for step in steps)
