"""The CUDA path; each test is skipped where there is no card."""

import os
import signal

import numpy as np
import pytest
import torch

import dip_utils as dip
from dip_utils.problem import Problem

from .conftest import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def fit(z, target, steps=60, **options):
    return dip.fit(build(), z, target, steps=steps, **({"device": "cuda", "precision": "float32"} | options))


def test_graph_is_captured_and_changes_nothing(z, photograph, monkeypatch):
    captured = []
    capture = Problem.capture
    monkeypatch.setattr(Problem, "capture", lambda *args: captured.append(capture(*args)) or captured[-1])
    graph = fit(z, photograph, precision="float64", reference=photograph)
    assert len(captured) == 1 and captured[0] is not None
    monkeypatch.setattr("dip_utils.problem.WARM_UP_STEPS", 10**9)
    eager = fit(z, photograph, precision="float64", reference=photograph)
    assert graph.remarks == eager.remarks == []
    assert np.allclose(graph.loss, eager.loss, rtol=1e-6)
    assert np.allclose(graph.psnr, eager.psnr, atol=1e-4)


def test_failed_capture_falls_back_with_one_line(z, photograph, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("capture refused\nand more")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    run = fit(z, photograph)
    assert run.steps == 60 and np.isfinite(run.loss).all()
    assert len(run.remarks) == 1 and run.remarks[0].endswith("capture refused")
    assert capsys.readouterr().out.count("\n") == 1


def test_every_precision_of_the_card_fits(z, photograph):
    for precision in ("auto", "float32", "float16"):
        run = fit(z, photograph, 200, precision=precision)
        assert run.loss[-1] < run.loss[0] / 4


def test_kept_images_are_those_of_their_steps(z, photograph):
    run = fit(z, photograph, keep=range(61), reference=photograph)
    for step, image in run.kept.items():
        assert dip.psnr(photograph, image) == pytest.approx(run.psnr[step], abs=1e-3)


def test_run_goes_on_from_its_state(z, photograph):
    whole, part = fit(z, photograph, 60), fit(z, photograph, 40)
    rest = fit(z, photograph, 20, start=part)
    assert np.allclose(rest.loss, whole.loss, rtol=1e-2)


def test_stop_button_ends_a_run_of_graphs(z, photograph):
    run = fit(z, photograph, 10**6, watch=lambda run: run.running and os.kill(os.getpid(), signal.SIGINT))
    assert run.interrupted and 0 < run.steps < 10**6 and np.isfinite(run.loss).all()


def test_out_of_memory_becomes_advice_and_frees_what_it_held(z, photograph, monkeypatch):
    monkeypatch.setattr("dip_utils.memory.available_memory", lambda device: 1e15)
    network = dip.SkipNetwork(2, (4096,), (0,), seed=0)
    side = 4096
    with pytest.raises(MemoryError, match="ran out of memory"):
        dip.fit(network, torch.zeros(2, side, side), torch.zeros(3, side, side), steps=1, device="cuda")
    assert torch.cuda.memory_allocated() < 1e9
    assert fit(z, photograph).steps == 60


@pytest.mark.parametrize(
    "stop", [dip.HoldOut(first=5), dip.WindowedVariance(window=8, first=10), dip.ExponentialVariance(first=5)]
)
def test_criteria_are_part_of_the_graph(z, photograph, stop, monkeypatch):
    options = {"precision": "float64", "stop": stop, "trace": 100}
    graph = fit(z, photograph, **options)
    monkeypatch.setattr("dip_utils.problem.WARM_UP_STEPS", 10**9)
    eager = fit(z, photograph, **options)
    assert graph.remarks == eager.remarks == []
    assert np.allclose(graph.criterion, eager.criterion, rtol=1e-5)
    assert graph.chosen_step == eager.chosen_step and torch.allclose(graph.chosen, eager.chosen, atol=1e-5)
    assert torch.allclose(graph.trace, eager.trace, atol=1e-5)
