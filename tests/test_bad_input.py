"""Bad input gets an error that names the argument, what it got and what it wants, before any work."""

import math

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dip_utils as dip

from .conftest import build

IMAGE = torch.linspace(0, 1, 3 * 32 * 48).reshape(3, 32, 48)
Z = torch.linspace(0, 0.1, 2 * 32 * 48).reshape(2, 32, 48)
TRACE = torch.zeros(5, 2)
NAN = IMAGE.clone()
NAN[0, 0, 0] = math.nan


class Detached(torch.nn.Module):
    """A network that a fit cannot train."""

    def __init__(self):
        super().__init__()
        self.inner = build()

    def forward(self, x):
        return self.inner(x).detach()


def spoilt():
    """A network that a divergence has left with a weight of NaN."""
    network = build()
    torch.nn.init.constant_(network.head.weight, math.nan)
    return network


def fit(network=None, z=Z, target=IMAGE, **options):
    return dip.fit(build() if network is None else network, z, target, **({"steps": 2} | options))


CASES = {
    # name: (call, error, words that the message must contain)
    "rank 2": (lambda: fit(target=IMAGE[0]), ValueError, ["target", "(32, 48)", "wants (3, 32, 48)", "network makes"]),
    "rank 4": (lambda: fit(target=IMAGE[None]), ValueError, ["target", "(1, 3, 32, 48)", "(channels, height, width)"]),
    "rank 1": (lambda: fit(target=IMAGE[0, 0]), ValueError, ["target", "(48,)", "(channels, height, width)"]),
    "signal for a network of images": (lambda: fit(z=Z[0]), ValueError, ["z", "(1, 32, 48)", "(1, 2, height, width)"]),
    "target in 0 to 255": (lambda: fit(target=IMAGE * 255), ValueError, ["target", "0 to 255", "[0, 1]", "divide"]),
    "target far below 0": (lambda: fit(target=IMAGE - 1000), ValueError, ["target", "-1000 to -999", "[0, 1]"]),
    "complex target": (lambda: fit(target=IMAGE + 1j), TypeError, ["target", "complex64", "magnitude"]),
    "array for a tensor": (lambda: fit(target=IMAGE.numpy()), TypeError, ["target", "ndarray", "float32 tensor"]),
    "integer image": (lambda: fit(target=(IMAGE * 255).byte()), TypeError, ["target", "uint8", "float32", "divide"]),
    "double image": (lambda: fit(target=IMAGE.double()), TypeError, ["target", "float64", "float32"]),
    "NaN target": (lambda: fit(target=NAN), ValueError, ["target", "NaN", "finite"]),
    "infinite target": (lambda: fit(target=IMAGE / 0), ValueError, ["target", "infinite"]),
    "NaN input": (lambda: fit(z=Z * math.nan), ValueError, ["z", "NaN"]),
    "two channels": (lambda: fit(target=IMAGE[:2]), ValueError, ["target", "(2, 32, 48)", "(3, 32, 48)"]),
    "target of another size": (lambda: fit(target=IMAGE[:, :31]), ValueError, ["target", "(3, 31, 48)", "network"]),
    "input of another size": (lambda: fit(z=Z[:, :, :40]), ValueError, ["target", "(3, 32, 40)"]),
    "input of another depth": (lambda: fit(z=Z[:1]), ValueError, ["z", "1 channels", "wants 2"]),
    "too small for the scales": (
        lambda: fit(z=Z[:, :4], target=IMAGE[:, :4]),
        ValueError,
        ["z", "4 × 48", "at least 5"],
    ),
    "reference of another size": (lambda: fit(reference=IMAGE[:, 1:]), ValueError, ["reference", "(3, 31, 48)"]),
    "NaN reference": (lambda: fit(reference=NAN), ValueError, ["reference", "NaN"]),
    "operator by a class": (lambda: fit(operator=dip.LanczosDownsampler), TypeError, ["operator", "class Lanczos"]),
    "loss by a class": (lambda: fit(loss=torch.nn.L1Loss), TypeError, ["loss", "the class L1Loss", "an instance"]),
    "operator that overwrites": (
        lambda: fit(operator=lambda x: torch.sigmoid(x).mul_(Z[:1] + 0 * IMAGE)),
        ValueError,
        ["operator", "1 × 3 × 32 × 48", "inplace"],
    ),
    "operator of NaN": (
        lambda: fit(operator=lambda x: x * math.nan),
        ValueError,
        ["loss", "nan", "operator", "finite"],
    ),
    "loss without end": (
        lambda: fit(loss=lambda made, target: ((made - target) / 0).square().mean()),
        ValueError,
        ["loss", "inf", "finite"],
    ),
    "regularizer of NaN": (lambda: fit(regularizer=lambda x: x.mean() * math.nan), ValueError, ["regularizer", "nan"]),
    "regularizer without end": (
        lambda: fit(regularizer=lambda x: x.mean() + math.inf),
        ValueError,
        ["regularizer", "got inf", "finite"],
    ),
    "regularizer with a gradient without end": (
        lambda: fit(regularizer=lambda x: (x - x).sqrt().mean(), precision="float32"),
        ValueError,
        ["regularizer", "got 0", "gradient", "finite"],
    ),
    "network of NaN": (lambda: fit(network=spoilt(), precision="float32"), ValueError, ["network", "NaN", "finite"]),
    "network without a gradient": (lambda: fit(network=Detached()), TypeError, ["network", "no gradient"]),
    "lazy network": (lambda: fit(network=torch.nn.LazyConv2d(3, 1)), ValueError, ["network", "lazy", "called once"]),
    "complex network": (
        lambda: fit(network=torch.nn.utils.skip_init(torch.nn.Conv2d, 2, 3, 1, dtype=torch.complex64)),
        TypeError,
        ["network", "complex", "real"],
    ),
    "picture for pictures": (lambda: dip.show_images(IMAGE), TypeError, ["images", "Tensor", "dict"]),
    "pictures in a list": (lambda: dip.compare([IMAGE], (0, 0, 1, 1)), TypeError, ["images", "list", "dict"]),
    "strip of a run": (lambda: dip.film_strip(fit(), [0]), TypeError, ["runs", "Fit", "dict"]),
    "slider of a list": (lambda: dip.browse([fit()]), TypeError, ["runs", "list", "dict"]),
    "spectra of a run": (lambda: dip.plot_spectra(fit(), [0]), TypeError, ["runs", "Fit", "dict"]),
    "kernel of a factor": (lambda: dip.plot_kernel(4), TypeError, ["downsampler", "got 4", "LanczosDownsampler"]),
    "precision for a device that is none": (
        lambda: dip.choose_precision("auto", "gpu"),
        ValueError,
        ["device", "gpu", "'cuda'"],
    ),
    "curves without a panel": (
        lambda: dip.plot_curves({"a": fit().loss}, ylabel="loss"),
        TypeError,
        ["panels", "ndarray", "dict"],
    ),
    "tuning on one picture": (
        lambda: dip.tune_denoiser(IMAGE, "wavelet", 0.1),
        TypeError,
        ["photographs", "Tensor", "list of images", "(3, 32, 48)"],
    ),
    "tuning on a number": (lambda: dip.tune_denoiser(5, "wavelet", 0.1), TypeError, ["photographs", "5", "images"]),
    "network of one width": (lambda: dip.SkipNetwork(3, 128, 4, seed=0), TypeError, ["channels", "128", "each scale"]),
    "network of no skips": (
        lambda: dip.SkipNetwork(3, (8, 8), None, seed=0),
        TypeError,
        ["skip_channels", "None", "each scale"],
    ),
    "steps of no curve": (lambda: dip.steps_to_reach(fit().psnr, 20), TypeError, ["curve", "None", "each step"]),
    "share of no curve": (lambda: dip.share_explained(IMAGE, None), TypeError, ["loss", "None", "each step"]),
    "choice of no curve": (lambda: dip.choose_step(fit().held_out), TypeError, ["curve", "None", "each step"]),
    "operator without a call": (lambda: fit(operator=4), TypeError, ["operator", "int", "function"]),
    "operator of another shape": (
        lambda: fit(operator=dip.LanczosDownsampler(4)),
        ValueError,
        ["target", "(3, 32, 48)", "(3, 8, 12)", "operator"],
    ),
    "operator that does not divide": (
        lambda: fit(operator=dip.LanczosDownsampler(5)),
        ValueError,
        ["32 × 48", "multiples", "5"],
    ),
    "no network": (lambda: fit(network="skip"), TypeError, ["network", "str", "SkipNetwork"]),
    "no steps": (lambda: fit(steps=0), ValueError, ["steps", "0", "at least 1"]),
    "negative steps": (lambda: fit(steps=-5), ValueError, ["steps", "-5"]),
    "half a step": (lambda: fit(steps=2.5), TypeError, ["steps", "2.5", "integer"]),
    "true steps": (lambda: fit(steps=True), TypeError, ["steps", "True", "integer"]),
    "no learning rate": (lambda: fit(learning_rate=0), ValueError, ["learning_rate", "0", "above 0"]),
    "NaN learning rate": (lambda: fit(learning_rate=math.nan), ValueError, ["learning_rate", "nan", "finite"]),
    "learning rate in words": (lambda: fit(learning_rate="fast"), TypeError, ["learning_rate", "'fast'", "number"]),
    "negative input noise": (lambda: fit(input_noise=-1), ValueError, ["input_noise", "-1", "at least 0"]),
    "kept step beyond the end": (lambda: fit(keep=[0, 3]), ValueError, ["keep", "3", "from 0 to 2"]),
    "negative kept step": (lambda: fit(keep=[-1]), ValueError, ["keep", "-1"]),
    "kept step in words": (lambda: fit(keep=["last"]), TypeError, ["keep", "'last'", "integer"]),
    "kept steps as a number": (lambda: fit(keep=5), TypeError, ["keep", "5", "some steps"]),
    "watch that is no function": (lambda: fit(watch=True), TypeError, ["watch", "True", "function"]),
    "start that is no run": (lambda: fit(start=3), TypeError, ["start", "int", "Fit"]),
    "operator without a result": (lambda: fit(operator=lambda x: None), TypeError, ["operator", "NoneType", "tensor"]),
    "slider beside no reference": (
        lambda: dip.browse({"a": fit(keep=[0])}, beside="reference"),
        ValueError,
        ["beside", "reference"],
    ),
    "film strip of no reference": (
        lambda: dip.film_strip({"a": fit(keep=[0])}, [0], last="reference"),
        ValueError,
        ["last", "'reference'"],
    ),
    "crop at half a pixel": (lambda: dip.crop(IMAGE, 8, 8, top=1.5), TypeError, ["top", "1.5", "integer"]),
    "saved as what can only be read": (lambda: dip.save_image(IMAGE, "a.fli"), ValueError, ["path", "a.fli", ".png"]),
    "saved as nothing known": (lambda: dip.save_image(IMAGE, "a.foo"), ValueError, ["path", "a.foo", ".png"]),
    "unknown device": (lambda: fit(device="gpu"), ValueError, ["device", "'gpu'", "'cuda'"]),
    "absent device": (lambda: fit(device="cuda:99"), ValueError, ["device", "cuda:99", "CUDA devices"]),
    "unknown precision": (lambda: fit(precision="double"), ValueError, ["precision", "'double'", "float32, "]),
    "float16 on the CPU": (lambda: fit(precision="float16", device="cpu"), ValueError, ["precision", "float16", "CPU"]),
    "negative seed": (lambda: fit(seed=-1), ValueError, ["seed", "-1"]),
    "seed beyond 63 bits": (lambda: fit(seed=2**63), ValueError, ["seed", "below 2**63"]),
    "start on another target": (
        lambda: fit(start=fit(operator=lambda x: x[:, :, :16], target=IMAGE[:, :16])),
        ValueError,
        ["target", "(3, 16, 48)", "(3, 32, 48)"],
    ),
    "operator without a gradient": (
        lambda: fit(operator=lambda x: x.detach()),
        TypeError,
        ["operator", "no gradient", "differentiable"],
    ),
    "operator of another dtype": (
        lambda: fit(operator=lambda x: x @ torch.eye(48), precision="float64"),
        ValueError,
        ["operator", "fails on a tensor of 1 × 3 × 32 × 48, float64, on cpu", "of that dtype", "nn.Module"],
    ),
    "regularizer of another dtype": (
        lambda: fit(regularizer=lambda x: (x @ torch.eye(48)).mean(), precision="float64"),
        ValueError,
        ["regularizer", "fails on a tensor of 1 × 3 × 32 × 48, float64, on cpu"],
    ),
    "network without scales": (
        lambda: build(channels=(), skip_channels=()),
        ValueError,
        ["skip_channels", "at least one"],
    ),
    "skips for other scales": (
        lambda: build(skip_channels=(4,)),
        ValueError,
        ["skip_channels", "1 numbers", "2 scales"],
    ),
    "a scale of no channels": (lambda: build(channels=(0, 4)), ValueError, ["channels", "0", "at least 1"]),
    "negative skips": (lambda: build(skip_channels=(-1, 4)), ValueError, ["skip_channels", "-1"]),
    "no output": (lambda: build(output_channels=0), ValueError, ["output_channels", "0"]),
    "factor 1": (lambda: dip.LanczosDownsampler(1), ValueError, ["factor", "1", "at least 2"]),
    "factor 2.5": (lambda: dip.LanczosDownsampler(2.5), TypeError, ["factor", "2.5", "integer"]),
    "not a multiple of the factor": (
        lambda: dip.LanczosDownsampler(4)(IMAGE[:, :30]),
        ValueError,
        ["image", "30 × 48", "multiples of the factor, 4"],
    ),
    "downsampled integers": (
        lambda: dip.LanczosDownsampler(4)((IMAGE * 255).byte()),
        TypeError,
        ["image", "uint8", "floating-point"],
    ),
    "downsampled array": (lambda: dip.LanczosDownsampler(4)(IMAGE.numpy()), TypeError, ["image", "ndarray", "tensor"]),
    "negative share": (lambda: dip.add_salt_and_pepper(IMAGE, -0.1, seed=0), ValueError, ["share", "-0.1", "least 0"]),
    "share above 1": (lambda: dip.add_salt_and_pepper(IMAGE, 5, seed=0), ValueError, ["share", "5", "at most 1"]),
    "shuffled rows of a signal": (
        lambda: dip.shuffle_rows_and_columns(IMAGE[:, 0], seed=0),
        ValueError,
        ["image", "(3, 48)", "(channels, height, width)"],
    ),
    "negative sigma": (
        lambda: dip.add_gaussian_noise(IMAGE, -0.1, seed=0),
        ValueError,
        ["sigma", "-0.1", "at least 0"],
    ),
    "NaN sigma": (lambda: dip.add_gaussian_noise(IMAGE, math.nan, seed=0), ValueError, ["sigma", "finite"]),
    "image beyond 1": (
        lambda: dip.add_gaussian_noise(IMAGE * 2, 0.1, seed=0),
        ValueError,
        ["image", "0 to 2", "[0, 1]"],
    ),
    "image in 0 to 255": (lambda: dip.shuffle_elements(IMAGE * 255, seed=0), ValueError, ["image", "255", "[0, 1]"]),
    "complex image": (lambda: dip.mse(IMAGE, IMAGE + 1j), TypeError, ["image", "complex64", "magnitude"]),
    "image beyond 1 by more than rounding": (
        lambda: dip.shuffle_elements(IMAGE * 1.0001, seed=0),
        ValueError,
        ["image", "1.0001", "[0, 1]"],
    ),
    "image for rows": (lambda: dip.shuffle_rows_and_columns(None, seed=0), TypeError, ["image", "NoneType"]),
    "two of the channels": (lambda: dip.permute_channels(IMAGE, (0, 1)), ValueError, ["order", "(0, 1)", "3 channels"]),
    "halves of channels": (
        lambda: dip.permute_channels(IMAGE, (1.9, 0, 2.5)),
        ValueError,
        ["order", "(1.9, 0.0, 2.5)"],
    ),
    "a channel": (lambda: dip.permute_channels(IMAGE, 1), TypeError, ["order", "1", "permutation"]),
    "empty noise": (lambda: dip.uniform_noise(3, 0, 4, seed=0), ValueError, ["size", "0"]),
    "input of no depth": (lambda: dip.random_input(0, 4, 4, seed=0), ValueError, ["channels", "0"]),
    "input of no scale": (lambda: dip.random_input(1, 4, 4, seed=0, scale=0), ValueError, ["scale", "above 0"]),
    "unequal images": (lambda: dip.psnr(IMAGE, IMAGE[:, 1:]), ValueError, ["image", "(3, 31, 48)", "reference"]),
    "unequal images with a border": (
        lambda: dip.psnr(IMAGE, IMAGE[:, 1:], border=4),
        ValueError,
        ["image", "(3, 31, 48)", "(3, 32, 48)"],
    ),
    "border too wide": (lambda: dip.psnr(IMAGE, IMAGE, border=16), ValueError, ["border", "16", "32"]),
    "SSIM of a stamp": (lambda: dip.ssim(IMAGE[:, :8], IMAGE[:, :8]), ValueError, ["reference", "at least 11"]),
    "luma of grey": (lambda: dip.luma(IMAGE[:1]), ValueError, ["image", "1 channels", "wants 3"]),
    "share of one colour": (lambda: dip.share_explained(IMAGE * 0, 0.1), ValueError, ["target", "one colour"]),
    "resized to nothing": (lambda: dip.resize(IMAGE, 0, 4), ValueError, ["height", "0"]),
    "resized by magic": (lambda: dip.resize(IMAGE, 4, 4, "magic"), ValueError, ["method", "'magic'", "bicubic"]),
    "crop beyond the border": (lambda: dip.crop(IMAGE, 8, 8, top=30), ValueError, ["8 × 8", "32 × 48"]),
    "picture for a path": (
        lambda: dip.load_image(Image.new("L", (64, 64))),
        TypeError,
        ["path", "Image", "path of a file"],
    ),
    "no white": (lambda: dip.load_image("a.png", white=0), ValueError, ["white", "0", "above 0"]),
    "image to an unlikely format": (lambda: dip.save_image(IMAGE, "a.gif"), ValueError, ["path", "a.gif", ".png"]),
    "image to nowhere": (lambda: dip.save_image(IMAGE, None), TypeError, ["path", "NoneType"]),
    "run to no folder": (lambda: fit().save("gone/run.pt"), FileNotFoundError, ["path", "gone/run.pt'", "folder"]),
    "input of no size": (lambda: dip.random_input(3, seed=0), TypeError, ["size", "none", "height and width"]),
    "patience of nothing": (lambda: dip.choose_step([1.0], patience=None), TypeError, ["patience", "None", "integer"]),
    "curve of curves": (lambda: dip.choose_step(np.zeros((3, 9))), ValueError, ["curve", "(3, 9)", "each step"]),
    "unknown photograph": (lambda: dip.sample("falcon"), ValueError, ["'falcon'", "astronaut"]),
    "photographs": (lambda: dip.sample(["chelsea"]), ValueError, ["name", "['chelsea']", "astronaut"]),
    "saved out of range": (lambda: dip.save_image(IMAGE * 2, "a.png"), ValueError, ["image", "[0, 1]"]),
    "run saved as text": (lambda: fit().save("run.txt"), ValueError, ["path", "run.txt", ".pt"]),
    "no saved run": (lambda: dip.load_fit("nowhere.pt"), FileNotFoundError, ["path", "nowhere.pt"]),
    "slider over nothing": (lambda: dip.browse({}), ValueError, ["runs", "none"]),
    "slider of five": (lambda: dip.browse(dict.fromkeys(range(5), fit())), ValueError, ["runs", "5", "one to four"]),
    "slider without kept images": (lambda: dip.browse({"a": fit()}), ValueError, ["runs", "keep="]),
    "slider of a run": (lambda: dip.browse(fit()), TypeError, ["runs", "Fit", "dict"]),
    "slider of images": (lambda: dip.browse({"a": IMAGE}), TypeError, ["runs", "Tensor as 'a'", "as fit returns it"]),
    "film strip of nothing": (lambda: dip.film_strip({}, [0]), ValueError, ["runs", "none"]),
    "film strip of a step": (lambda: dip.film_strip({"a": fit()}, 4), TypeError, ["steps", "4", "(0, 100)"]),
    "curves of nothing": (lambda: dip.plot_curves({}, ylabel="loss"), ValueError, ["panels", "none"]),
    "curve of no reference": (
        lambda: dip.plot_curves({"PSNR": {"mine": fit().psnr}}, ylabel="dB"),
        TypeError,
        ["mine", "None", "numbers"],
    ),
    "verdict on a run": (lambda: dip.verdict("It holds.", True, fit()), TypeError, ["runs", "Fit", "list"]),
    "half a column": (lambda: dip.show_images({"a": IMAGE}, columns=2.5), TypeError, ["columns", "2.5", "integer"]),
    "zoom of nothing": (lambda: dip.compare({"a": IMAGE}, None), TypeError, ["zoom", "None", "height and width"]),
    "control of two numbers": (lambda: dip.explore(print, s=(0, 1)), TypeError, ["s", "(0, 1)", "widget"]),
    "live plot of several for one": (
        lambda: dip.LivePlot("a", "b")(fit()),
        ValueError,
        ["watch", "several fits", "track(name)"],
    ),
    "film strip of unkept steps": (lambda: dip.film_strip({"a": fit()}, [1]), ValueError, ["steps", "[1]", "'a'"]),
    "slider beside something": (
        lambda: dip.browse({"a": fit(keep=[0])}, beside="z"),
        ValueError,
        ["beside", "'z'", "target"],
    ),
    "pictures of nothing": (lambda: dip.show_images({}), ValueError, ["images", "none"]),
    "a name for a picture": (lambda: dip.show_images({"mine": "cat"}), TypeError, ["mine", "str", "float32 tensor"]),
    "comparison of two sizes": (
        lambda: dip.compare({"a": IMAGE, "b": IMAGE[:, :16]}, (0, 0, 1, 1)),
        ValueError,
        ["images", "(16, 48)", "one size"],
    ),
    "zoom of no height": (lambda: dip.compare({"a": IMAGE}, (0.1, 0, 0, 0.5)), ValueError, ["zoom", "(0.1, 0, 0"]),
    "table of unlike rows": (lambda: dip.show_table([{"a": 1}, {"b": 2}]), ValueError, ["rows", "['b']", "same"]),
    "panel of no picture": (lambda: dip.OwnImagePanel(fit, "cat", steps=1), TypeError, ["image", "str"]),
    "zoom beyond the image": (lambda: dip.compare({"a": IMAGE}, (0.9, 0, 0.5, 0.5)), ValueError, ["zoom", "0.9"]),
    "stop by a number": (lambda: fit(stop=100), TypeError, ["stop", "100", "HoldOut"]),
    "stop by a class": (lambda: fit(stop=dip.HoldOut), TypeError, ["stop", "HoldOut"]),
    "half a trace": (lambda: fit(trace=0.5), TypeError, ["trace", "0.5", "integer"]),
    "negative trace": (lambda: fit(trace=-1), ValueError, ["trace", "-1", "at least 0"]),
    "regularizer without a gradient": (
        lambda: fit(regularizer=lambda x: x.detach().mean()),
        TypeError,
        ["regularizer", "gradient"],
    ),
    "tuning of nothing": (lambda: dip.tune_denoiser([], "wavelet", 0.1), ValueError, ["photographs", "none"]),
    "tuning of an unknown": (lambda: dip.tune_denoiser([IMAGE], "BM3D", 0.1), ValueError, ["method", "'BM3D'"]),
    "spectra of unkept steps": (lambda: dip.plot_spectra({"a": fit()}, [999]), ValueError, ["steps", "[999]"]),
    "stopping without a reference": (lambda: dip.plot_stopping(fit()), ValueError, ["run", "reference"]),
    "no patience": (lambda: dip.HoldOut(patience=0), ValueError, ["patience", "0", "at least 1"]),
    "window of one": (lambda: dip.windowed_variance(TRACE, window=1), ValueError, ["window", "1", "at least 2"]),
    "hold-out from before the start": (lambda: dip.HoldOut(first=-1), ValueError, ["first", "-1", "at least 0"]),
    "weight of one": (lambda: dip.exponential_variance(TRACE, weight=1.0), ValueError, ["weight", "1.0", "below 1"]),
    "weight of nothing": (lambda: dip.exponential_variance(TRACE, weight=0), ValueError, ["weight", "0", "above 0"]),
    "window of no trace": (lambda: dip.windowed_variance(None), TypeError, ["trace", "NoneType", "fit(..., trace"]),
    "variance of no trace": (lambda: dip.exponential_variance(fit().loss), TypeError, ["trace", "ndarray", "fit(..."]),
    "trace of an image": (lambda: dip.exponential_variance(IMAGE), TypeError, ["trace", "fit(..., trace"]),
    "regularizer without a call": (lambda: fit(regularizer=0.1), TypeError, ["regularizer", "float", "function"]),
    "regularizer of an image": (lambda: fit(regularizer=lambda x: x), TypeError, ["regularizer", "no number"]),
    "pixels of no height": (lambda: dip.Pixels(3, 0, 4), ValueError, ["size", "0"]),
    "pixels of another size": (
        lambda: dip.Pixels(3, 32, 40)(IMAGE[None]),
        ValueError,
        ["z", "(3, 32, 48)", "(3, 32, 40)"],
    ),
    "pixels of another depth": (
        lambda: dip.Pixels(1, 32, 48)(IMAGE[None]),
        ValueError,
        ["z", "(3, 32, 48)", "(1, 32, 48)"],
    ),
    "total variation of integers": (
        lambda: dip.total_variation((IMAGE * 255).byte()),
        TypeError,
        ["image", "uint8", "floating-point"],
    ),
    "total variation of a row": (lambda: dip.total_variation(IMAGE[0, 0]), ValueError, ["image", "(48,)", "height"]),
    "unknown denoiser": (lambda: dip.denoise(IMAGE, "BM3D", 0.1, 1), ValueError, ["method", "'BM3D'", "wavelet"]),
    "denoiser of no noise": (lambda: dip.denoise(IMAGE, "wavelet", 0, 1), ValueError, ["sigma", "0"]),
    "JPEG of quality 100": (lambda: dip.compress_jpeg(IMAGE, 100), ValueError, ["quality", "100", "at most 95"]),
    "JPEG of two channels": (lambda: dip.compress_jpeg(IMAGE[:2], 50), ValueError, ["image", "2 channels", "1 or 3"]),
    "too many bands": (lambda: dip.radial_power(IMAGE, bands=17), ValueError, ["image", "32 × 48", "34"]),
    "small picture of grey levels": (
        lambda: fit(target=IMAGE[:, ::4, ::4] * 255, operator=dip.LanczosDownsampler(4)),
        ValueError,
        ["target", "its white"],
    ),
    "reference of grey levels": (
        lambda: fit(reference=IMAGE * 255),
        ValueError,
        ["reference", "0 to 255", "its white"],
    ),
    "PSNR of grey levels": (lambda: dip.psnr(IMAGE * 255, IMAGE), ValueError, ["reference", "0 to 255", "its white"]),
    "live plot by its class": (lambda: fit(watch=dip.LivePlot), TypeError, ["watch", "LivePlot", "LivePlot()"]),
    "operator that drops the batch": (
        lambda: fit(operator=lambda x: x[0]),
        ValueError,
        ["operator", "(3, 32, 48)", "(1, c, h, w)"],
    ),
    "loss of one argument": (lambda: fit(loss=lambda output: output.mean()), TypeError, ["loss", "1 positional"]),
    "steps of a run": (lambda: dip.steps_to_reach(fit(), 20), TypeError, ["curve", "Fit", "each step"]),
    "choice of a word": (lambda: dip.choose_step("loss"), TypeError, ["curve", "str", "each step"]),
    "booleans for channels": (lambda: dip.permute_channels(IMAGE[:2], (False, True)), ValueError, ["order", "False"]),
    "image to no folder": (lambda: dip.save_image(IMAGE, "gone/a.png"), FileNotFoundError, ["path", "gone", "folder"]),
    "table of a row": (lambda: dip.show_table({"a": 1}), TypeError, ["rows", "str", "dicts"]),
    "table of nothing": (lambda: dip.show_table(None), TypeError, ["rows", "None", "dicts"]),
    "film strip of all": (lambda: dip.film_strip({"a": fit()}, "all"), TypeError, ["steps", "'a'", "integer"]),
    "film strip with a picture": (lambda: dip.film_strip({"a": fit()}, [], last=IMAGE), ValueError, ["last", "Tensor"]),
    "zoom of letters": (lambda: dip.compare({"a": IMAGE}, "abcd"), TypeError, ["zoom", "'a'", "number"]),
    "slider in pixels": (
        lambda: dip.browse({"a": fit(keep=[0])}, centre=(100, 100)),
        ValueError,
        ["centre", "100", "at most 1"],
    ),
    "slider about a number": (lambda: dip.browse({"a": fit(keep=[0])}, centre=0.5), TypeError, ["centre", "0.5"]),
    "levels in a list": (
        lambda: dip.plot_curves({"a": {"b": [1.0]}}, ylabel="dB", levels=[20]),
        TypeError,
        ["levels", "list", "dict"],
    ),
    "two methods": (lambda: dip.denoise(IMAGE, ["wavelet"], 0.1, 1), ValueError, ["method", "wavelet"]),
    "panel without a function": (lambda: dip.OwnImagePanel(1, IMAGE, steps=1), TypeError, ["try_it", "int"]),
    "panel of no steps": (lambda: dip.OwnImagePanel(fit, IMAGE, steps=0), ValueError, ["steps", "0", "at least 1"]),
    "exploring a picture": (lambda: dip.explore({"a": IMAGE}), TypeError, ["function", "dict"]),
    "spectra of another size": (
        lambda: dip.plot_spectra(
            {"a": fit(target=IMAGE[:, ::2, ::2], operator=lambda x: x[..., ::2, ::2], keep=[0])}, [0]
        ),
        ValueError,
        ["runs", "(3, 16, 24)", "one size"],
    ),
    "unknown fit in a live plot": (lambda: dip.LivePlot("a").track("b"), ValueError, ["name", "'b'", "a"]),
}


@pytest.mark.parametrize("name", CASES)
def test_message_says_what_is_wrong(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value), raised.value


def test_budget(monkeypatch):
    monkeypatch.setenv("DIP_BUDGET", "huge")
    with pytest.raises(ValueError, match=r"DIP_BUDGET: got 'huge'; wants one of full, quick, smoke"):
        dip.choose_budget()
    for budget in ("full", "quick", "smoke"):
        monkeypatch.setenv("DIP_BUDGET", budget)
        assert dip.choose_budget() == budget


def test_nothing_is_trained_before_an_error():
    network = build()
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(ValueError, match="keep"):
        fit(network=network, keep=[99])
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def broken_png(path):
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:60])


def tiff(values):
    return lambda path: tifffile.imwrite(path, np.linspace(*values, 64 * 64).reshape(64, 64))


FILES = {
    "missing.png": (lambda path: None, FileNotFoundError, ["no file"]),
    "folder.png": (lambda path: path.mkdir(), IsADirectoryError, ["folder"]),
    "empty.png": (lambda path: path.write_bytes(b""), ValueError, ["empty"]),
    "truncated.png": (broken_png, ValueError, ["truncated"]),
    "text.png": (lambda path: path.write_text("hello"), ValueError, ["no known image format"]),
    "phone.heic": (
        lambda path: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ValueError,
        ["a HEIC file", "pip install pillow-heif"],
    ),
    "seven.tiff": (lambda path: Image.new("F", (64, 64), 7.0).save(path), ValueError, ["up to 7", "white=7"]),
    "floats.tiff": (tiff((0, 255)), ValueError, ["up to 255", "up to 1", "white=255"]),
    "dark floats.tiff": (tiff((0, 206)), ValueError, ["up to 206", "white=255"]),
    "tomogram.tiff": (tiff((-1024, 2252)), ValueError, ["negative values, from -1024 to 2252"]),
    "hole.tiff": (tiff((0, math.nan)), ValueError, ["NaN"]),
    "complex.tiff": (tiff((0, 1j)), ValueError, ["complex128"]),
    "five.tiff": (
        lambda path: tifffile.imwrite(path, np.zeros((64, 64, 5)), photometric="minisblack", planarconfig="contig"),
        ValueError,
        ["(64, 64, 5)", "float64"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_named(tmp_path, name):
    make, error, words = FILES[name]
    make(tmp_path / name)
    with pytest.raises(error) as raised:
        dip.load_image(tmp_path / name)
    for word in ["path", name, *words]:
        assert word in str(raised.value), raised.value
    # Nothing whole is called truncated.
    assert ("truncated" in words) == ("may be damaged or truncated" in str(raised.value))


# --- anything at all: a clear error or a right answer

DTYPES = [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool, torch.complex64]
SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=4)


@st.composite
def tensors(draw):
    value = draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, -0.1, math.nan, math.inf]))
    return torch.full(draw(SHAPES), value).to(draw(st.sampled_from(DTYPES)))


def is_image_or_signal(x):
    good = x.dtype == torch.float32 and x.ndim in (2, 3) and x.numel() > 0 and bool(torch.isfinite(x).all())
    return good and bool(x.min() >= 0 and x.max() <= 1)


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_any_tensor_is_an_image_or_refused(x):
    for call in (lambda: dip.shuffle_elements(x, seed=0), lambda: dip.add_gaussian_noise(x, 0.1, seed=0)):
        if is_image_or_signal(x):
            assert call().shape == x.shape
        else:
            with pytest.raises((TypeError, ValueError), match=r"^image: got .*; wants "):
                call()


@st.composite
def shapes(draw):
    """Two shapes that have nothing to do with each other, or nearly match: chance would hardly draw those."""
    if draw(st.booleans()):
        return [[draw(st.integers(0, 12)) for _ in range(3)] for _ in range(2)]
    z = [draw(st.sampled_from([2, 2, 1, 3])), draw(st.integers(4, 8)), draw(st.integers(4, 8))]
    more = st.sampled_from([0, 0, 0, 1])
    return [z, [3 - draw(more), z[1] + draw(more), z[2] + draw(more)]]


@settings(max_examples=150, deadline=None)
@given(shapes())
def test_any_shapes_fit_or_are_refused(drawn):
    """Two scales, two input channels, three output channels: exactly these shapes make a fit."""
    z_shape, target_shape = drawn
    fits = z_shape[0] == 2 and min(z_shape[1:]) >= 5 and target_shape == [3, *z_shape[1:]]
    z, target = torch.rand(z_shape, generator=torch.Generator().manual_seed(0)), torch.zeros(target_shape)
    if fits:
        assert np.isfinite(dip.fit(build(), z, target, steps=1).loss).all()
    else:
        with pytest.raises(ValueError, match=r"^(z|target): got .*; wants "):
            dip.fit(build(), z, target, steps=1)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.integers(-3, 40), st.floats(), st.booleans(), st.text(max_size=3), st.none()))
def test_any_factor_is_taken_or_refused(factor):
    if isinstance(factor, int) and not isinstance(factor, bool) and factor >= 2:
        assert dip.LanczosDownsampler(factor).kernel.sum().item() == pytest.approx(1, abs=1e-5)
    else:
        with pytest.raises((TypeError, ValueError), match=r"^factor: got"):
            dip.LanczosDownsampler(factor)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.floats(), st.integers(-2, 2), st.booleans(), st.text(max_size=3), st.none()))
def test_any_sigma_is_taken_or_refused(sigma):
    taken = isinstance(sigma, (int, float)) and not isinstance(sigma, bool) and math.isfinite(sigma) and sigma >= 0
    if taken:
        noisy = dip.add_gaussian_noise(IMAGE, sigma, seed=0)
        assert noisy.min() >= 0 and noisy.max() <= 1
    else:
        with pytest.raises((TypeError, ValueError), match=r"^sigma: got"):
            dip.add_gaussian_noise(IMAGE, sigma, seed=0)
