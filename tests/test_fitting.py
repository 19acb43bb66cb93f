import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dip_utils as dip
from dip_utils import memory
from dip_utils.memory import memory_needed
from dip_utils.network import RESTORATION
from dip_utils.problem import Problem

from .conftest import build


def fit(z, target, steps=12, **options):
    options = {"precision": "float32", "device": "cpu"} | options
    return dip.fit(options.pop("network", None) or build(), z, target, steps=steps, **options)


def textbook(z, target, steps, operator=lambda x: x, reference=None, seed=0):
    """The loop as a student writes it, in double precision, with all that `fit` reports."""
    network, generator = build().double(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses, outputs = [], []
    for step in range(steps + 1):
        output = network((z + 1 / 30 * torch.randn(z.shape, generator=generator))[None].double())
        loss = F.mse_loss(operator(output), target[None].double())
        losses.append(loss.item())
        outputs.append(output.detach()[0])
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    average = outputs[0].clone()
    for step, output in enumerate(outputs):
        weight = max(0.01, 1 / (step + 1))
        average = (1 - weight) * average + weight * output
    return np.array(losses), outputs, average


@pytest.mark.parametrize("large", [0, 2**18], ids=["faster forms", "plain forms"])
def test_fit_is_the_textbook_loop(z, photograph, large, monkeypatch):
    monkeypatch.setattr("dip_utils.network.LARGE", 2**18)
    losses, outputs, average = textbook(z, photograph, 30)
    monkeypatch.setattr("dip_utils.network.LARGE", large)
    run = fit(z, photograph, 30, precision="float64", reference=photograph, keep=(0, 7, 30))
    assert np.allclose(run.loss, losses, rtol=1e-8)
    for step in (0, 7, 30):
        assert torch.allclose(run.kept[step], outputs[step].float(), atol=1e-6)
        assert run.psnr[step] == pytest.approx(dip.psnr(photograph, outputs[step].float()), abs=1e-4)
    assert torch.equal(run.output, run.kept[30])
    assert torch.allclose(run.average, average.float(), atol=1e-6)
    assert run.average_psnr[-1] == pytest.approx(dip.psnr(photograph, average.float()), abs=1e-4)


def test_loss_is_taken_behind_the_operator(z, photograph):
    downsample = dip.LanczosDownsampler(4)
    small = dip.resize(photograph, 8, 12)
    losses, _, _ = textbook(z, small, 10, operator=dip.LanczosDownsampler(4).double())
    run = fit(z, small, 10, operator=downsample, precision="float64", reference=photograph)
    assert np.allclose(run.loss, losses, rtol=1e-8)
    assert run.output.shape == photograph.shape
    assert downsample.kernel.dtype == torch.float32


def test_average_weighs_the_newest_output_by_a_hundredth(z, photograph):
    _, _, average = textbook(z, photograph, 150)
    run = fit(z, photograph, 150, precision="float64")
    assert torch.allclose(run.average, average.float(), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_result_to_the_bit(z, photograph, precision):
    first, again = (fit(z, photograph, precision=precision, seed=3) for _ in range(2))
    other = fit(z, photograph, precision=precision, seed=4)
    assert (first.loss == again.loss).all() and torch.equal(first.output, again.output)
    assert not (first.loss == other.loss).all()


def test_what_is_kept_does_not_depend_on_where_the_run_ends(z, photograph):
    short, long = fit(z, photograph, 10, keep=(5, 10)), fit(z, photograph, 20, keep=(5, 10))
    assert torch.equal(short.kept[5], long.kept[5]) and torch.equal(short.kept[10], long.kept[10])


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
        run = fit(z, photograph, 150, precision=precision)
        assert run.loss[-1] < run.loss[0] / 4


# --- going on, saving


def test_sixty_and_forty_steps_are_a_hundred_to_the_bit(z, photograph):
    options = dict(reference=photograph, keep=(0, 60))
    whole = fit(z, photograph, 100, **options)
    part = fit(z, photograph, 60, **options)
    rest = fit(z, photograph, 40, reference=photograph, keep=(80, 100), start=part)
    assert rest.steps == 100 == rest.planned
    for curve in ("loss", "psnr", "average_psnr"):
        assert (getattr(rest, curve) == getattr(whole, curve)).all()
    assert torch.equal(rest.output, whole.output) and torch.equal(rest.average, whole.average)
    assert sorted(rest.kept) == [0, 60, 80, 100]


def test_run_goes_on_in_double_precision(z, photograph):
    whole = fit(z, photograph, 20, precision="float64")
    rest = fit(z, photograph, 10, precision="float64", start=fit(z, photograph, 10, precision="float64"))
    assert np.allclose(rest.loss, whole.loss, rtol=1e-4)


def test_run_survives_its_file(z, photograph, tmp_path):
    run = fit(z, photograph, np.int64(12), reference=photograph, keep=(0, 12))
    run.save(tmp_path / "run.npz")
    loaded = dip.load_fit(tmp_path / "run.npz")
    assert (loaded.loss == run.loss).all() and (loaded.psnr == run.psnr).all()
    assert torch.equal(loaded.output, run.output) and torch.equal(loaded.kept[12], run.kept[12])
    assert loaded.steps == 12 and loaded.remarks == [] and not loaded.running
    on, loaded_on = (fit(z, photograph, start=start, reference=photograph) for start in (run, loaded))
    assert (on.loss == loaded_on.loss).all()
    assert os.listdir(tmp_path) == ["run.npz"]


def test_damaged_and_foreign_files_are_refused(z, photograph, tmp_path):
    path = tmp_path / "run.npz"
    fit(z, photograph).save(path)
    whole = path.read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="truncated or not a run"):
            dip.load_fit(path)
    np.savez(path, loss=np.zeros(3))
    with pytest.raises(ValueError, match="truncated or not a run"):
        dip.load_fit(path)


def test_failed_save_leaves_the_old_file(z, photograph, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    run = fit(z, photograph)
    run.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        run.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.npz"]


# --- stopping


def test_stop_button_keeps_the_run(z, photograph, capsys):
    def press(run):
        if run.running:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    run = fit(z, photograph, 100_000, watch=press, keep=range(0, 100_001))
    assert run.interrupted and not run.running
    assert 0 < run.steps < 100_000 and len(run.loss) == run.steps + 1 and np.isfinite(run.loss).all()
    assert torch.equal(run.kept[run.steps], run.output)
    assert f"Stopped by hand at step {run.steps} of 100000" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    whole = fit(z, photograph, run.steps + 5)
    rest = fit(z, photograph, 5, start=run)
    assert (rest.loss == whole.loss).all()


def test_second_press_raises_as_usual(z, photograph):
    calls = []

    class Stubborn(nn.Module):
        def forward(self, x):
            calls.append(x.shape)
            # The first call is the trial before the fit, which ■ ends like any other code.
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return x

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(z, photograph, 100, operator=Stubborn())
    assert len(calls) == 3
    assert signal.getsignal(signal.SIGINT) is handler


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


def test_stop_before_the_guard_has_seen_a_nan(z, photograph):
    def spoil(x):
        os.kill(os.getpid(), signal.SIGINT)
        return x * float("nan")

    run = fit(z, photograph, 100, operator=Broken([40], spoil), keep=range(101))
    assert run.interrupted and run.steps == 25 and np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert all(torch.isfinite(tensor).all() for name, tensor in run.state.items() if name != "generator")
    assert sorted(run.kept) == list(range(26))


def test_interrupt_inside_a_step_goes_back_to_a_whole_one(z, photograph):
    class Interrupting(nn.Module):
        calls = 0

        def forward(self, x):
            Interrupting.calls += 1
            if Interrupting.calls == 40:
                raise KeyboardInterrupt
            return x

    run = fit(z, photograph, 100, operator=Interrupting(), keep=(0, 25, 30))
    assert run.interrupted and run.steps == 25 and len(run.loss) == 26 and np.isfinite(run.loss).all()
    assert sorted(run.kept) == [0, 25]


def test_fit_runs_outside_of_the_main_thread(z, photograph):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(fit(z, photograph)))
    thread.start()
    thread.join()
    assert runs[0].steps == 12


# --- divergence


class Broken(nn.Module):
    """Spoils the output at some calls."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls, self.spoil, self.count = set(calls), spoil, 0

    def forward(self, x):
        self.count += 1
        return self.spoil(x) if self.count in self.calls else x


@pytest.mark.parametrize("spoil", [lambda x: x * float("nan"), lambda x: x * float("inf")])
def test_nan_is_noticed_and_mended(z, photograph, spoil, capsys):
    run = fit(z, photograph, 100, operator=Broken([61], spoil), precision="bfloat16")
    assert run.steps == 100 and np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert not run.diverged and run.precision == "float32"
    assert run.remarks == ["The loss became NaN or infinite by step 75: going on from step 50 in float32."]
    assert run.remarks[0] in capsys.readouterr().out


@pytest.mark.parametrize("call", [50, 51, 52, 63, 75, 76])
def test_nan_in_a_gradient_spoils_no_copy(z, photograph, call):
    """The loss of that step is finite: only the one after the update shows it, and a look may lie between."""
    run = fit(z, photograph, 100, operator=Broken([call], lambda x: x + 0 * (x - x).sqrt()))
    assert run.steps == 100 and np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert len(run.remarks) == 1 and "going on from step" in run.remarks[0] and not run.diverged


def test_nan_in_the_last_gradient_keeps_the_last_good_state(z, photograph):
    run = fit(z, photograph, 50, operator=Broken([51], lambda x: x + 0 * (x - x).sqrt()), keep=range(51))
    assert run.diverged and run.steps == 25 and sorted(run.kept) == list(range(26))
    assert np.isfinite(run.loss).all() and torch.isfinite(run.output).all()
    assert run.remarks == ["The last losses are NaN or infinite: the run ends at step 25, the last good state."]
    assert np.isfinite(fit(z, photograph, 5, start=run).loss).all()


@pytest.mark.parametrize("call", [302, 321, 323, 325, 326])
def test_collapse_is_noticed(z, photograph, call):
    """From some step on the network has forgotten everything, and the loss stays up."""
    network = build()

    def collapse(x):
        network.head.weight.data.zero_()
        network.head.bias.data.fill_(-20)
        return x

    run = fit(z, photograph, 400, operator=Broken([call], collapse), network=network)
    assert len(run.remarks) == 1 and "stayed high after a jump by step 3" in run.remarks[0]
    assert run.loss[-25:].max() < run.loss[0] / 3


def test_hopeless_divergence_stops_with_the_best_state(z, photograph):
    run = fit(z, photograph, 200, operator=Broken(range(61, 10_000), lambda x: x * float("nan")))
    assert run.diverged and run.steps == 50 and np.isfinite(run.loss[:50]).all()
    assert len(run.remarks) == 4 and "given up" in run.remarks[-1]
    assert torch.isfinite(run.output).all()


# --- watching


def test_watch_is_bounded_in_share_of_the_time(z, photograph):
    """A slow watch is called rarely: the bound holds up to the one call that overdraws it."""
    calls = []

    def slow(run):
        calls.append(run.steps)
        time.sleep(0.05)

    run = fit(z, photograph, 400, watch=slow)
    assert calls[-1] == 400
    while_running = len(calls) - 1
    assert while_running <= 2 + 0.02 * run.seconds / 0.05


def test_watch_sees_the_run_so_far(z, photograph, monkeypatch):
    monkeypatch.setattr("dip_utils.guarding.WATCH_SHARE", 1.0)
    seen = []
    watch = lambda run: seen.append((run.steps, run.running, len(run.psnr), tuple(run.output.shape)))  # noqa: E731
    fit(z, photograph, 600, watch=watch, reference=photograph)
    assert seen[-1] == (600, False, 601, (3, 32, 48))
    assert all(running and length == steps + 1 for steps, running, length, _ in seen[:-1]) and len(seen) > 1


# --- memory


def test_too_large_a_fit_is_refused_at_once_with_advice(z, photograph, monkeypatch):
    monkeypatch.setattr("dip_utils.memory.available_memory", lambda device: 6e9)
    network = dip.SkipNetwork(**RESTORATION, seed=0)
    words = r"^z: a fit of 2464 × 3264 needs about .* GB, 6.0 GB are free on cpu; wants"
    with pytest.raises(MemoryError, match=words) as raised:
        dip.fit(network, torch.zeros(32, 2464, 3264), torch.zeros(3, 2464, 3264), steps=1, device="cpu")
    height, width = map(int, re.search(r"at most (\d+) × (\d+)", str(raised.value)).groups())
    assert height % 32 == width % 32 == 0
    needed = memory_needed(network, height, width, precision=dip.choose_precision(), device=torch.device("cpu"))
    assert 3e9 < needed < 6e9


def test_too_much_to_keep_is_refused_at_once(z, photograph):
    with pytest.raises(MemoryError, match=r"keep, trace: 1 images and 46,080,0.* need 18\d\.. GB, .* GB are free"):
        fit(z, photograph, 10**7, keep=(0,), trace=4608)


def test_limit_of_a_container(tmp_path):
    names = [tmp_path / name for name in ("max", "current", "stat")]
    assert memory.left_in(*names) == []
    names[1].write_text("700\n")
    names[2].write_text("anon 400\ninactive_file 200\n")
    for limit, left in (("max", []), ("1000", [500]), ("800", [300]), ("400", [0])):
        names[0].write_text(limit + "\n")
        assert memory.left_in(*names) == left


def test_running_out_of_memory_becomes_that_message_and_the_next_fit_works(z, photograph):
    class Greedy(nn.Module):
        calls = 0

        def forward(self, x):
            Greedy.calls += 1
            # The first is the check of the arguments.
            if Greedy.calls > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x

    network = build()
    with pytest.raises(MemoryError, match="z: a fit of 32 × 48 ran out of memory") as raised:
        fit(z, photograph, operator=Greedy(), network=network)
    assert raised.value.__traceback__.tb_next.tb_frame.f_locals.get("problem") is None
    assert fit(z, photograph, network=network).steps == 12


PEAK = r"""
import psutil, re, sys, torch
import dip_utils as dip
from dip_utils import memory, network as networks
name, height, width, precision = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
network = dip.SkipNetwork(**getattr(networks, name), seed=0)
z, target = dip.random_input(network.input_channels, height, width, seed=0), torch.zeros(3, height, width)
before = psutil.Process().memory_info().rss
dip.fit(network, z, target, steps=2, precision=precision, device="cpu", reference=target)
# Not ru_maxrss, which counts the process that started this one.
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024 - before
needed = memory.memory_needed(network, height, width, precision=getattr(torch, precision), device=torch.device("cpu"))
print(needed / peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's accounting")
@pytest.mark.parametrize("name", ["PARAMETRIZATION", "RESTORATION"])
@pytest.mark.parametrize("size", [(256, 192), (320, 320), (384, 544)])
def test_memory_model_is_within_thirty_percent_of_the_measured_peak(name, size):
    command = [sys.executable, "-c", PEAK, name, *map(str, size), "float32"]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.7 < ratio < 1.3


def test_a_finished_fit_leaves_nothing_behind(z, photograph, monkeypatch):
    """Not the problem with its buffers, nor, once the run is dropped, an output."""
    problems = []
    original = Problem.__init__

    def watched(problem, *arguments, **options):
        original(problem, *arguments, **options)
        problems.append(weakref.ref(problem))

    monkeypatch.setattr(Problem, "__init__", watched)
    outputs = [weakref.ref(fit(z, photograph, 3, keep=(1,), watch=lambda run: None).output) for _ in range(3)]
    gc.collect()
    assert len(problems) == 3 and not any(reference() for reference in (*problems, *outputs))
