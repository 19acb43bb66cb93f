import math

import numpy as np
import pytest
import torch
from PIL import Image

import dip_utils as dip


def test_gaussian_noise_has_the_variance_it_was_asked_for():
    grey = torch.full((3, 200, 200), 0.5)
    noise = dip.add_gaussian_noise(grey, 0.05, seed=1) - grey
    count = noise.numel()
    # Five standard errors of the mean and of the standard deviation.
    assert abs(noise.mean()) < 5 * 0.05 / math.sqrt(count)
    assert abs(noise.std() - 0.05) < 5 * 0.05 / math.sqrt(2 * count)


def test_gaussian_noise_is_white():
    noise = dip.add_gaussian_noise(torch.full((1, 256, 256), 0.5), 0.05, seed=1)[0] - 0.5
    for shifted in (noise.roll(1, 0), noise.roll(1, 1)):
        correlation = (noise * shifted).mean() / noise.var()
        assert abs(correlation) < 5 / 256


def test_a_sigma_in_grey_levels_is_noticed(photograph, capsys):
    for sigma in (0, 25 / 255, 1.0, 3):
        dip.add_gaussian_noise(photograph, sigma, seed=0)
    assert capsys.readouterr().out == ""
    dip.add_gaussian_noise(photograph, 25, seed=0)
    assert "25 / 255" in capsys.readouterr().out


@pytest.mark.parametrize("clip", [True, False])
def test_gaussian_noise_clips_only_where_asked(photograph, clip):
    noisy = dip.add_gaussian_noise(photograph, 1.0, seed=0, clip=clip)
    assert (noisy.min() >= 0 and noisy.max() <= 1) == clip
    assert (noisy.min() < -1) == (not clip)


def test_noise_does_not_depend_on_how_an_image_lies_in_memory(photograph):
    elsewhere = photograph.movedim(0, 2).contiguous().movedim(2, 0)
    noisy = (dip.add_gaussian_noise(image, 0.1, seed=0) for image in (photograph, elsewhere))
    assert torch.equal(*noisy)


def test_no_noise_is_the_same_image(photograph):
    assert torch.equal(dip.add_gaussian_noise(photograph, 0, seed=0), photograph)


def test_uniform_noise_is_uniform():
    noise = dip.uniform_noise(3, 100, 100, seed=0)
    counts = torch.histc(noise, 10, 0, 1)
    # Chi-squared with 9 degrees of freedom: 33.7 is its 99.99 % quantile.
    assert ((counts - 3000) ** 2 / 3000).sum() < 33.7


def test_salt_and_pepper_sets_its_share_of_single_values():
    grey = torch.full((3, 200, 200), 0.5)
    noisy = dip.add_salt_and_pepper(grey, 0.3, seed=0)
    # Five standard errors of a share.
    for value, share in ((0, 0.15), (1, 0.15), (0.5, 0.7)):
        assert abs((noisy == value).float().mean() - share) < 5 * math.sqrt(share * (1 - share) / grey.numel())
    # Channels are hit independently: pixels that are hit in all three are few.
    all_hit = (noisy != 0.5).all(dim=0).float().mean()
    assert abs(all_hit - 0.3**3) < 5 * math.sqrt(0.3**3 / 200**2)
    assert torch.equal(dip.add_salt_and_pepper(grey, 0, seed=0), grey)
    assert set(dip.add_salt_and_pepper(grey, 1, seed=0).unique().tolist()) == {0, 1}


def test_signals_are_corrupted_like_images():
    signal = torch.linspace(0, 1, 4000).reshape(2, 2000)
    noise = dip.add_gaussian_noise(signal, 0.1, seed=0, clip=False) - signal
    assert abs(noise.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * 4000)
    assert torch.equal(dip.shuffle_elements(signal, seed=0).flatten().sort().values, signal.flatten().sort().values)
    assert dip.uniform_noise(2, 2000, seed=0).shape == dip.add_salt_and_pepper(signal, 0.1, seed=0).shape == (2, 2000)


def test_shuffle_of_elements_keeps_the_multiset_of_values_and_mixes_channels(photograph):
    shuffled = dip.shuffle_elements(photograph, seed=0)
    assert torch.equal(shuffled.flatten().sort().values, photograph.flatten().sort().values)
    assert not torch.equal(shuffled[0].flatten().sort().values, photograph[0].flatten().sort().values)


def test_shuffle_of_rows_and_columns_keeps_the_multiset_of_each_channel(photograph):
    shuffled = dip.shuffle_rows_and_columns(photograph, seed=0)
    for before, after in zip(photograph, shuffled, strict=True):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


@pytest.mark.parametrize("shuffle", [dip.shuffle_elements, dip.shuffle_rows_and_columns])
def test_shuffles_destroy_neighbourhoods(shuffle):
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    shuffled = shuffle(ramp, seed=0)
    for dim in (1, 2):
        # Neighbours of independent uniform values differ by 1/3 on average.
        assert abs(shuffled.diff(dim=dim).abs().mean() - 1 / 3) < 0.02


def test_permuted_channels_are_the_channels(photograph):
    permuted = dip.permute_channels(photograph, (2, 0, 1))
    assert torch.equal(permuted[0], photograph[2]) and torch.equal(permuted[1], photograph[0])


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda image, seed: dip.add_gaussian_noise(image, 0.1, seed=seed),
        lambda image, seed: dip.add_salt_and_pepper(image, 0.1, seed=seed),
        lambda image, seed: dip.shuffle_elements(image, seed=seed),
        lambda image, seed: dip.shuffle_rows_and_columns(image, seed=seed),
        lambda image, seed: dip.uniform_noise(*image.shape, seed=seed),
    ],
)
def test_a_seed_decides_everything(photograph, corrupt):
    before = photograph.clone()
    first, again, other = corrupt(photograph, 3), corrupt(photograph, 3), corrupt(photograph, 4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(photograph, before)
    # The output of a network, say, has gradients.
    result = corrupt(photograph.clone().requires_grad_(), 3)
    assert torch.equal(result, first) and not result.requires_grad


def test_jpeg_is_what_pillow_writes_and_reads(photograph, tmp_path):
    dip.save_image(photograph, tmp_path / "whole.png")
    with Image.open(tmp_path / "whole.png") as file:
        file.save(tmp_path / "small.jpg", quality=10)
    assert torch.equal(dip.compress_jpeg(photograph, 10), dip.load_image(tmp_path / "small.jpg"))


def test_jpeg_of_lower_quality_is_farther_from_the_image(photograph):
    qualities = [dip.psnr(photograph, dip.compress_jpeg(photograph, quality)) for quality in (5, 20, 60, 95)]
    assert qualities == sorted(qualities) and qualities[-1] > 30
    grey = dip.luma(photograph).requires_grad_()
    assert dip.compress_jpeg(grey, 50).shape == grey.shape


def test_one_seed_serves_noise_and_input_without_relating_them():
    """White noise must not be predictable from z, in place or nearby; torch draws both from the same numbers."""
    noise = dip.add_gaussian_noise(torch.full((3, 96, 96), 0.5), 0.1, seed=0).sub(0.5).flatten().double().numpy()
    others = {
        "z": dip.random_input(3, 96, 96, seed=0),
        "uniform noise": dip.uniform_noise(3, 96, 96, seed=0),
        "noise on z": torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0)),
    }
    for name, other in others.items():
        values = other.flatten().double().numpy()
        ranks = values.argsort().argsort() / len(values)
        for feature in (values, ranks, np.cos(2 * np.pi * ranks), np.sin(2 * np.pi * ranks)):
            for target in (noise, np.abs(noise)):
                for shift in range(-16, 17):
                    related = np.corrcoef(np.roll(feature, shift), target)[0, 1]
                    assert abs(related) < 6 / len(values) ** 0.5, (name, shift)
