"""`fit` against the textbook loop; going on, saving, ■, divergence, watching; what it refuses to take over."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dip_utils as dip
from dip_utils.engine.machine import bfloat16_gain, choose_device, has_card, tuned

from .conftest import build
from .textbook import textbook


def fit(z, target, steps=12, *, network=None, **options):
    options = {"precision": "float32", "device": "cpu"} | options
    return dip.fit(network or build(), z, target, steps=steps, **options)


@pytest.mark.parametrize("large", [0, 2**18], ids=["faster forms", "plain forms"])
def test_fit_is_the_textbook_loop(z, photograph, large):
    expected = textbook(z, photograph, 30)
    with tuned(large=large):
        run = fit(z, photograph, 30, precision="float64", reference=photograph, keep=(0, 7, 30))
    assert np.allclose(run.loss, expected.loss, rtol=1e-8)
    for step in (0, 7, 30):
        output = expected.outputs[step].float()
        assert torch.allclose(run.kept[step], output, atol=1e-6)
        assert run.psnr[step] == pytest.approx(dip.psnr(photograph, output), abs=1e-4)
    assert torch.equal(run.output, run.kept[30])
    average = expected.averages[-1].float()
    assert torch.allclose(run.average, average, atol=1e-6) and torch.equal(run.result, run.average)
    assert run.average_psnr[-1] == pytest.approx(dip.psnr(photograph, average), abs=1e-4)


def test_loss_is_taken_behind_the_operator(z, photograph):
    downsample = dip.LanczosDownsampler(4)
    small = dip.resize(photograph, 8, 12)
    expected = textbook(z, small, 10, operator=dip.LanczosDownsampler(4).double())
    run = fit(z, small, 10, operator=downsample, precision="float64", reference=photograph)
    assert np.allclose(run.loss, expected.loss, rtol=1e-8)
    assert run.output.shape == photograph.shape
    assert downsample.kernel.dtype == torch.float32


def test_options_are_those_of_the_textbook(z, photograph):
    options = dict(loss=F.l1_loss, regularizer=lambda x: 0.1 * x.square().mean(), seed=5)
    options |= dict(learning_rate=0.003, input_noise=0.1)
    run = fit(z, photograph, 20, precision="float64", **options)
    assert np.allclose(run.loss, textbook(z, photograph, 20, **options).loss, rtol=1e-8)


def test_average_weighs_the_newest_output_by_a_hundredth(z, photograph):
    run = fit(z, photograph, 110, precision="float64")
    assert torch.allclose(run.average, textbook(z, photograph, 110).averages[-1].float(), atol=1e-5)


def test_greyscale_and_target_outside_of_the_unit_interval(z, photograph):
    grey = photograph[:1] * 3 - 1
    run = fit(z, grey, network=build(output_channels=1))
    assert run.output.shape == (1, 32, 48) and np.isfinite(run.loss).all()


def test_without_input_noise_nothing_is_drawn(z, photograph):
    first, other = (fit(z, photograph, input_noise=0, seed=seed) for seed in (0, 1))
    assert (first.loss == other.loss).all()


def test_gradients_of_an_earlier_pass_are_not_fitted(z, photograph):
    network = build()
    network(z[None]).sum().backward()
    assert np.array_equal(fit(z, photograph, 3, network=network).loss, fit(z, photograph, 3).loss)


def test_loss_falls_in_short_floats_too(z, photograph):
    for precision in ("float32", "bfloat16"):
        run = fit(z, photograph, 100, precision=precision)
        assert run.loss[-1] < run.loss[0] / 3


def test_network_comes_back_trained_plain_and_without_gradients(z, photograph):
    network = build()
    run = fit(z, photograph, 30, network=network, precision="bfloat16", input_noise=0)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and p.grad is None for p in network.parameters())
    assert (network(z[None])[0] - run.output).abs().max() < 0.05
    plain = build()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(z[None]), plain(z[None]))


# --- whatever history the tensors have

OPERATORS = {
    "mask in float64": lambda mask: lambda x: x * mask.double(),
    "module with a buffer in float64": lambda mask: Masked(mask.double()),
    "mask that wants a gradient": lambda mask: lambda x: x * mask.clone().requires_grad_(),
    "module with a parameter": lambda mask: Masked(nn.Parameter(mask.clone())),
}


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        if isinstance(mask, nn.Parameter):
            self.mask = mask
        else:
            self.register_buffer("mask", mask)

    def forward(self, x):
        return x * self.mask


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_may_hold_any_kind_of_real_numbers(z, photograph, name):
    mask = (torch.arange(48) % 3 > 0).float()
    operator = OPERATORS[name](mask)
    run = fit(z, photograph * mask, operator=operator)
    assert np.allclose(run.loss, fit(z, photograph * mask, operator=lambda x: x * mask).loss, rtol=1e-4)
    assert not isinstance(operator, nn.Module) or all(p.grad is None for p in operator.parameters())


@pytest.mark.parametrize(
    "history",
    [
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x.clone()),
        lambda x: nn.Conv2d(1, 1, 1).weight[0] * 0 + x,
        lambda x: x.clone().requires_grad_().exp().log(),
    ],
    ids=["requires_grad", "Parameter", "output of a layer", "result"],
)
def test_images_with_a_history_are_only_read(z, photograph, history, tmp_path):
    with torch.random.fork_rng():
        images = [history(image) for image in (z, photograph, photograph)]
    run = fit(images[0], images[1], reference=images[2])
    values = [image.detach() for image in images]
    assert np.array_equal(run.loss, fit(values[0], values[1], reference=values[2]).loss)
    assert all(image.grad is None for image in images if image.is_leaf)
    assert not any(image.requires_grad for image in (run.z, run.target, run.reference, run.output, run.average))
    run.save(tmp_path / "run.pt")
    assert torch.equal(dip.load_fit(tmp_path / "run.pt").z, values[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_switched_off(z, photograph, mode, tmp_path):
    network = build()
    with mode():
        run = fit(z.clone(), photograph.clone(), network=network, stop=dip.HoldOut(), operator=Masked(torch.ones(48)))
        run.save(tmp_path / "run.pt")
        assert not torch.is_grad_enabled()
    expected = fit(z, photograph, stop=dip.HoldOut(), operator=Masked(torch.ones(48)))
    assert np.array_equal(run.loss, expected.loss)
    assert np.isfinite(fit(z, photograph, start=dip.load_fit(tmp_path / "run.pt"), network=network).loss).all()


def test_network_that_cannot_be_trained_is_refused(z, photograph):
    with torch.inference_mode():
        network = build()
    with pytest.raises(
        ValueError, match=r"network: got one built in torch.inference_mode, .*; wants one built outside"
    ):
        fit(z, photograph, network=network)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_precision_is_chosen_where_gradients_are_switched_off(mode):
    bfloat16_gain.cache_clear()
    with mode():
        assert dip.choose_precision() in (torch.float32, torch.bfloat16)
        assert bfloat16_gain() > 0


def test_another_default_dtype_changes_nothing(photograph):
    runs = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            runs.append(fit(dip.random_input(2, 32, 48, seed=0), photograph, stop=dip.HoldOut(), trace=9))
        finally:
            torch.set_default_dtype(torch.float32)
    assert np.array_equal(runs[0].loss, runs[1].loss) and torch.equal(runs[0].trace, runs[1].trace)


def test_another_default_device_changes_nothing(photograph):
    """Such as CUDA, which a notebook may have set; on the meta device nothing has a value."""

    def everything():
        run = fit(dip.random_input(2, 32, 48, seed=0), photograph, stop=dip.HoldOut(), trace=9)
        noise = dip.uniform_noise(3, 32, 48, seed=0)
        shuffles = dip.shuffle_elements(noise, seed=0), dip.shuffle_rows_and_columns(noise, seed=0)
        noisy = dip.add_gaussian_noise(noise, 0.1, seed=0), dip.add_salt_and_pepper(noise, 0.1, seed=0)
        small = dip.LanczosDownsampler(4)(noise), dip.Pixels(3, 32, 48)(noise[None])
        return [torch.from_numpy(run.loss), run.trace, noise, *shuffles, *noisy, *small]

    expected = everything()
    torch.set_default_device("meta")
    try:
        found = everything()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(value, want) for value, want in zip(found, expected, strict=True))


@pytest.mark.parametrize("large", [0, 2**18], ids=["faster forms", "plain forms"])
def test_outputs_can_be_viewed_as_a_row(z, photograph, large):
    """However the network lays them out."""
    loss = lambda output, target: (output.view(-1) - target.view(-1)).square().mean()  # noqa: E731
    options = dict(stop=dip.HoldOut(), precision="float64")
    with tuned(large=large):
        run = fit(z, photograph, loss=loss, operator=lambda x: x.view(1, 3, -1).view(x.shape), **options)
    assert np.allclose(run.loss, fit(z, photograph, **options).loss, rtol=1e-8)


def test_images_may_change_during_the_run(z, photograph):
    target = photograph.clone()

    def spoil(x):
        target.fill_(7)
        return x

    assert np.array_equal(fit(z, target, operator=spoil).loss[1:], fit(z, photograph).loss[1:])


# --- going on, saving


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("large", [0, 2**18], ids=["faster forms", "plain forms"])
def test_a_part_and_the_rest_are_the_whole_to_the_bit(z, photograph, precision, large):
    options = dict(reference=photograph, precision=precision)
    with tuned(large=large):
        whole = fit(z, photograph, 28, keep=(0, 10), **options)
        part = fit(z, photograph, 10, keep=(0, 10), **options)
        rest = fit(z, photograph, 18, keep=(20, 28), start=part, network=build(seed=7), **options)
    assert rest.steps == 28 == rest.planned and rest.seconds > part.seconds
    for curve in ("loss", "psnr", "average_psnr"):
        assert (getattr(rest, curve) == getattr(whole, curve)).all()
    assert torch.equal(rest.output, whole.output) and torch.equal(rest.average, whole.average)
    assert sorted(rest.kept) == [0, 10, 20, 28] and sorted(part.kept) == [0, 10]


def test_run_goes_on_in_double_precision(z, photograph):
    whole = fit(z, photograph, 20, precision="float64")
    rest = fit(z, photograph, 10, precision="float64", start=fit(z, photograph, 10, precision="float64"))
    assert np.allclose(rest.loss, whole.loss, rtol=1e-4)


def test_run_survives_its_file(z, photograph, tmp_path):
    numbers = dict(steps=np.int64(12), keep=(0, np.int64(12)), trace=np.int64(5), seed=np.int64(0))
    numbers |= dict(learning_rate=np.float64(0.01), input_noise=np.float32(1 / 30))
    run = fit(z, photograph, reference=photograph, stop=dip.HoldOut(patience=np.int64(50)), **numbers)
    run.save(tmp_path / "run.pt")
    loaded = dip.load_fit(tmp_path / "run.pt")
    assert (loaded.loss == run.loss).all() and (loaded.psnr == run.psnr).all()
    assert torch.equal(loaded.output, run.output) and torch.equal(loaded.kept[12], run.kept[12])
    assert loaded.steps == 12 and not loaded.running and repr(loaded) == repr(run)
    assert loaded.remarks == ["By step 12 hold-out has chosen none; they count from step 100 on."]
    stop = dip.HoldOut(patience=50)
    on, loaded_on = (fit(z, photograph, start=start, reference=photograph, stop=stop) for start in (run, loaded))
    assert (on.loss == loaded_on.loss).all()
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_run_that_hold_out_ended_survives_its_file(z, tmp_path):
    run = fit(z, dip.uniform_noise(3, 32, 48, seed=0), 400, stop=dip.HoldOut(patience=np.int64(1), first=0))
    run.save(tmp_path / "run.pt")
    assert dip.load_fit(tmp_path / "run.pt").steps == run.steps < 400


def test_run_says_in_a_line_what_it_is(z, photograph):
    assert repr(fit(z, photograph, reference=photograph)).startswith("<Fit: 12 of 12 steps in 0 s on cpu in float32, ")


def test_runs_are_told_apart_and_saved_in_the_home_folder(z, photograph, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    run, other = fit(z, photograph), fit(z, photograph)
    assert [run, other].index(other) == 1 and run == run and run != other
    run.save("~/run.pt")
    assert torch.equal(dip.load_fit("~/run.pt").output, run.output)


def test_damaged_and_foreign_files_are_refused(z, photograph, tmp_path):
    path = tmp_path / "run.pt"
    fit(z, photograph).save(path)
    whole = path.read_bytes()
    for content in (b"", b"not an archive", b"some text", b"J1", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="truncated, or not a run"):
            dip.load_fit(path)
    for foreign in ({"loss": torch.zeros(3)}, torch.zeros(3), [1, 2], build()):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match="truncated, or not a run"):
            dip.load_fit(path)


def test_autocast_around_a_fit_changes_nothing(z, photograph):
    options = dict(steps=3, device="cpu", precision="float32")
    with tuned(large=0):
        plain = dip.fit(build(), z, photograph, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = dip.fit(build(), z, photograph, **options)
    assert np.array_equal(inside.loss, plain.loss)


def test_what_a_user_adds_does_not_spoil_a_saved_run(z, photograph, tmp_path):
    class Photo(torch.Tensor):
        """As those of other libraries."""

    run = dip.fit(build(), z.as_subclass(Photo), photograph.as_subclass(Photo), steps=2, device="cpu")
    run.title = "cat"
    run.save(tmp_path / "run.pt")
    loaded = dip.load_fit(tmp_path / "run.pt")
    assert torch.equal(loaded.target, photograph) and type(loaded.target) is torch.Tensor
    assert np.array_equal(loaded.loss, run.loss) and not hasattr(loaded, "title")


def test_a_run_saved_under_way_is_gone_on_from_there(z, photograph, tmp_path):
    path, options = tmp_path / "run.pt", dict(operator=Slow(0.01), stop=dip.HoldOut(first=0), trace=9)

    def save(run):
        if run.running:
            run.save(path)

    whole = fit(z, photograph, 60, watch=save, **options)
    part = dip.load_fit(path)
    assert 0 < part.steps < 60 and part.interrupted and not part.running and len(part.trace) == part.steps + 1
    rest = fit(z, photograph, 60 - part.steps, start=part, **options | dict(operator=None))
    assert np.array_equal(rest.loss, whole.loss) and np.array_equal(rest.held_out, whole.held_out)
    assert torch.equal(rest.chosen, whole.chosen) and torch.equal(rest.trace, whole.trace)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"])
def test_a_run_copied_under_way_is_one_that_was_stopped_there(z, photograph, tmp_path, copied):
    copies, options = [], dict(operator=Slow(0.01), stop=dip.HoldOut(first=0))
    whole = fit(z, photograph, 60, watch=lambda run: copies.append(copied(run)), **options)
    part, finished = copies[0], copies[-1]
    assert 0 < part.steps < 60 and part.interrupted and not part.running
    assert finished.steps == 60 and not finished.interrupted and not finished.running
    part.save(tmp_path / "run.pt")
    rest = fit(z, photograph, 60 - part.steps, start=dip.load_fit(tmp_path / "run.pt"), **options | dict(operator=None))
    assert np.array_equal(rest.loss, whole.loss) and torch.equal(rest.chosen, whole.chosen)


def test_a_run_that_failed_holds_on_to_nothing_but_itself(z, photograph, tmp_path):
    """A watch may have kept it, as the live plot does."""
    seen, operators = [], []

    class Failing(Slow):
        def forward(self, x):
            # Of the fit's own copies.
            operators.append(weakref.ref(self))
            if len(operators) == 40:
                raise OverflowError("no more")
            return super().forward(x)

    with pytest.raises(OverflowError):
        fit(z, photograph, 500, operator=Failing(0.02), watch=seen.append)
    gc.collect()
    assert seen and not any(operator() for operator in operators)
    seen[0].save(tmp_path / "run.pt")
    assert dip.load_fit(tmp_path / "run.pt").steps == seen[0].steps


def test_one_press_and_a_watch_that_stops_lose_nothing(z, photograph):
    def press_and_stop(run):
        if run.running:
            signal.raise_signal(signal.SIGINT)
            raise KeyboardInterrupt

    assert fit(z, photograph, 100_000, watch=press_and_stop).interrupted


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files is limited as on Unix")
def test_failed_save_leaves_the_old_file(z, photograph, tmp_path):
    path = tmp_path / "run.pt"
    run = fit(z, photograph)
    run.save(path)
    resource = pytest.importorskip("resource")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            run.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.pt"]


def started(z, photograph, **options):
    return fit(z, photograph, start=fit(z, photograph), **options)


NOT_TO_GO_ON = {
    "another z": (lambda z, x: fit(z.flip(1), x, start=fit(z, x)), "start: got a run on another z; wants one on this"),
    "another target": (lambda z, x: fit(z, 1 - x, start=fit(z, x)), "start: got a run on another target; wants"),
    "another reference": (
        lambda z, x: fit(z, x, reference=1 - x, start=fit(z, x, reference=x)),
        "start: got a run on another reference",
    ),
    "another size": (lambda z, x: fit(z[:, :16], x[:, :16], start=fit(z, x)), r"z: got shape .* of start"),
    "wider network": (lambda z, x: started(z, x, network=build(channels=(4, 8))), "start: got a run of another net"),
    "network of other layers": (lambda z, x: started(z, x, network=build(skip_channels=(0, 2))), "another network"),
    "partly frozen network": (lambda z, x: started(z, x, network=frozen(build(), "head")), "another network"),
    "hold-out": (lambda z, x: started(z, x, stop=dip.HoldOut()), "stop: got a HoldOut, but the run in start has"),
}


def frozen(network, name):
    getattr(network, name).requires_grad_(False)
    return network


@pytest.mark.parametrize("name", NOT_TO_GO_ON)
def test_a_run_goes_on_only_where_it_can(z, photograph, name):
    go_on, words = NOT_TO_GO_ON[name]
    with pytest.raises(ValueError, match=words):
        go_on(z, photograph)


def test_what_may_differ_is_said(z, photograph, capsys, tmp_path):
    part = fit(z, photograph)
    fit(z, photograph, start=part, operator=Masked(torch.ones(48)))
    assert capsys.readouterr().out == ""
    part.save(tmp_path / "run.pt")
    fit(z, photograph, start=dip.load_fit(tmp_path / "run.pt"), learning_rate=0.005, input_noise=0)
    said = capsys.readouterr().out
    assert "learning_rate: 0.005, where the run in start had 0.01." in said
    assert "input_noise: 0, where the run in start had 0.0333333." in said


def test_going_on_with_another_loss_is_no_divergence(z, photograph):
    """The losses of before say nothing about those of after."""
    part = fit(z, photograph, 150)
    rest = fit(z, photograph, 80, start=part, loss=F.l1_loss)
    assert rest.steps == 230 and rest.remarks == [] and not rest.diverged
    assert np.array_equal(rest.loss[:151], part.loss) and rest.loss[-1] > part.loss[-1]


# --- stopping by hand


def test_stop_button_keeps_the_run(z, photograph, capsys):
    def press(run):
        if run.running:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    run = fit(z, photograph, 100_000, watch=press, keep=range(0, 100_001))
    assert run.interrupted and not run.running and not run.diverged
    assert 0 < run.steps < 100_000 and len(run.loss) == run.steps + 1 and np.isfinite(run.loss).all()
    assert torch.equal(run.kept[run.steps], run.output)
    assert f"Stopped by hand at step {run.steps} of 100000" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    whole = fit(z, photograph, run.steps + 5)
    rest = fit(z, photograph, 5, start=run)
    assert (rest.loss == whole.loss).all()


def test_second_press_raises_as_usual(z, photograph):
    calls = []

    def stubborn(x):
        calls.append(x.shape)
        # The first call is the trial before the fit, which ■ ends like any other code.
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return x

    handler, network = signal.getsignal(signal.SIGINT), build()
    with pytest.raises(KeyboardInterrupt):
        fit(z, photograph, 100, operator=stubborn, network=network)
    assert len(calls) == 3
    assert signal.getsignal(signal.SIGINT) is handler
    assert all(p.grad is None for p in network.parameters()) and network(z[None]).dtype == torch.float32


def test_second_press_during_a_watch_raises_as_usual(z, photograph):
    def press_twice(run):
        if run.running:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(z, photograph, 100_000, watch=press_twice)


def test_a_step_that_is_broken_off_leaves_the_run_as_it_was_before(z, photograph):
    def stop(x):
        raise KeyboardInterrupt

    options = dict(reference=photograph, stop=dip.HoldOut(first=0), keep=(0, 25))
    # With hold-out it is called twice a step.
    run = fit(z, photograph, 100, operator=Broken([64], stop), **options | dict(keep=(0, 25, 30)))
    expected = fit(z, photograph, 25, **options)
    assert run.interrupted and run.steps == 25 and run.chosen_step == expected.chosen_step
    for name in ("loss", "average_psnr", "held_out"):
        assert np.array_equal(getattr(run, name), getattr(expected, name))
    assert torch.equal(run.output, expected.output) and torch.equal(run.average, expected.average)
    assert sorted(run.kept) == [0, 25] and torch.equal(run.kept[25], run.output)


def test_stop_button_before_the_first_step_keeps_the_network(z, photograph):
    """While everything is tried out."""
    network, pressed = build(), []

    def press(x):
        if not pressed:
            pressed.append(signal.raise_signal(signal.SIGINT))
        return x

    run = fit(z, photograph, 30, network=network, operator=press)
    assert run.interrupted and run.steps == 0 and np.isfinite(run.loss).all()
    twin = build().state_dict()
    assert all(torch.equal(weight, twin[name]) for name, weight in network.state_dict().items())


def test_watch_may_ask_to_stop_and_no_step_is_lost(z, photograph):
    def ask(run):
        if run.running:
            raise KeyboardInterrupt

    run = fit(z, photograph, 100_000, watch=ask)
    assert run.interrupted and 0 < run.steps < 100_000
    assert (fit(z, photograph, 3, start=run).loss == fit(z, photograph, run.steps + 3).loss).all()


def test_failing_watch_is_dropped_and_the_run_goes_on(z, photograph, capsys):
    def fail(run):
        raise OSError("no picture today")

    run = fit(z, photograph, 20, watch=fail)
    assert run.steps == 20 and run.remarks == ["The watch failed and was dropped: OSError('no picture today')"]
    assert run.remarks[0] in capsys.readouterr().out


def test_stop_before_a_nan_has_been_noticed(z, photograph):
    def spoil(x):
        signal.raise_signal(signal.SIGINT)
        return x * float("nan")

    run = fit(z, photograph, 100, operator=Broken([40], spoil), keep=range(101))
    assert run.interrupted and run.steps == 25 and np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert all(torch.isfinite(tensor).all() for name, tensor in run.state.items() if name != "generator")
    assert sorted(run.kept) == list(range(26))


# --- in threads


def test_fits_in_two_threads_are_those_of_one(z, photograph):
    """Outside of the main thread there is no ■, and the fit is the same."""

    def one(seed):
        return fit(z, photograph, 20, network=build(seed=seed), seed=seed, stop=dip.HoldOut()).loss

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(one, range(3)))
    assert all(np.array_equal(loss, one(seed)) for seed, loss in enumerate(together))


def test_a_network_is_in_one_fit_at_a_time(z, photograph):
    """The second fit is refused, the first goes on as if nothing had been; then the network is free again."""
    network, messages, calls = build(), [], []

    def other(output):
        calls.append(output)
        if len(calls) == 10:
            with pytest.raises(ValueError) as refused:
                fit(z, photograph, 5, network=nn.Sequential(network, nn.Identity()))
            messages.append(str(refused.value))
        return output

    run = fit(z, photograph, 20, network=network, operator=other)
    assert messages == ["network: got one that another fit is training; wants one of its own"]
    assert np.array_equal(run.loss, fit(z, photograph, 20).loss)
    fit(z, photograph, 5, network=network)


def test_two_networks_may_have_an_activation_in_common(z, photograph):
    activation, inner = nn.Sigmoid(), []

    def other(run):
        inner.append(fit(z, photograph, 3, network=nn.Sequential(build(seed=1), activation)))

    run = fit(z, photograph, 3, network=nn.Sequential(build(), activation), watch=other)
    assert not run.remarks and inner[0].steps == 3


# --- divergence


class Broken(nn.Module):
    """Spoils the output at some calls."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls, self.spoil, self.count = set(calls), spoil, 0

    def forward(self, x):
        self.count += 1
        return self.spoil(x) if self.count in self.calls else x


def without_gradient(x):
    """The same values, and a gradient of NaN."""
    return x + 0 * (x - x).sqrt()


@pytest.mark.parametrize("spoil", [lambda x: x * float("nan"), lambda x: x * float("inf")])
def test_nan_is_noticed_and_mended(z, photograph, spoil, capsys):
    run = fit(z, photograph, 100, operator=Broken([61], spoil), precision="bfloat16", keep=range(101))
    assert run.steps == 100 and np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert not run.diverged and run.precision == "float32"
    assert run.remarks == ["The loss became NaN or infinite by step 75: going on from step 50 in float32."]
    assert run.remarks[0] in capsys.readouterr().out
    # What is kept is of the run that was gone on with, not of the one given up.
    assert sorted(run.kept) == list(range(101)) and torch.equal(run.kept[100], run.output)
    for step, image in run.kept.items():
        assert torch.isfinite(image).all() and dip.mse(photograph, image) == pytest.approx(run.loss[step], rel=1e-3)


def test_nan_in_the_first_gradients_is_mended(z, photograph):
    """Call 1 is the untrained network's, from which the first state to go back to is copied."""
    for call in (1, 2, 26):
        run = fit(z, photograph, 40, operator=Broken([call], without_gradient))
        assert run.steps == 40 and np.isfinite(run.loss).all() and len(run.remarks) == 1 and not run.diverged


@pytest.mark.parametrize("call", [50, 51, 63, 76])
def test_nan_in_a_gradient_spoils_no_copy(z, photograph, call):
    """The loss of that step is finite: only the one after the update shows it, and a look may lie between."""
    run = fit(z, photograph, 100, operator=Broken([call], without_gradient))
    assert run.steps == 100 and np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert len(run.remarks) == 1 and "going on from step" in run.remarks[0] and not run.diverged


def test_nan_in_the_last_gradient_spoils_nothing(z, photograph):
    """Weights and output are as good as ever; a run that goes on from there takes that gradient anew."""
    run = fit(z, photograph, 50, operator=Broken([51], without_gradient), keep=range(51))
    assert np.isfinite(run.loss).all() and torch.isfinite(run.output).all() and not run.diverged
    assert sorted(run.kept) == list(range(51))
    rest = fit(z, photograph, 30, start=run)
    assert rest.steps == 80 and np.isfinite(rest.loss).all() and torch.isfinite(rest.output).all()


@pytest.mark.parametrize("step", [151, 174])
def test_collapse_is_noticed(z, photograph, step):
    """From some step on the network has forgotten everything, and the loss stays up."""
    network, calls = build(), []

    def collapse(network, _):
        # The first call is the trial before the fit.
        if len(calls) == step + 1:
            network.head.weight.data.zero_()
            network.head.bias.data.fill_(-20)
        calls.append(network)

    network.register_forward_pre_hook(collapse)
    run = fit(z, photograph, 250, network=network)
    assert run.steps == 250 and len(run.remarks) == 1 and "stayed high after a jump by step 2" in run.remarks[0]
    assert run.loss[-25:].max() < run.loss[0] / 2 and not run.diverged


def test_hopeless_divergence_stops_with_the_best_state(z, photograph):
    run = fit(z, photograph, 200, operator=Broken(range(61, 10_000), lambda x: x * float("nan")))
    assert run.diverged and run.steps == 50 and np.isfinite(run.loss[:50]).all()
    assert len(run.remarks) == 4 and "given up" in run.remarks[-1]
    assert torch.isfinite(run.output).all()


@pytest.mark.slow
def test_isolated_spikes_do_not_end_a_long_run():
    image = dip.resize(dip.sample("chelsea"), 8, 8)
    network, z = build(1, (2,), (0,)), dip.random_input(1, 8, 8, seed=0)
    spikes = Broken([200, 500, 800, 1200], lambda x: x * float("nan"))
    run = fit(z, image, 1250, network=network, operator=spikes)
    assert run.steps == 1250 and len(run.remarks) == 4 and not run.diverged


@pytest.mark.parametrize(
    ("name", "configuration"),
    [("rocket", dip.PARAMETRIZATION), pytest.param("chelsea", dip.RESTORATION, marks=pytest.mark.slow)],
)
def test_saturation_is_called_divergence(name, configuration):
    """A learning rate of 1 ends in black or white, worse than one colour for the whole image."""
    image = dip.add_gaussian_noise(dip.resize(dip.sample(name), 40, 40), 0.1, seed=0)
    network = dip.SkipNetwork(**configuration, seed=0)
    run = fit(dip.random_input(network.input_channels, 40, 40, seed=0), image, 60, network=network, learning_rate=1.0)
    assert run.loss[-1] > 1.2 * (image - image.mean((1, 2), keepdim=True)).square().mean()
    assert run.diverged and "a smaller learning_rate may help" in run.remarks[-1]


@pytest.mark.parametrize("steps", [5, 60])
def test_a_slow_beginning_is_no_divergence(z, steps):
    """Noise is hardly fitted at all, and the untrained network is no worse at first."""
    for target in (dip.uniform_noise(3, 32, 48, seed=0), dip.sample("rocket")[:, :32, :48] * 0.1):
        run = fit(z, target, steps)
        assert not run.diverged and run.remarks == []


def test_as_good_as_one_colour_is_no_divergence(z):
    """What a network has not begun to learn is left at about the loss of one colour, a little above or below."""
    target = dip.uniform_noise(3, 32, 48, seed=0)
    flat = nn.utils.skip_init(nn.Conv2d, z.shape[0], 3, 1)
    with torch.no_grad():
        flat.weight.zero_()
        flat.bias.copy_(target.mean((1, 2)) + 0.01)
    run = fit(z, target, 50, network=flat, learning_rate=1e-7)
    assert run.loss[-1] > (target - target.mean((1, 2), keepdim=True)).square().mean()
    assert not run.diverged and run.remarks == []


# --- watching


def test_watch_is_bounded_in_share_of_the_time(z, photograph, monkeypatch):
    """With a clock that only we move, 0.1 s a step and 0.05 s a watch: of 20 s they get a fiftieth, 8 calls.

    The first is free, and the last may overdraw.
    """
    now, calls = [0.0], []

    def slow_step(x):
        now[0] += 0.1
        return x

    def slow_watch(run):
        now[0] += 0.05
        calls.append(run.steps)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    fit(z, photograph, 200, operator=slow_step, watch=slow_watch)
    assert calls[-1] == 200 and 8 <= len(calls) - 1 <= 10


def test_watch_sees_the_run_so_far(z, photograph):
    seen = []

    def watch(run):
        best = max(run.psnr)
        seen.append((run.steps, run.running, len(run.psnr), tuple(run.output.shape), best))

    # Long enough to be seen twice a second and not only at the end.
    run = fit(z, photograph, 90, watch=watch, reference=photograph, operator=Slow(0.007))
    assert seen[-1] == (90, False, 91, (3, 32, 48), max(run.psnr))
    assert all(running and length == steps + 1 for steps, running, length, *_ in seen[:-1]) and len(seen) > 1
    assert len(seen) <= 2 * run.seconds + 2


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


# --- what is left behind


def test_a_finished_fit_leaves_nothing_behind(z, photograph):
    """Not an output with its graph, nor, once the run is dropped, any tensor."""

    def alive():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    outputs, network = [], build()

    def watching(x):
        outputs.append(weakref.ref(x))
        return x

    options = dict(network=network, operator=watching, keep=(1,), watch=lambda run: None, stop=dip.HoldOut(), trace=9)
    fit(z, photograph, 3, **options)
    before = alive()
    for _ in range(3):
        fit(z, photograph, 3, **options)
    assert alive() <= before and not any(reference() is not None for reference in outputs)


ALLOCATOR = r"""
import ctypes
calls = []
class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "mallopt":
            calls.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Library
import torch, dip_utils as dip
network, z = dip.SkipNetwork(2, (4,), (0,), seed=0), dip.random_input(2, 16, 16, seed=0)
dip.describe_machine("smoke")
before = len(calls)
dip.fit(network, z, torch.zeros(3, 16, 16), steps=1)
print(before, len(calls))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_allocator_is_left_alone_until_the_first_fit():
    said = subprocess.run([sys.executable, "-c", ALLOCATOR], capture_output=True, text=True, check=True).stdout
    before, after = map(int, said.splitlines()[-1].split())
    assert before == 0 < after


@pytest.mark.parametrize(
    ("capability", "built", "used"),
    [
        ((6, 1), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_86"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((9, 0), ["gfx90a"], True),
    ],
)
def test_a_card_that_this_pytorch_was_not_built_for_is_left_alone(monkeypatch, capsys, capability, built, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.delenv("DIP_BUDGET", raising=False)
    has_card.cache_clear()
    try:
        assert dip.choose_budget() == ("full" if used else "quick")
        assert choose_device() == torch.device("cuda" if used else "cpu")
        assert capsys.readouterr().out.count("The CUDA card is not used") == (not used)
    finally:
        has_card.cache_clear()


def test_a_regularizer_may_be_of_the_weights_alone(z, photograph):
    sizes = {}
    for weight in (0, 0.1):
        network = build()
        decay = lambda x: weight * sum(p.square().mean() for p in network.parameters())  # noqa: B023, E731
        fit(z, photograph, 60, network=network, regularizer=decay)
        sizes[weight] = sum(p.square().sum().item() for p in network.parameters())
    assert sizes[0.1] < 0.9 * sizes[0]


def test_a_regularizer_is_tried_on_values_that_the_network_makes(z, photograph):
    """Which need not lie in [0, 1], nor be those of an image of one colour."""
    network = nn.Sequential(build(), nn.Hardtanh(0.0, 1.0), nn.LogSoftmax(dim=1))
    assert fit(z, photograph, 3, network=network, regularizer=lambda x: (-x).sqrt().mean()).steps == 3
    assert fit(z, photograph, 3, regularizer=lambda x: (1 - x).log().abs().mean()).steps == 3


def test_a_regularizer_on_the_weights_counts_in_every_precision(z, photograph):
    """It reads the weights themselves, of which the network computes with rounded copies."""

    def size(precision, weight):
        network = build()
        decay = lambda x: 0 * x.sum() + weight * sum(p.square().mean() for p in network.parameters())  # noqa: E731
        fit(z, photograph, 60, network=network, regularizer=decay, precision=precision, input_noise=0)
        return sum(p.square().sum().item() for p in network.parameters())

    exact, rounded, without = size("float32", 0.1), size("bfloat16", 0.1), size("bfloat16", 0.0)
    assert exact < 0.8 * without and rounded == pytest.approx(exact, rel=0.1)


PRECISION = """
import torch
from dip_utils.engine.graph import without_tf32
cudnn = torch.backends.cudnn
{}
cudnn.benchmark = True
before = cudnn.benchmark, cudnn.conv.fp32_precision
with without_tf32():
    assert cudnn.benchmark and cudnn.conv.fp32_precision in ("ieee", "none")
    {}
assert (cudnn.benchmark, cudnn.conv.fp32_precision) == before
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "inside"),
    [
        ("", "with cudnn.flags(enabled=False): pass"),
        ('cudnn.conv.fp32_precision = "ieee"', ""),
        ('torch.backends.fp32_precision = "tf32"', ""),
        ("cudnn.allow_tf32 = False", "with cudnn.flags(enabled=False): pass"),
    ],
)
def test_settings_of_cudnn_are_set_for_a_fit_and_put_back(setting, inside):
    """Whether the user has set TF32 in PyTorch's older way, which must work in a fit too, or in its newer one."""
    subprocess.run([sys.executable, "-c", PRECISION.format(setting, inside)], check=True)


def test_a_reference_given_later_is_used_from_there_on(z, photograph):
    part = fit(z, photograph, 5)
    rest = fit(z, photograph, 3, start=part, reference=photograph)
    assert np.isnan(rest.psnr[:5]).all() and np.isfinite(rest.psnr[5:]).all()
    assert rest.psnr[5] == pytest.approx(dip.psnr(photograph, part.output), abs=1e-4)
    assert rest.average_psnr[5] == pytest.approx(dip.psnr(photograph, part.average), abs=1e-4)
