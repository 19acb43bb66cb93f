import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import dip_utils as dip
from dip_utils.baselines import STRENGTHS


def test_gaussian_blur_is_scipys(photograph):
    blurred = dip.denoise(photograph, "Gaussian blur", 0.1, 1.2)
    by_scipy = np.stack([gaussian_filter(plane, 1.2, mode="nearest") for plane in photograph.numpy()])
    assert np.allclose(blurred.numpy(), by_scipy, atol=1e-5)


@pytest.mark.parametrize("method", STRENGTHS)
def test_each_denoiser_removes_noise_from_colour_and_grey(photograph, method):
    for clean in (photograph, dip.luma(photograph)):
        noisy = dip.add_gaussian_noise(clean, 0.1, seed=0)
        strength = dip.tune_denoiser([dip.resize(dip.sample("coffee"), 32, 48)], method, 0.1)
        output = dip.denoise(noisy.clone().requires_grad_(), method, 0.1, strength)
        assert output.shape == clean.shape and output.dtype == torch.float32
        assert dip.psnr(clean, output) > dip.psnr(clean, noisy) + 1


@pytest.mark.parametrize("channels", [2, 4, 31])
def test_each_denoiser_takes_any_number_of_channels(photograph, channels):
    weights = torch.rand(channels, 3, generator=torch.Generator().manual_seed(0))
    clean = torch.einsum("kc,chw->khw", weights / weights.sum(dim=1, keepdim=True), photograph)
    noisy = dip.add_gaussian_noise(clean, 0.1, seed=0)
    strengths = {"Gaussian blur": 0.6, "total variation": 0.1, "non-local means": 0.8, "wavelet": 0.8}
    for method, strength in strengths.items():
        assert dip.psnr(clean, dip.denoise(noisy, method, 0.1, strength)) > dip.psnr(clean, noisy) + 1, method


def test_tuning_takes_the_best_on_the_other_photographs(photograph):
    others = [photograph, photograph.flip(2)]
    noisy = [dip.add_gaussian_noise(image, 0.2, seed=seed) for seed, image in enumerate(others)]
    scores = {
        strength: sum(
            dip.psnr(clean, dip.denoise(image, "total variation", 0.2, strength))
            for clean, image in zip(others, noisy, strict=True)
        )
        for strength in STRENGTHS["total variation"]
    }
    assert dip.tune_denoiser(others, "total variation", 0.2) == max(scores, key=scores.get)


def test_strengths_reach_beyond_the_best_at_the_labs_noise(capsys):
    """No method is held back by the ends of its range, of which there would be a line."""
    photographs = [dip.resize(dip.sample(name), 96, 96) for name in ("chelsea", "rocket")]
    for method, strengths in STRENGTHS.items():
        assert strengths[0] < dip.tune_denoiser(photographs, method, 25 / 255) < strengths[-1], method
    assert capsys.readouterr().out == ""


def test_tuning_says_where_its_strengths_end(photograph, capsys):
    assert dip.tune_denoiser([photograph], "Gaussian blur", 1 / 255) == 0.4
    assert "Gaussian blur: the best strength, 0.4, is an end" in capsys.readouterr().out


def test_pixels_make_one_step_of_adam(photograph):
    """Adam's first step moves every pixel by the learning rate, against the sign of its error."""
    z = torch.full_like(photograph, 0.5)
    run = dip.fit(dip.Pixels(3, 32, 48), z, photograph, steps=1, learning_rate=0.01, input_noise=0, precision="float32")
    error = photograph - z
    clear = error.abs() > 0.01
    assert torch.allclose(run.output[clear], (z + 0.01 * error.sign())[clear], atol=1e-4)


def test_pixels_copy_whatever_they_are_given():
    noise = dip.uniform_noise(3, 32, 48, seed=0)
    z = torch.full_like(noise, 0.5)
    run = dip.fit(dip.Pixels(3, 32, 48), z, noise, steps=300, input_noise=0, precision="float32", keep=(0,))
    assert torch.equal(run.kept[0], z)
    assert run.loss[-1] < 1e-6


def test_pixels_of_a_signal():
    signal = dip.uniform_noise(2, 40, seed=0)
    output = dip.Pixels(2, 40)(signal[None])
    assert torch.equal(output[0], signal) and output.requires_grad


def test_total_variation_of_a_step_edge():
    image = torch.zeros(1, 3, 8, 10)
    image[..., 5:] = 0.5
    assert dip.total_variation(image).item() == pytest.approx(0.5 / 9)
    assert dip.total_variation(torch.full((1, 3, 8, 10), 0.3)).item() == 0
    # One row has no vertical neighbours, one pixel has none.
    assert dip.total_variation(image[..., :1, :]).item() == pytest.approx(0.5 / 9)
    assert dip.total_variation(image[..., :1, :1].requires_grad_()).item() == 0
