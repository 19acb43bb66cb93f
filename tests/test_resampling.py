import math

import numpy as np
import pytest
import torch
from PIL import Image

import dip_utils as dip

FACTORS = [2, 3, 4, 5, 8]


def window(x):
    """The closed form, written with the standard library."""
    if abs(x) >= 2:
        return 0.0
    if x == 0:
        return 1.0
    return 2 * math.sin(math.pi * x) * math.sin(math.pi * x / 2) / (math.pi * x) ** 2


def slow_downsample(signal, factor):
    """One axis, one pixel at a time: every input position within reach, the border replicated."""
    result = []
    for i in range(len(signal) // factor):
        centre = (i + 0.5) * factor - 0.5
        reach = range(math.ceil(centre - 2 * factor), math.floor(centre + 2 * factor) + 1)
        weights = [window((k - centre) / factor) for k in reach]
        values = [signal[min(max(k, 0), len(signal) - 1)] for k in reach]
        result.append(np.dot(weights, values) / sum(weights))
    return np.array(result)


@pytest.mark.parametrize("factor", FACTORS)
def test_kernel_is_the_closed_form(factor):
    kernel = dip.LanczosDownsampler(factor).kernel
    taps = len(kernel)
    expected = np.array([window((k - (taps - 1) / 2) / factor) for k in range(taps)])
    assert np.allclose(kernel, expected / expected.sum(), atol=1e-7)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
def test_operator_is_the_slow_obvious_one(factor):
    image = dip.uniform_noise(2, 4 * factor, 6 * factor, seed=0)
    expected = np.apply_along_axis(slow_downsample, 1, image.double().numpy(), factor)
    expected = np.apply_along_axis(slow_downsample, 2, expected, factor)
    assert np.allclose(dip.LanczosDownsampler(factor)(image), expected, atol=1e-5)
    # In the image's own precision, with no call of double().
    in_double = dip.LanczosDownsampler(factor)(image.double())
    assert in_double.dtype == torch.float64 and np.allclose(in_double, expected, atol=1e-7)


@pytest.mark.parametrize("factor", FACTORS)
def test_constant_stays_constant_to_the_border(factor):
    constant = torch.full((3, 5 * factor, 4 * factor), 0.3)
    assert torch.allclose(dip.LanczosDownsampler(factor)(constant), torch.full((3, 5, 4), 0.3), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_agrees_with_pillow_on_a_smooth_image(factor):
    rows, columns = torch.meshgrid(torch.arange(24 * factor), torch.arange(20 * factor), indexing="ij")
    smooth = (0.5 + 0.3 * torch.sin(rows / (6 * factor)) * torch.cos(columns / (6 * factor)))[None]
    small = Image.fromarray(smooth[0].numpy()).resize((20, 24), Image.Resampling.LANCZOS)
    inside = np.s_[3:-3, 3:-3]
    assert np.abs(dip.LanczosDownsampler(factor)(smooth)[0].numpy() - np.asarray(small))[inside].max() < 1e-3


@pytest.mark.parametrize("factor", FACTORS)
def test_gradient_is_the_adjoint(factor):
    """⟨d x, y⟩ = ⟨x, dᵀ y⟩ for a linear d, whose dᵀ is what back-propagation computes."""
    operator = dip.LanczosDownsampler(factor).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4 * factor, 5 * factor, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(1, 3, 4, 5, dtype=torch.float64, generator=generator)
    other = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    adjoint = torch.autograd.grad((operator(x) * y).sum(), x)[0]
    assert (operator(other) * y).sum().item() == pytest.approx((other * adjoint).sum().item(), rel=1e-10)


def test_weights_are_constants():
    assert not list(dip.LanczosDownsampler(4).parameters())


@pytest.mark.parametrize("method", ["nearest", "bicubic", "lanczos"])
def test_resize_puts_pixels_where_pillow_puts_them(photograph, method):
    """On 8-bit data Pillow rounds; float data must agree within that rounding."""
    # Mid-range values: between its two passes Pillow clips 8-bit data.
    eight_bit = (photograph * 127 + 64).round().byte()
    picture = Image.fromarray(eight_bit.movedim(0, 2).numpy())
    expected = np.asarray(picture.resize((96, 64), getattr(Image.Resampling, method.upper()))) / 255
    resized = dip.resize((eight_bit.float() / 255).requires_grad_(), 64, 96, method)
    assert resized.shape == (3, 64, 96) and resized.dtype == torch.float32
    assert np.abs(resized.movedim(0, 2).numpy() - expected).max() < 2 / 255


def test_resize_stays_in_range():
    edge = torch.zeros(1, 16, 16)
    edge[..., 8:] = 1
    bigger = dip.resize(edge, 64, 64, "lanczos")
    assert bigger.min() == 0 and bigger.max() == 1
