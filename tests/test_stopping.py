"""The criteria against slow, obvious versions; and that `stop` never sees the reference."""

import numpy as np
import pytest
import torch

import dip_utils as dip

from .conftest import build

CRITERIA = {
    "windowed": lambda **options: dip.WindowedVariance(window=10, first=20, **options),
    "exponential": lambda **options: dip.ExponentialVariance(0.2, first=20, **options),
    "hold-out": lambda **options: dip.HoldOut(values=200, first=20, **options),
}


def fit(z, target, steps=60, **options):
    return dip.fit(build(), z, target, steps=steps, **({"precision": "float64", "device": "cpu"} | options))


@pytest.fixture
def noisy(photograph):
    return dip.add_gaussian_noise(photograph, 0.1, seed=0)


@pytest.fixture
def trace():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 7, generator=generator, dtype=torch.float64).cumsum(0)


def test_windowed_variance_is_that_of_the_last_outputs(trace):
    curve = dip.WindowedVariance(window=6).curve(trace)
    for step in range(5):
        assert curve[step] == np.inf
    for step in range(5, 40):
        window = trace[step - 5 : step + 1].numpy()
        assert curve[step] == pytest.approx(((window - window.mean(0)) ** 2).sum(1).mean() / 7)


def test_exponential_variance_is_that_of_the_paper(trace):
    curve, weight = dip.ExponentialVariance(weight=0.2).curve(trace), 0.2
    mean, variance = trace[0].numpy().copy(), 0.0
    for step in range(1, 40):
        difference = trace[step].numpy() - mean
        variance = (1 - weight) * variance + weight * (1 - weight) * (difference @ difference) / 7
        mean = (1 - weight) * mean + weight * trace[step].numpy()
        # While it fills, from zero on, it would always be least.
        assert curve[step] == (np.inf if step < 15 else pytest.approx(variance))


def test_settings_from_numpy_are_settings():
    for make in (
        lambda number: dip.HoldOut(seed=number(3)),
        lambda number: dip.HoldOut(values=number(50), first=number(7)),
        lambda number: dip.WindowedVariance(window=number(20), values=number(50)),
    ):
        assert make(np.int64).kind() == make(int).kind()
    assert dip.ExponentialVariance(np.float32(0.5)).kind() == dip.ExponentialVariance(0.5).kind()


def test_least_value_is_chosen_and_patience_ends_the_search():
    curve = [1, 0.1, 9, 8, 7, 8, 8, 6, 9, 9, 9, 5]
    assert dip.HoldOut(patience=3, first=2).choose(curve) == 7
    assert dip.HoldOut(patience=2, first=2).choose(curve) == 4
    assert dip.HoldOut(patience=None, first=2).choose(curve) == 11
    assert dip.HoldOut(patience=3, first=0).choose(curve) == 1
    assert dip.HoldOut(patience=3, first=20).choose(curve) is None
    assert dip.HoldOut(first=0).choose([np.inf, np.nan]) is None


@pytest.mark.parametrize("name", ["windowed", "exponential"])
def test_during_the_run_as_after_it(z, noisy, name):
    stop = CRITERIA[name](patience=None, values=500)
    run = fit(z, noisy, stop=stop, trace=500)
    assert run.trace.shape == (61, 500)
    assert np.allclose(run.criterion[20:], stop.curve(run.trace)[20:], rtol=1e-4)
    assert stop.choose(run.criterion) == run.chosen_step


def test_the_trace_is_not_what_is_held_out(z, noisy):
    """A trace of values that are never fitted would say nothing about those that are."""
    stop = dip.HoldOut(patience=None)
    run = fit(z, noisy, 5, stop=stop, trace=1000, keep=(5,))
    held = stop.begin(noisy[None], noisy[None], None)[0] == 0
    held_values = run.kept[5][held]
    share = torch.isin(run.trace[5], held_values).float().mean().item()
    # By chance a twentieth of them.
    assert 0.02 < share < 0.08


def test_trace_is_part_of_the_outputs(z, noisy):
    run = fit(z, noisy, trace=noisy.numel(), keep=(0, 33))
    for step in (0, 33):
        assert torch.equal(run.trace[step].sort().values, run.kept[step].flatten().sort().values)


@pytest.mark.parametrize("name", CRITERIA)
def test_chosen_is_the_average_at_the_chosen_step(z, noisy, name):
    run = fit(z, noisy, stop=CRITERIA[name](patience=None))
    assert run.chosen_step == 20 + np.argmin(run.criterion[20:])
    shorter = fit(z, noisy, steps=run.chosen_step, stop=CRITERIA[name](patience=None))
    assert torch.allclose(run.chosen, shorter.average, atol=1e-6)


def test_hold_out_measures_the_average_where_nothing_is_fitted(z, noisy):
    stop = dip.HoldOut(values=60, patience=None)
    run = fit(z, noisy, stop=stop)
    held = stop.begin(noisy[None], noisy[None], None)[0] == 0
    assert held.sum() == 60
    assert run.criterion[-1] == pytest.approx((run.average - noisy)[held].square().mean().item(), rel=1e-4)
    assert run.loss[-1] == pytest.approx((run.output - noisy)[~held].square().mean().item(), rel=1e-4)
    # What stands at the pixels held out makes no difference to the training.
    other = fit(z, torch.where(held, 1 - noisy, noisy), stop=stop)
    assert torch.equal(run.output, other.output) and run.criterion[-1] != other.criterion[-1]


def test_hold_out_behind_an_operator(z, photograph):
    small, downsample = dip.resize(photograph, 8, 12), dip.LanczosDownsampler(4)
    stop = dip.HoldOut(patience=None)
    run = fit(z, small, operator=downsample, stop=stop)
    held = stop.begin(small[None], small[None], None)[0] == 0
    # A twentieth of 3 × 8 × 12 values, rounded up.
    assert held.sum() == 15
    error = (downsample(run.average) - small)[held].square().mean().item()
    assert run.criterion[-1] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_reference_is_never_seen(z, noisy, photograph, name):
    runs = [
        fit(z, noisy, steps=200, stop=CRITERIA[name](patience=20), reference=reference)
        for reference in (None, photograph, 1 - photograph)
    ]
    for run in runs[1:]:
        assert run.steps == runs[0].steps and run.chosen_step == runs[0].chosen_step
        assert np.array_equal(run.criterion, runs[0].criterion) and np.array_equal(run.loss, runs[0].loss)
        assert torch.equal(run.chosen, runs[0].chosen) and torch.equal(run.output, runs[0].output)


def test_run_ends_when_patience_is_spent(z):
    """Pure noise: nothing can be predicted at the pixels held out, so the least error comes soon."""
    noise = dip.uniform_noise(3, 32, 48, seed=0)
    run = fit(z, noise, steps=3000, stop=dip.HoldOut(patience=60, first=10), precision="float32")
    assert run.stopped and not run.interrupted and not run.running
    assert 60 <= run.steps - run.chosen_step < 60 + 25
    assert dip.HoldOut(patience=60, first=10).choose(run.criterion) == run.chosen_step
    assert len(run.loss) == run.steps + 1 and np.isfinite(run.loss).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_sixty_and_forty_steps_are_a_hundred_to_the_bit(z, noisy, name, tmp_path):
    stop = CRITERIA[name](patience=None)
    options = {"precision": "float32", "stop": stop, "trace": 50}
    whole, part = fit(z, noisy, 100, **options), fit(z, noisy, 60, **options)
    part.save(tmp_path / "run.npz")
    rest = fit(z, noisy, 40, start=dip.load_fit(tmp_path / "run.npz"), **options)
    assert np.array_equal(whole.criterion, rest.criterion) and torch.equal(whole.trace, rest.trace)
    assert whole.chosen_step == rest.chosen_step and torch.equal(whole.chosen, rest.chosen)
    loaded = dip.load_fit(tmp_path / "run.npz")
    assert torch.equal(loaded.trace, part.trace) and torch.equal(loaded.chosen, part.chosen)
    assert np.array_equal(loaded.criterion, part.criterion) and loaded.chosen_step == part.chosen_step


def test_run_without_a_criterion_may_go_on_with_one(z, noisy):
    part = fit(z, noisy, 30)
    rest = fit(z, noisy, 60, start=part, stop=CRITERIA["windowed"](patience=None, values=50), trace=50)
    assert np.isnan(rest.criterion[:30]).all() and np.isfinite(rest.criterion[40:]).all()
    assert rest.chosen_step >= 39 and rest.trace.shape == (91, 50)
    afterwards = CRITERIA["windowed"]().curve(rest.trace)
    assert np.allclose(afterwards[40:], rest.criterion[40:], rtol=1e-4) and np.isnan(afterwards[:30]).all()


@pytest.mark.parametrize("window", [10, 12])
def test_another_criterion_begins_anew(z, noisy, window):
    """What another criterion has chosen, or the same with other settings, says nothing about this one."""
    part = fit(z, noisy, 30, stop=dip.WindowedVariance(window=8, first=10))
    stops = [dip.WindowedVariance(window=window, first=10), dip.ExponentialVariance(0.2, first=10)]
    for stop in stops:
        rest = fit(z, noisy, 30, start=part, stop=stop)
        assert np.isnan(rest.criterion[:30]).all() and rest.chosen_step > 30


def test_hold_out_is_refused_where_its_values_were_fitted(z, noisy):
    for earlier in (None, dip.HoldOut(seed=1), dip.HoldOut(values=7)):
        part = fit(z, noisy, 30, stop=earlier)
        with pytest.raises(ValueError, match="stop: got a HoldOut, but the run in start has fitted the values"):
            fit(z, noisy, 30, start=part, stop=dip.HoldOut())
    part = fit(z, noisy, 30, stop=dip.HoldOut(patience=None))
    assert fit(z, noisy, 30, start=part, stop=dip.HoldOut(patience=7)).steps > 30
    assert fit(z, noisy, 30, start=part, stop=dip.HoldOut(first=40)).chosen_step >= 40


class Scripted(dip.HoldOut):
    """A criterion whose values are known."""

    def __init__(self, curve, **options):
        super().__init__(**options)
        self.script = curve

    def begin(self, target, output, operator):
        self.now, self.script_here = 0, torch.tensor(self.script, dtype=output.dtype)
        return super().begin(target, output, operator)

    def measure(self, output, average):
        self.now += 1
        return self.script_here[self.now - 1]


def test_what_comes_after_patience_is_too_late(z, noisy):
    """`fit` looks every 25 steps; it must choose what a look at every step would have chosen."""
    curve = [9.0] * 10 + [5.0] + [9.0] * 12 + [1.0] + [9.0] * 80
    stop = Scripted(curve, patience=8, first=2)
    run = fit(z, noisy, 100, stop=stop)
    assert run.chosen_step == stop.choose(curve) == 10
    assert run.stopped and run.steps == 25
    patient = Scripted(curve, patience=13, first=2)
    assert fit(z, noisy, 100, stop=patient).chosen_step == patient.choose(curve) == 23


def test_value_of_the_last_output_comes_within_patience(z, noisy):
    """A look after 25 steps has seen 25 values, 0 to 24; the last output adds one."""
    curve = [5.0] + [9.0] * 24 + [1.0] + [9.0] * 80
    stop = Scripted(curve, patience=25, first=0)
    run = fit(z, noisy, 100, stop=stop)
    assert run.chosen_step == stop.choose(curve) == 25 and run.stopped and run.steps > 50


def test_patience_that_ends_with_the_run_has_stopped_nothing(z, noisy):
    run = fit(z, noisy, 25, stop=Scripted([1.0] + [9.0] * 30, patience=10, first=0))
    assert run.chosen_step == 0 and not run.stopped


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_in_short_floats(z, noisy, name):
    run = fit(z, noisy, 60, stop=CRITERIA[name](patience=None), precision="bfloat16")
    assert np.isfinite(run.criterion[20:]).all() and run.chosen_step >= 20


def test_target_in_another_memory_order(z, noisy):
    turned = noisy.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    runs = [fit(z, target, stop=dip.HoldOut(patience=None)) for target in (noisy, turned)]
    assert np.array_equal(runs[0].criterion, runs[1].criterion)


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_survives_a_divergence(z, noisy, name):
    calls = []

    def spoiling(x):
        # Hold-out applies the operator to the average too, without a gradient.
        calls.append(x.requires_grad)
        return x * float("nan") if x.requires_grad and sum(calls) == 61 else x

    run = fit(z, noisy, 100, operator=spoiling, stop=CRITERIA[name](patience=None))
    assert len(run.remarks) == 1 and "going on from step" in run.remarks[0]
    assert run.steps == 100 and np.isfinite(run.criterion[20:]).all()
    assert run.chosen_step == 20 + np.argmin(run.criterion[20:])


def test_wasted_patience_chooses_nothing(z, noisy):
    run = fit(z, noisy, 30, stop=dip.HoldOut(first=50))
    assert run.chosen is None and run.chosen_step is None and not run.stopped


def test_figure_of_a_run_that_got_its_reference_later(z, noisy, photograph, monkeypatch):
    figures = []
    monkeypatch.setattr("dip_utils.figures.show", lambda figure, *_: figures.append(figure))
    rest = fit(z, noisy, 30, start=fit(z, noisy, 30), reference=photograph)
    assert np.isnan(rest.average_psnr[:30]).all()
    dip.plot_stopping(rest, {"a": np.ones(61)}, {"a": 40})
    star = next(line for line in figures[0].axes[0].lines if line.get_marker() == "*")
    assert list(star.get_xdata()) == [30 + np.argmax(rest.average_psnr[30:])]
