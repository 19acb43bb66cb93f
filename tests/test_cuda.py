"""The CUDA path; each test is skipped where there is no card.

On a card sums may be taken in another order each time, and Adam makes much of little:
over 60 steps a difference of one unit in the last place grows some 100,000 times. What is
to be equal is therefore compared in double precision.
"""

import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import dip_utils as dip
from dip_utils.engine.machine import tuned

from .conftest import build
from .test_network import ENLARGED, REFLECTED, check_enlarge, check_reflected, check_reflected_exactly
from .textbook import textbook

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def fit(z, target, steps=60, *, network=None, **options):
    options = {"device": "cuda", "precision": "float64"} | options
    return dip.fit(network or build(), z, target, steps=steps, **options)


@pytest.fixture(autouse=True)
def settings_of_the_card_are_left_alone():
    """And nothing of a fit stays there."""
    cudnn = torch.backends.cudnn

    def settings():
        return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, torch.cuda.current_stream(), torch.cuda.get_rng_state()

    before, held = settings(), torch.cuda.memory_allocated()
    yield
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, settings(), strict=True)
    )
    # Some workspaces of the libraries stay.
    assert torch.cuda.memory_allocated() <= held + 200e6


class Counted:
    """The identity, and how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x


def test_graph_is_captured_and_changes_nothing(z, photograph):
    operators, options = [Counted(), Counted()], dict(reference=photograph, trace=100, stop=dip.HoldOut(first=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = fit(z, photograph, 200, operator=operators[0], **options)
        with tuned(graph=False):
            eager = fit(z, photograph, 200, operator=operators[1], **options)
    # A graph does not run Python.
    assert operators[0].calls < 20 < 200 < operators[1].calls
    assert graph.remarks == eager.remarks == []
    first = slice(0, 61)
    for curve in ("loss", "psnr", "average_psnr", "held_out"):
        assert np.allclose(getattr(graph, curve)[first], getattr(eager, curve)[first], rtol=1e-6)
    assert torch.allclose(graph.trace[first], eager.trace[first], atol=1e-5)
    assert graph.chosen_step > 0 and graph.chosen is not None


def test_hold_out_is_part_of_the_graph(z, photograph):
    options = dict(stop=dip.HoldOut(patience=None, first=5))
    graph = fit(z, photograph, **options)
    with tuned(graph=False):
        eager = fit(z, photograph, **options)
    assert graph.chosen_step == eager.chosen_step == 5 + np.argmin(graph.held_out[5:])
    assert torch.allclose(graph.chosen, eager.chosen, atol=1e-5)


def test_fit_is_the_textbook_loop(z, photograph):
    downsample, small = dip.LanczosDownsampler(4), dip.resize(photograph, 8, 12)
    expected = textbook(z, small, 30, operator=dip.LanczosDownsampler(4).double().cuda(), device="cuda")
    run = fit(z, small, 30, operator=downsample)
    assert np.allclose(run.loss, expected.loss, rtol=1e-6)
    assert torch.allclose(run.output, expected.outputs[-1].float(), atol=1e-5)


SHORT = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@SHORT
@pytest.mark.parametrize(**REFLECTED)
def test_convolution_of_the_card_reflects_the_border(channels, size, stride, dtype):
    check_reflected(channels, size, stride, dtype, "cuda", 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("behind", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_the_border_that_it_reflects_is_exact(behind, dtype):
    check_reflected_exactly(behind, dtype, "cuda")


@SHORT
@pytest.mark.parametrize(**ENLARGED)
def test_enlarging_of_the_card_is_bilinear(size, enlarged, dtype):
    check_enlarge(size, enlarged, dtype, "cuda", 0.02)


@SHORT
@pytest.mark.parametrize("variant", [{}, {"channels_last": False}, {"graph": False}], ids=str)
def test_short_floats_follow_the_exact_fit(z, photograph, variant, dtype):
    """In each of the forms that a step may have."""
    exact = fit(z, photograph, 6)
    with tuned(**variant):
        rounded = fit(z, photograph, 6, precision=str(dtype)[6:])
    assert np.allclose(rounded.loss, exact.loss, rtol=0.02)


def test_single_precision_is_no_less(z, photograph):
    """TF32 would have errors of a thousandth."""
    network = build()
    exact = network.double()(z[None].double())[0].float()
    run = fit(z, photograph, 1, network=build(), precision="float32", input_noise=0, keep=(0,))
    assert (run.kept[0] - exact.detach()).abs().max() < 1e-5


@pytest.mark.parametrize("precision", ["auto", "float32", "float16", "bfloat16"])
def test_every_precision_of_the_card_fits(z, photograph, precision):
    if precision == "bfloat16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("no bfloat16 on this card")
    run = fit(z, photograph, 200, precision=precision)
    assert run.loss[-25:].mean() < run.loss[0] / 3 and not run.diverged


def test_kept_images_are_those_of_their_steps(z, photograph):
    run = fit(z, photograph, keep=range(61), reference=photograph, precision="float32")
    for step, image in run.kept.items():
        assert image.device.type == "cpu"
        assert dip.psnr(photograph, image) == pytest.approx(run.psnr[step], abs=1e-3)


def test_run_goes_on_from_its_state_and_on_another_device(z, photograph, tmp_path):
    whole, part = fit(z, photograph, 60), fit(z, photograph, 40)
    part.save(tmp_path / "run.pt")
    loaded = dip.load_fit(tmp_path / "run.pt")
    assert np.allclose(fit(z, photograph, 20, start=loaded).loss, whole.loss, rtol=1e-6)
    there = fit(z, photograph, 100, start=loaded, device="cpu")
    back = fit(z, photograph, 100, start=there)
    assert back.steps == 240 and back.loss[-1] < whole.loss[-1] and back.remarks == []


def test_network_comes_back_to_the_cpu(z, photograph):
    network = build()
    run = fit(z, photograph, network=network, input_noise=0)
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 and p.grad is None for p in network.parameters())
    assert torch.allclose(network(z[None])[0], run.output, atol=1e-4)


def test_what_cannot_be_captured_is_launched_step_by_step(z, photograph, capsys):
    """An operator that reads a number must not."""
    run = fit(z, photograph, operator=lambda x: x * (1.0 if x.sum().item() > 0 else 2.0))
    with tuned(graph=False):
        eager = fit(z, photograph)
    assert np.allclose(run.loss, eager.loss, rtol=1e-6)
    assert len(run.remarks) == 1 and run.remarks[0].startswith("No CUDA graph, the steps are launched one by one: ")
    assert capsys.readouterr().out == run.remarks[0] + "\n"
    # The next fit has a graph again.
    counted = Counted()
    assert fit(z, photograph, operator=counted).remarks == [] and counted.calls < 20


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nan_is_mended_and_a_new_graph_captured(z, photograph, precision):
    """A graph does not run Python, so that the card itself must count its calls."""
    if precision == "bfloat16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("no bfloat16 on this card")
    calls = torch.zeros(1, device="cuda")

    def operator(x):
        calls.add_(1)
        return x + torch.zeros_like(calls).masked_fill(calls == 61, float("nan"))

    run = fit(z, photograph, 200, operator=operator, precision=precision)
    assert run.steps == 200 and np.isfinite(run.loss).all() and not run.diverged
    assert len(run.remarks) == 1 and "became NaN or infinite" in run.remarks[0]


def test_stop_button_ends_a_run_of_graphs(z, photograph):
    run = fit(z, photograph, 10**6, watch=lambda run: run.running and signal.raise_signal(signal.SIGINT))
    assert run.interrupted and 0 < run.steps < 10**6 and np.isfinite(run.loss).all()
    assert fit(z, photograph, 30, start=run).remarks[-1].startswith("Stopped by hand")


def test_fits_in_two_threads_are_those_of_one(z, photograph):
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: fit(z, photograph, seed=seed), range(4)))
    for seed, run in enumerate(together):
        assert run.remarks == [] and np.allclose(run.loss, fit(z, photograph, seed=seed).loss, rtol=1e-6)


def test_a_fit_inside_a_fit_leaves_its_graph_alone(z, photograph):
    """With matrix products in both, whose memory goes with the inner graph."""
    small, options = dip.resize(photograph, 8, 12), dict(operator=dip.LanczosDownsampler(4))
    inner = []

    def watch(run):
        if run.running and len(inner) < 2:
            inner.append(fit(z, small, 30, seed=1, **options))

    outer = fit(z, small, 300, watch=watch, **options)
    assert np.allclose(outer.loss[:61], fit(z, small, **options).loss, rtol=1e-6) and outer.remarks == []
    assert inner and all(np.allclose(run.loss, inner[0].loss, rtol=1e-6) for run in inner)
    assert np.allclose(inner[0].loss, fit(z, small, 30, seed=1, **options).loss, rtol=1e-6)


def test_tensor_on_the_wrong_device_is_refused_in_words(z, photograph):
    with pytest.raises(
        ValueError, match=r"operator: got one that fails on .*, on cuda:0: .*; wants one that computes there"
    ):
        fit(z, photograph, operator=lambda x: x * torch.ones(48))
    with pytest.raises(ValueError, match="target: got a tensor on cuda:0; wants it on the CPU, fit moves it"):
        fit(z, photograph.cuda())


def test_too_large_a_fit_is_refused_at_once():
    image, network = torch.zeros(3, 4096, 4096), dip.SkipNetwork(2, (512, 512), (4, 4), seed=0)
    with pytest.raises(MemoryError, match=r"needs about .* GB, .* GB are free on cuda; wants at most"):
        fit(image[:2], image, network=network)


def test_out_of_memory_becomes_advice_and_frees_what_it_held(z, photograph):
    """A share of the card that the foreseeing does not know of."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(300e6 / total)
    try:
        image = dip.uniform_noise(3, 1024, 1024, seed=0)
        network = dip.SkipNetwork(2, (64, 64), (4, 4), seed=0)
        with pytest.raises(MemoryError, match="z: a fit of 1024 × 1024 ran out of memory on cuda; wants a smaller"):
            fit(image[:2], image, network=network, precision="float32")
        assert all(p.device.type == "cpu" for p in network.parameters())
        assert torch.cuda.memory_allocated() < 250e6
        assert fit(z, photograph, precision="float32").steps == 60
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
