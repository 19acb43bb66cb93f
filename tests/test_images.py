import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dip_utils as dip
from dip_utils import images

ROOT = Path(__file__).resolve().parent.parent


def write(path, mode, size=(64, 40), **options):
    """A file whose pixels we know."""
    rng = np.random.default_rng(0)
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path, **options) if bands != 2 else Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_plain_files_come_back_to_the_bit(tmp_path, mode, channels):
    pixels = write(tmp_path / "a.png", mode)
    image = dip.load_image(tmp_path / "a.png", multiple=1)
    assert image.shape == (channels, 40, 64) and image.dtype == torch.float32 and image.is_contiguous()
    assert np.array_equal((image.movedim(0, 2) * 255).round().byte().numpy(), pixels)


def test_saved_images_come_back(tmp_path, photograph):
    for image in (photograph, photograph[:1]):
        dip.save_image(image, tmp_path / "a.png")
        assert (dip.load_image(tmp_path / "a.png", multiple=1) - image).abs().max() <= 0.5 / 255 + 1e-6


def test_transparency_is_laid_over_white(tmp_path, capsys):
    pixels = write(tmp_path / "a.png", "RGBA").astype(float)
    image = dip.load_image(tmp_path / "a.png", multiple=1)
    alpha = pixels[..., 3:] / 255
    expected = (alpha * pixels[..., :3] + (1 - alpha) * 255) / 255
    assert np.abs(image.movedim(0, 2).numpy() - expected).max() < 1.5 / 255
    assert capsys.readouterr().out == "a.png: transparency laid over white\n"


def test_palette(tmp_path):
    picture = Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).convert("RGB").quantize(16)
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.convert("RGB")) / 255
    assert np.allclose(dip.load_image(tmp_path / "a.png").movedim(0, 2), expected, atol=1e-6)


def test_sixteen_bits_are_not_lost(tmp_path):
    pixels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.allclose(dip.load_image(tmp_path / "a.png")[0], pixels / 65535, atol=1e-6)


def test_exif_rotation_is_applied(tmp_path, capsys):
    pixels = np.zeros((40, 64, 3), dtype=np.uint8)
    pixels[:10] = 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    image = dip.load_image(tmp_path / "a.png", multiple=1)
    assert image.shape == (3, 64, 40)
    assert (image[..., -10:] == 1).all() and (image[..., :-10] == 0).all()
    assert "turned as its EXIF says" in capsys.readouterr().out


def test_cmyk(tmp_path, capsys):
    write(tmp_path / "a.jpg", "CMYK")
    assert dip.load_image(tmp_path / "a.jpg", multiple=1).shape == (3, 40, 64)
    assert "converted from CMYK to RGB" in capsys.readouterr().out


def test_first_frame_of_an_animation(tmp_path, capsys):
    frames = [Image.new("L", (64, 64), value) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert dip.load_image(tmp_path / "a.gif").max() == 0
    assert "first of 3 frames" in capsys.readouterr().out


def test_sides_are_cropped_to_multiples_about_the_centre(tmp_path, capsys):
    pixels = write(tmp_path / "a.png", "RGB", size=(70, 101))
    image = dip.load_image(tmp_path / "a.png")
    assert image.shape == (3, 96, 64)
    assert np.allclose(image.movedim(0, 2), pixels[2:98, 3:67] / 255, atol=1e-6)
    assert capsys.readouterr().out == "a.png: cropped from 101 × 70 to 96 × 64, multiples of 32\n"


def test_a_panorama_is_shrunk_less_so_that_the_networks_can_take_it(tmp_path):
    write(tmp_path / "a.png", "RGB", size=(2000, 500))
    image = dip.load_image(tmp_path / "a.png", longest=128)
    assert image.shape == (3, 64, 256)
    run = dip.fit(dip.SkipNetwork(3, (4,) * 5, (0,) * 5, seed=0), dip.random_input(3, 64, 256, seed=0), image, steps=1)
    assert run.steps == 1


def test_longest_side_shrinks(tmp_path, capsys):
    write(tmp_path / "a.png", "RGB", size=(640, 320))
    assert dip.load_image(tmp_path / "a.png", longest=128).shape == (3, 64, 128)
    assert "shrunk from 320 × 640 to 64 × 128" in capsys.readouterr().out


def test_eight_megapixels_are_handled_with_a_cap(tmp_path):
    Image.new("RGB", (3264, 2448), "teal").save(tmp_path / "a.jpg")
    assert dip.load_image(tmp_path / "a.jpg", longest=256).shape == (3, 192, 256)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("astronaut", (512, 512)), ("chelsea", (300, 451)), ("coffee", (400, 600)), ("rocket", (427, 640))],
)
def test_bundled_photographs_are_those_of_scikit_image(name, shape):
    from skimage import data

    image = dip.sample(name)
    assert image.shape == (3, *shape)
    assert np.array_equal((image.movedim(0, 2) * 255).round().byte().numpy(), getattr(data, name)())


def test_crop(photograph):
    assert torch.equal(dip.crop(photograph, 8, 10, top=3, left=5), photograph[:, 3:11, 5:15])
    assert torch.equal(dip.crop(photograph, 8, 10), photograph[:, 12:20, 19:29])


def test_an_installed_package_takes_the_photographs_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert project["package-dir"] == {"dip_utils.photographs": "images"}
    assert {*images.SAMPLES.values(), "README.md"} == {*project["package-data"]["dip_utils.photographs"]}
    assert images.FOLDERS[1] == ROOT / "dip_utils" / "photographs"


def test_samples_of_an_installed_package(tmp_path, monkeypatch):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    shutil.copy(ROOT / "images" / "coffee.png", photographs)
    monkeypatch.setattr(images, "FOLDERS", (tmp_path / "images", photographs))
    assert torch.equal(dip.sample("coffee"), dip.load_image(ROOT / "images" / "coffee.png", multiple=1))
