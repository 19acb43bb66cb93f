import contextlib
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

import dip_utils as dip

ROOT = Path(__file__).resolve().parent.parent
RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)


def write(path, mode, size=(64, 40), **options):
    """A file whose pixels we know."""
    rng = np.random.default_rng(0)
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path, **options) if bands != 2 else Image.fromarray(pixels).save(path)
    return pixels


def write_png16(path, pixels, transparent=None):
    """A PNG of 16 bits after the format's specification, since Pillow writes none in colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    colour = {2: 0, 3: 2}[pixels.ndim]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour, 0, 0, 0))]
    if transparent is not None:
        chunks.append(chunk(b"tRNS", struct.pack(">H", transparent)))
    chunks += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def load(path, **options):
    """As (H, W, C) in NumPy."""
    return dip.load_image(path, **options).movedim(0, 2).numpy()


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_plain_files_come_back_to_the_bit(tmp_path, mode, channels, capsys):
    pixels = write(tmp_path / "a.png", mode)
    image = dip.load_image(tmp_path / "a.png")
    assert image.shape == (channels, 40, 64) and image.dtype == torch.float32 and image.is_contiguous()
    assert np.array_equal((image.movedim(0, 2) * 255).round().byte().numpy(), pixels)
    assert capsys.readouterr().out == ""


def test_saved_images_come_back(tmp_path, photograph):
    # A network's output has gradients, and a downsampled white one ends beyond 1 by rounding.
    for image in (photograph, photograph[:1], photograph.clone().requires_grad_(), torch.full((3, 8, 8), 1.0000001)):
        dip.save_image(image, tmp_path / "a.png")
        assert (dip.load_image(tmp_path / "a.png") - image).abs().max() <= 0.5 / 255 + 1e-6


def test_the_home_folder_is_known_by_its_short_name(tmp_path, photograph, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    dip.save_image(photograph, "~/mine.png")
    assert (tmp_path / "mine.png").is_file()
    assert torch.equal(dip.load_image("~/mine.png"), dip.load_image(tmp_path / "mine.png"))


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "bmp", "jpg", "JPEG"])
def test_a_saved_photograph_keeps_its_pixels_and_as_a_jpeg_nearly(tmp_path, ending):
    clean = dip.crop(dip.sample("coffee"), 256, 256)
    dip.save_image(clean, tmp_path / f"a.{ending}")
    with Image.open(tmp_path / f"a.{ending}") as file:
        error = np.square(np.asarray(file) / 255 - clean.movedim(0, 2).numpy()).mean()
    # What quality 75 and halved colours leave is 33 dB.
    assert error < (10**-4 if ending in ("jpg", "JPEG") else 1e-12)


@pytest.mark.parametrize("channels", [2, 4, 31])
def test_other_channels_than_grey_and_rgb_are_saved_as_their_mean(tmp_path, capsys, channels):
    image = dip.uniform_noise(channels, 8, 8, seed=0)
    dip.save_image(image, tmp_path / "a.png")
    assert capsys.readouterr().out == f"a.png: the mean of {channels} channels, in grey\n"
    assert np.abs(load(tmp_path / "a.png") - image.numpy().mean(axis=0)[..., None]).max() <= 0.5 / 255 + 1e-6


def test_transparency_is_laid_over_white(tmp_path, capsys):
    pixels = write(tmp_path / "a.png", "RGBA").astype(float)
    alpha = pixels[..., 3:] / 255
    expected = (alpha * pixels[..., :3] + (1 - alpha) * 255) / 255
    assert np.allclose(load(tmp_path / "a.png"), expected, atol=1e-6)
    assert capsys.readouterr().out == "a.png: transparency laid over white\n"


def test_transparency_of_grey_gives_three_channels(tmp_path, capsys):
    pixels = write(tmp_path / "8.png", "LA").astype(float) / 255
    expected = pixels[..., 1:] * pixels[..., :1] + 1 - pixels[..., 1:]
    assert np.allclose(load(tmp_path / "8.png"), np.repeat(expected, 3, axis=2), atol=1e-6)
    write_png16(tmp_path / "16.png", RAMP // 2, transparent=0)
    expected = np.where(RAMP // 2 == 0, 1, RAMP // 2 / 65535)
    assert np.allclose(load(tmp_path / "16.png"), np.stack([expected] * 3, axis=2), atol=1e-6)
    assert capsys.readouterr().out.count("transparency laid over white") == 2


def test_palette(tmp_path):
    picture = Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).convert("RGB").quantize(16)
    picture.save(tmp_path / "a.png")
    assert np.allclose(load(tmp_path / "a.png"), np.asarray(picture.convert("RGB")) / 255, atol=1e-6)


def test_transparency_of_black_and_white(tmp_path, capsys):
    Image.new("1", (64, 64), 0).save(tmp_path / "a.png", transparency=0)
    assert load(tmp_path / "a.png").shape == (64, 64, 3) and load(tmp_path / "a.png").min() == 1
    assert "transparency laid over white" in capsys.readouterr().out
    Image.new("1", (64, 64), 1).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").shape == (64, 64, 1) and load(tmp_path / "a.png").min() == 1


DEEP = {
    "grey.png": lambda path: write_png16(path, RAMP),
    "grey.tif": lambda path: Image.fromarray(RAMP).save(path),
    "packed.tif": lambda path: Image.fromarray(RAMP).save(path, compression="tiff_lzw"),
    "big-endian.tif": lambda path: tifffile.imwrite(path, RAMP, byteorder=">"),
    "white-is-zero.tif": lambda path: tifffile.imwrite(path, 65535 - RAMP, photometric="miniswhite"),
    "float.tif": lambda path: tifffile.imwrite(path, (RAMP / 65535).astype(np.float32)),
    "double.tif": lambda path: tifffile.imwrite(path, RAMP / 65535),
    "32.tif": lambda path: tifffile.imwrite(path, RAMP.astype(np.uint32) * 65537),
    "colour.tif": lambda path: tifffile.imwrite(path, COLOUR, photometric="rgb"),
    "deflated.tif": lambda path: tifffile.imwrite(path, COLOUR, photometric="rgb", compression="zlib", predictor=True),
    "planes.tif": lambda path: tifffile.imwrite(path, COLOUR.transpose(2, 0, 1), photometric="rgb"),
    "colour-float.tif": lambda path: tifffile.imwrite(path, COLOUR / 65535, photometric="rgb"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_not_lost(tmp_path, capsys, name):
    DEEP[name](tmp_path / name)
    image = load(tmp_path / name)
    assert np.allclose(image, (RAMP[..., None] if image.shape[2] == 1 else COLOUR) / 65535, atol=1e-6)
    assert capsys.readouterr().out == ""


def test_lost_bits_are_named(tmp_path, capsys):
    write_png16(tmp_path / "a.png", COLOUR)
    assert np.abs(load(tmp_path / "a.png") - COLOUR / 65535).max() < 1 / 255
    assert capsys.readouterr().out == "a.png: read in 8 of its 16 bits\n"


@pytest.mark.parametrize(("white", "line"), [(255, ""), (1023, "a.ppm: read in 8 of its 10 bits\n")])
def test_lost_bits_of_a_ppm_are_named(tmp_path, capsys, white, line):
    """After the format's specification: big-endian, of two bytes where the white is above 255."""
    values = np.linspace(0, white, 12).round().reshape(2, 2, 3)
    kind = ">u2" if white > 255 else "u1"
    (tmp_path / "a.ppm").write_bytes(b"P6 2 2 %d\n" % white + values.astype(kind).tobytes())
    assert np.abs(load(tmp_path / "a.ppm") - values / white).max() < 1 / 255
    assert capsys.readouterr().out == line


def test_the_picture_of_a_twelve_bit_camera(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "a.tif", RAMP >> 4)
    assert load(tmp_path / "a.tif").max() == pytest.approx(4095 / 65535)
    assert "4095 of 65535" in (said := capsys.readouterr().out) and "white=4095" in said
    assert np.allclose(load(tmp_path / "a.tif", white=4095)[..., 0], (RAMP >> 4) / 4095, atol=1e-6)
    assert capsys.readouterr().out == ""


def test_floats_of_another_white(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (RAMP / 257).astype(np.float32))
    assert np.allclose(load(tmp_path / "a.tif", white=255)[..., 0], RAMP / 65535, atol=1e-6)


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_exif_rotation_is_applied(tmp_path, capsys, ending):
    pixels = np.zeros((40, 64, 3), dtype=np.uint8)
    pixels[:8] = 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / f"a.{ending}", exif=exif)
    image = load(tmp_path / f"a.{ending}")
    assert image.shape == (64, 40, 3)
    assert (image[:, -8:] == 1).all() and (image[:, :-8] == 0).all()
    assert capsys.readouterr().out == f"a.{ending}: turned as its EXIF says\n"


def test_cmyk(tmp_path, capsys):
    """Magenta and yellow ink make red."""
    Image.new("CMYK", (64, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    image = dip.load_image(tmp_path / "a.jpg")
    assert image.shape == (3, 40, 64) and torch.allclose(image, torch.tensor([1.0, 0, 0])[:, None, None], atol=0.1)
    assert "converted from CMYK to RGB" in capsys.readouterr().out


def profile(primaries, gamma):
    """A colour profile after the ICC's specification, of three primaries in XYZ and one gamma."""

    def fixed(*values):
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 5) + b"wide\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249),
    }
    for letter, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*primary)
        tags[bytes([letter]) + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]
WIDE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]


def test_colours_of_a_wide_gamut_are_converted_to_srgb(tmp_path, capsys, photograph):
    """The stored values by hand: linear light, from one set of primaries to the other, the other's gamma."""
    linear = np.where(photograph <= 0.04045, photograph / 12.92, ((photograph + 0.055) / 1.055) ** 2.4)
    in_wide = np.linalg.solve(np.array(WIDE).T, np.array(SRGB).T @ linear.reshape(3, -1)).clip(0, 1)
    stored = (in_wide.reshape(3, 32, 48) ** (1 / 2.2) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(stored).save(tmp_path / "a.png", icc_profile=profile(WIDE, 2.2))
    image = dip.load_image(tmp_path / "a.png")
    assert (
        dip.psnr(photograph, image) > 45 > 35 > dip.psnr(photograph, torch.tensor(stored / 255).float().movedim(2, 0))
    )
    assert capsys.readouterr().out == "a.png: colours converted to sRGB\n"


def test_an_srgb_profile_changes_nothing_and_a_linear_one_does(tmp_path, capsys):
    for name, icc in (
        ("srgb.png", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        ("linear.png", profile(SRGB, 1)),
    ):
        pixels = write(tmp_path / name, "RGB", icc_profile=icc) / 255
        expected = pixels if name == "srgb.png" else 1.055 * pixels.clip(0.0031308) ** (1 / 2.4) - 0.055
        assert np.allclose(load(tmp_path / name)[pixels > 0.01], expected[pixels > 0.01], atol=2 / 255)
    assert capsys.readouterr().out == "linear.png: colours converted to sRGB\n"


def test_a_broken_profile_is_ignored_in_words(tmp_path, capsys):
    pixels = write(tmp_path / "a.png", "RGB", icc_profile=b"nonsense")
    assert np.allclose(load(tmp_path / "a.png"), pixels / 255, atol=1e-6)
    assert capsys.readouterr().out == "a.png: its colour profile ignored\n"


def test_sixteen_bits_and_a_profile(tmp_path, capsys):
    for name, icc in (("wide.tif", profile(WIDE, 2.2)), ("srgb.tif", profile(SRGB, 2.2))):
        tifffile.imwrite(tmp_path / name, COLOUR, photometric="rgb", iccprofile=icc)
    assert len(np.unique(load(tmp_path / "wide.tif"))) <= 256
    assert capsys.readouterr().out == "wide.tif: read in 8 of its 16 bits; colours converted to sRGB\n"


def test_first_frame_of_an_animation(tmp_path, capsys):
    frames = [Image.new("L", (64, 64), value) for value in (0, 128, 255)]
    for ending in ("gif", "tif"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
        assert dip.load_image(tmp_path / f"a.{ending}").max() == 0
        assert "first of 3 frames" in capsys.readouterr().out
    tifffile.imwrite(tmp_path / "16.tif", np.stack([RAMP, RAMP.T]), photometric="minisblack")
    assert np.allclose(load(tmp_path / "16.tif")[..., 0], RAMP / 65535, atol=1e-6)
    assert capsys.readouterr().out == "16.tif: first of 2 frames\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1251", "utf-8"])
def test_the_line_fits_every_terminal(tmp_path, encoding):
    write(tmp_path / "写真.png", "RGB", size=(70, 101))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(terminal):
        dip.load_image(tmp_path / "写真.png", longest=50)
    terminal.flush()
    assert b": shrunk from 101 x 70 to 50 x 35" in terminal.buffer.getvalue()


def test_a_small_jpeg_is_no_smaller_than_asked_for(tmp_path):
    # 32 pixels are fewer than decoding at an eighth leaves.
    Image.new("RGB", (900, 500)).save(tmp_path / "a.jpg")
    assert dip.load_image(tmp_path / "a.jpg", longest=32).shape == (3, 18, 32)
    # Of a thin picture something is left.
    Image.new("RGB", (2000, 3)).save(tmp_path / "thin.png")
    assert dip.load_image(tmp_path / "thin.png", longest=100).shape == (3, 1, 100)


def test_longest_side_shrinks(tmp_path, capsys):
    write(tmp_path / "a.png", "RGB", size=(640, 320))
    image = dip.load_image(tmp_path / "a.png", longest=128)
    assert image.shape == (3, 64, 128)
    assert "shrunk from 320 x 640 to 64 x 128" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as file:
        expected = np.asarray(file.resize((128, 64), Image.Resampling.LANCZOS)) / 255
    assert np.abs(image.movedim(0, 2).numpy() - expected).max() < 2 / 255


@pytest.mark.parametrize(
    ("width", "longest", "shape"), [(451, 128, (85, 128)), (449, 128, (86, 128)), (300, 75, (75, 75))]
)
def test_shrunk_sides_are_in_proportion(tmp_path, width, longest, shape):
    """Shapes by hand: 300 × 451 is 85.1 × 128, 300 × 449 is 85.52 × 128."""
    write(tmp_path / "a.png", "RGB", size=(width, 300))
    assert dip.load_image(tmp_path / "a.png", longest=longest).shape == (3, *shape)


def test_a_jpeg_above_the_limit_is_read_small_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    for size in ((160, 160), (512, 512)):  # above the limit, and above that at which Pillow itself refuses
        Image.new("RGB", size, "teal").save(tmp_path / "a.jpg")
        assert dip.load_image(tmp_path / "a.jpg", longest=64).shape == (3, 64, 64)
        Image.new("RGB", size, "teal").save(tmp_path / "a.png")
        tifffile.imwrite(tmp_path / "a.tif", np.zeros(size, np.uint16))
        for name, longest in (("a.jpg", None), ("a.png", 64), ("a.tif", 64)):
            with pytest.raises(ValueError, match="too large to open safely"):
                dip.load_image(tmp_path / name, longest=longest)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "16.tif"])
def test_a_file_cut_short_is_refused_in_words(tmp_path, photograph, name):
    if name == "16.tif":
        tifffile.imwrite(tmp_path / name, COLOUR, photometric="rgb")
    else:
        Image.fromarray((photograph * 255).byte().movedim(0, 2).numpy()).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in range(0, len(whole) * 9 // 10, len(whole) // 20):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"path: got .*{name}', "):
            dip.load_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("astronaut", (3, 512, 512)),
        ("chelsea", (3, 300, 451)),
        ("coffee", (3, 400, 600)),
        ("rocket", (3, 427, 640)),
        ("retina", (3, 1411, 1411)),
        ("grass", (1, 512, 512)),
    ],
)
def test_photographs_of_scikit_image(name, shape):
    image = dip.sample(name)
    assert image.shape == shape and image.is_contiguous() and image.min() == 0 and image.max() > 0.9
    file = ROOT / "images" / f"{name}.png"
    if file.exists():
        assert torch.equal(image, dip.load_image(file))


def test_crop(photograph):
    assert torch.equal(dip.crop(photograph, 8, 10, top=3, left=5), photograph[:, 3:11, 5:15])
    assert torch.equal(dip.crop(photograph, 8, 10), photograph[:, 12:20, 19:29])
    assert not dip.crop(photograph.clone().requires_grad_(), 8, 10).requires_grad


@pytest.mark.slow
def test_the_readmes_example_runs(tmp_path, monkeypatch):
    """As it stands there, on fewer pixels and in fewer steps."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    for old, new in (("256, 256", "40, 48"), ("steps=3000", "steps=150")):
        assert old in code
        code = code.replace(old, new)
    clean = dip.crop(dip.sample("chelsea"), 60, 60)
    dip.save_image(dip.add_gaussian_noise(clean, 25 / 255, seed=0), tmp_path / "noisy.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    result, clean = dip.load_image("denoised.png"), dip.crop(clean, 40, 48)
    assert dip.psnr(clean, result) > dip.psnr(clean, dip.crop(dip.load_image("noisy.png"), 40, 48))
