import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

import dip_utils as dip


@pytest.fixture
def noisy(photograph):
    return dip.add_gaussian_noise(photograph, 0.1, seed=0)


def test_mse_and_psnr_agree_with_scikit_image(photograph, noisy):
    pair = photograph.double().numpy(), noisy.double().numpy()
    assert dip.mse(photograph, noisy) == pytest.approx(mean_squared_error(*pair), rel=1e-12)
    assert dip.psnr(photograph, noisy) == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1), rel=1e-12)


def test_psnr_of_a_known_error():
    # An error of 0.1 everywhere: 10 log10(1 / 0.01) = 20 dB.
    assert dip.psnr(torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.35)) == pytest.approx(20, abs=1e-4)
    assert dip.psnr(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)) == math.inf


def test_metrics_take_signals_and_tensors_with_gradients(photograph, noisy):
    signal, noisy_signal = photograph[:, 0], noisy[:, 0]
    assert dip.psnr(signal, noisy_signal) == dip.psnr(photograph[:, :1], noisy[:, :1])
    assert dip.psnr(signal, noisy_signal, border=4) == dip.psnr(signal[:, 4:-4], noisy_signal[:, 4:-4])
    assert dip.share_explained(signal, 0.01) == pytest.approx(1 - 0.01 / signal.numpy().var(axis=1).mean())
    grown, loss = noisy.clone().requires_grad_(), torch.tensor([0.01, 0.02], requires_grad=True)
    for metric in (dip.mse, dip.psnr, dip.ssim):
        assert metric(photograph, grown) == metric(grown, photograph) == metric(photograph, noisy)
    assert torch.equal(dip.luma(grown), dip.luma(noisy))
    assert np.array_equal(dip.radial_power(grown)[1], dip.radial_power(noisy)[1])
    assert np.allclose(dip.share_explained(grown, loss), dip.share_explained(noisy, np.array([0.01, 0.02])))
    assert dip.steps_to_reach(loss, 0.015) == 1


def test_border_is_left_out(photograph):
    image = photograph.clone()
    image[:, :4] = 1 - image[:, :4]
    assert dip.psnr(photograph, image) < 30
    assert dip.psnr(photograph, image, border=4) == math.inf


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_mean_over_channels_of_scikit_image(photograph, noisy, channels):
    options = dict(data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    pairs = zip(photograph[:channels].numpy(), noisy[:channels].numpy(), strict=True)
    expected = np.mean([structural_similarity(a, b, **options) for a, b in pairs])
    assert dip.ssim(photograph[:channels], noisy[:channels]) == pytest.approx(expected, abs=1e-6)
    assert dip.ssim(photograph, photograph) == pytest.approx(1)


def test_luma_of_the_primaries():
    # ITU-R BT.601, studio range.
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).float().T[:, :, None]
    expected = torch.tensor([16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966]) / 255
    assert torch.allclose(dip.luma(colours).flatten(), expected, atol=1e-6)


def test_share_explained_at_its_two_ends(photograph):
    mean_colour = photograph.mean(dim=(1, 2), keepdim=True).expand_as(photograph)
    assert dip.share_explained(photograph, dip.mse(photograph, mean_colour)) == pytest.approx(0, abs=1e-6)
    assert dip.share_explained(photograph, 0.0) == 1
    assert dip.share_explained(photograph, np.array([0.0, 0.0])).tolist() == [1, 1]


def test_steps_to_reach():
    assert dip.steps_to_reach([0.0, 0.2, 0.6, 0.4, 0.9], 0.5) == 2
    assert dip.steps_to_reach([0.0, 0.2], 0.5) is None


def test_white_noise_has_its_variance_at_every_frequency():
    noise = torch.randn(3, 256, 192, generator=torch.Generator().manual_seed(0)) * 0.2
    frequency, power = dip.radial_power(noise, bands=8)
    assert np.allclose(frequency, (np.arange(8) + 0.5) / 16)
    assert np.allclose(power, 0.04, rtol=0.08)


@pytest.mark.parametrize("cycles", [(0, 12), (12, 0), (24, 18)])
def test_a_wave_has_its_power_at_its_frequency(cycles):
    rows, columns = torch.meshgrid(torch.arange(128) / 128, torch.arange(96) / 96, indexing="ij")
    wave = torch.cos(2 * math.pi * (cycles[0] * rows + cycles[1] * columns))[None]
    frequency, power = dip.radial_power(wave, bands=16)
    expected = math.hypot(cycles[0] / 128, cycles[1] / 96)
    assert abs(frequency[power.argmax()] - expected) <= 1 / 64 + 1e-9
    near = np.abs(frequency - expected) <= 1.5 / 32
    assert power[near].sum() > 0.999 * power.sum()


def test_power_ignores_the_mean_colour(photograph):
    _, power = dip.radial_power(photograph, bands=8)
    _, shifted = dip.radial_power(photograph + 1, bands=8)
    assert np.allclose(power, shifted, rtol=1e-3)
