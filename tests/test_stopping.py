"""The criteria against slow, obvious versions; and that `stop` never sees the reference."""

from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch.nn import functional as F

import dip_utils as dip

from .cell import cell
from .conftest import build
from .textbook import textbook

HOLD_OUT = dip.HoldOut(first=20, patience=None)


def fit(z, target, steps=60, *, network=None, **options):
    options = {"precision": "float64", "device": "cpu"} | options
    return dip.fit(network or build(), z, target, steps=steps, **options)


@pytest.fixture
def noisy(photograph):
    return dip.add_gaussian_noise(photograph, 0.1, seed=0)


@pytest.fixture
def trace():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 7, generator=generator, dtype=torch.float64).cumsum(0)


def left_out(stop, image):
    """Where the pixels are that are not fitted, (H, W)."""
    height, width = image.shape[1:]
    mask = torch.zeros(height * width, dtype=torch.bool)
    mask[stop.choose(height * width)] = True
    return mask.view(height, width)


# --- of a finished run: the two variances, and what is chosen by a curve


def test_windowed_variance_is_that_of_the_last_outputs(trace):
    curve = dip.windowed_variance(trace, window=6)
    assert np.isnan(curve[:5]).all() and len(curve) == 40
    for step in range(5, 40):
        window = trace[step - 5 : step + 1].numpy()
        assert curve[step] == pytest.approx(((window - window.mean(0)) ** 2).sum(1).mean() / 7)
    assert np.isnan(dip.windowed_variance(trace, window=41)).all()


def test_exponential_variance_is_that_of_the_paper(trace):
    curve, weight = dip.exponential_variance(trace, weight=0.2), 0.2
    mean, variance = trace[0].numpy().copy(), 0.0
    # While it fills, from zero on, it would always be least.
    assert np.isnan(curve[:15]).all() and len(curve) == 40
    for step in range(1, 40):
        difference = trace[step].numpy() - mean
        variance = (1 - weight) * variance + weight * (1 - weight) * (difference @ difference) / 7
        mean = (1 - weight) * mean + weight * trace[step].numpy()
        assert step < 15 or curve[step] == pytest.approx(variance)


def test_exponential_variance_begins_where_the_trace_does(trace):
    late = torch.cat([torch.full((6, trace.shape[1]), float("nan")), trace])
    curve = dip.exponential_variance(late, weight=0.2)
    assert np.isnan(curve[:6]).all()
    np.testing.assert_array_equal(curve[6:], dip.exponential_variance(trace, weight=0.2))


def test_least_value_is_chosen_and_patience_ends_the_search():
    curve = [1, 0.1, 9, 8, 7, 8, 8, 6, 9, 9, 9, 5]
    assert dip.choose_step(curve, patience=3, first=2) == 7
    assert dip.choose_step(curve, patience=2, first=2) == 4
    assert dip.choose_step(curve, patience=100, first=2) == 11
    assert dip.choose_step(curve, patience=3, first=0) == 1
    assert dip.choose_step(curve, patience=3, first=20) is None
    assert dip.choose_step([np.inf, np.nan], first=0) is None
    assert dip.choose_step([np.nan, np.nan, 3, np.nan, 2], patience=2, first=0) == 4


def test_variances_of_a_run_are_those_of_its_outputs(z, noisy):
    """Of all values there, of some of them by sampling, and after a part of the run without a trace."""
    run = fit(z, noisy, 40, trace=noisy.numel(), keep=range(41))
    outputs = torch.stack([run.kept[step].flatten() for step in range(41)])
    some = fit(z, noisy, 40, trace=1000)
    late = fit(z, noisy, 30, start=fit(z, noisy, 10), trace=noisy.numel())
    assert some.trace.shape == (41, 1000) and late.trace.shape == (41, noisy.numel())
    assert late.trace[:10].isnan().all()
    windowed, exponential = partial(dip.windowed_variance, window=20), partial(dip.exponential_variance, weight=0.2)
    for variance, filled in ((windowed, 19), (exponential, 15)):
        curve = variance(run.trace)
        assert np.allclose(curve, variance(outputs), rtol=1e-4, equal_nan=True) and np.isfinite(curve[19:]).all()
        assert np.allclose(variance(some.trace)[19:], curve[19:], rtol=0.2)
        curve = variance(late.trace)
        assert np.isnan(curve[: 10 + filled]).all() and np.isfinite(curve[10 + filled :]).all()


def test_trace_is_part_of_the_outputs(z, noisy):
    run = fit(z, noisy, trace=noisy.numel(), keep=(0, 33))
    for step in (0, 33):
        assert torch.equal(run.trace[step].sort().values, run.kept[step].flatten().sort().values)
    # No more than there is.
    assert fit(z, noisy, 2, trace=10**6).trace.shape == (3, noisy.numel())
    assert fit(z, noisy, 2).trace is None


def test_the_trace_is_not_what_is_held_out(z, noisy):
    """A trace of values that are never fitted would say nothing about those that are."""
    stop = dip.HoldOut(patience=None)
    run = fit(z, noisy, 5, stop=stop, trace=1000, keep=(5,))
    held_values = run.kept[5][:, left_out(stop, noisy)]
    share = torch.isin(run.trace[5], held_values).float().mean().item()
    # By chance a twentieth of them.
    assert 0.02 < share < 0.08


# --- hold-out


def test_hold_out_measures_the_average_where_nothing_is_fitted(z, noisy):
    run = fit(z, noisy, stop=HOLD_OUT)
    held = left_out(HOLD_OUT, noisy)
    assert held.sum() == 77
    # What stands at the pixels held out makes no difference to the training.
    other = fit(z, torch.where(held, 1 - noisy, noisy), stop=HOLD_OUT)
    assert torch.equal(run.output, other.output) and run.held_out[-1] != other.held_out[-1]
    # All of it is what a student would write.
    expected = textbook(z, noisy, 60, seen=~held)
    assert np.allclose(run.loss, expected.loss, rtol=1e-7)
    errors = [(average - noisy)[:, held].square().mean().item() for average in expected.averages]
    assert np.allclose(run.held_out, errors, rtol=1e-7)
    assert run.chosen_step == 20 + np.argmin(errors[20:])
    assert torch.allclose(run.chosen, expected.averages[run.chosen_step].float(), atol=1e-6)
    assert torch.equal(run.result, run.chosen)


@pytest.mark.parametrize(("pixels", "number"), [(2, 1), (32 * 48, 77), (256 * 256, 3277), (512 * 512, 5000)])
def test_hold_out_leaves_out_a_twentieth_rounded_up_or_5000(pixels, number):
    chosen = dip.HoldOut().choose(pixels)
    assert len(chosen) == len(set(chosen.tolist())) == number and max(chosen) < pixels


def test_a_single_pixel_cannot_be_held_out(z, noisy):
    with pytest.raises(ValueError, match="target: got a single pixel; wants two at least"):
        fit(z, noisy[:, :1, :1], operator=torch.nn.AdaptiveAvgPool2d(1), stop=dip.HoldOut())


def test_hold_out_behind_an_operator(z, photograph):
    small, downsample = dip.resize(photograph, 8, 12), dip.LanczosDownsampler(4)
    stop = dip.HoldOut(patience=None)
    run = fit(z, small, operator=downsample, stop=stop)
    held = left_out(stop, small)
    # A twentieth of 8 × 12 pixels, rounded up.
    assert held.sum() == 5
    error = (downsample(run.average) - small)[:, held].square().mean().item()
    assert run.held_out[-1] == pytest.approx(error, rel=1e-4)


LOSSES = {
    "absolute error": F.l1_loss,
    "Huber": lambda output, target: F.huber_loss(output, target, delta=0.1),
    "weighted": lambda output, target: ((output - target).abs() ** 1.5 * (1 + target)).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_hold_out_with_another_loss(z, noisy, name):
    loss = LOSSES[name]
    run = fit(z, noisy, stop=HOLD_OUT, loss=loss)
    held = left_out(HOLD_OUT, noisy)
    expected = textbook(z, noisy, 60, seen=~held, loss=loss)
    assert np.allclose(run.loss, expected.loss, rtol=1e-6)
    errors = [loss(average[:, held], noisy[:, held].double()).item() for average in expected.averages]
    assert np.allclose(run.held_out, errors, rtol=1e-6)


def of_neighbours(output, target):
    return F.conv2d(output - target, torch.ones(3, 1, 3, 3, dtype=torch.float64), groups=3).square().mean()


NO_MEANS = {
    "squares of neighbours": (
        of_neighbours,
        "loss with HoldOut.* got one that fails on a tensor of 1 × 3 .*, float64, on cpu",
    ),
    "steps": (lambda output, target: F.l1_loss(output.diff(dim=-1), target.diff(dim=-1)), "a mean over pixels"),
    "a sum": (lambda output, target: F.mse_loss(output, target, reduction="sum"), "a mean over pixels"),
    "a root": (lambda output, target: F.mse_loss(output, target).sqrt(), "a mean over pixels"),
    "a maximum": (lambda output, target: (output - target).abs().max(), "a mean over pixels"),
    "smoothness": (lambda output, target: F.mse_loss(output, target) + dip.total_variation(output), "over pixels"),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_over_pixels_is_refused_with_hold_out(z, noisy, name):
    """It could not be taken apart into pixels that are fitted and pixels that are not."""
    loss, words = NO_MEANS[name]
    assert fit(z, noisy, 1, loss=loss).steps == 1
    with pytest.raises(ValueError, match=words):
        fit(z, noisy, 1, loss=loss, stop=dip.HoldOut())


WEIGHTS = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64).view(3, 1, 1)
MEANS = {
    "weighted channels": lambda output, target: (WEIGHTS * (output - target) ** 2).mean(),
    "luma": lambda output, target: ((output - target) * WEIGHTS).sum(1).square().mean(),
    "with a constant": lambda output, target: F.l1_loss(output, target) + 5,
    "Poisson": lambda output, target: F.poisson_nll_loss(output, target, log_input=False),
    "Itakura and Saito": lambda output, target: (lambda ratio: (ratio - ratio.log()).mean())(
        (target + 0.1) / (output + 0.1)
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_hold_out_with_any_mean_over_pixels(z, noisy, name):
    run, held = fit(z, noisy, stop=HOLD_OUT, loss=MEANS[name]), left_out(HOLD_OUT, noisy)

    def of_pixels(image, where):
        return MEANS[name](*(picture.double()[None, :, where][..., None] for picture in (image, noisy))).item()

    assert run.held_out[-1] == pytest.approx(of_pixels(run.average, held), rel=1e-5)
    assert run.loss[-1] == pytest.approx(of_pixels(run.output, ~held), rel=1e-5)
    assert not run.diverged and run.remarks == []


def test_hold_out_refuses_a_loss_without_value_for_a_perfect_copy(z, noisy):
    loss = lambda output, target: (output - target * torch.log(output)).mean()  # noqa: E731
    noisy[0, 0, 0] = 0
    with pytest.raises(ValueError, match="loss: got one that is not finite for a perfect copy"):
        fit(z, noisy, 1, loss=loss, stop=dip.HoldOut())


def test_the_reference_is_never_seen(z, noisy, photograph):
    runs = [
        fit(z, noisy, stop=dip.HoldOut(patience=5, first=5), reference=reference)
        for reference in (None, photograph, 1 - photograph)
    ]
    for run in runs[1:]:
        assert run.steps == runs[0].steps and run.chosen_step == runs[0].chosen_step
        assert np.array_equal(run.held_out, runs[0].held_out) and np.array_equal(run.loss, runs[0].loss)
        assert torch.equal(run.chosen, runs[0].chosen) and torch.equal(run.output, runs[0].output)


def test_run_ends_when_patience_is_spent(z):
    """Pure noise: nothing can be predicted at the pixels held out, so the least error comes soon."""
    noise = dip.uniform_noise(3, 32, 48, seed=0)
    run = fit(z, noise, 3000, stop=dip.HoldOut(patience=60, first=10), precision="float32")
    assert run.steps < run.planned and not (run.interrupted or run.running or run.diverged)
    assert 60 <= run.steps - run.chosen_step < 60 + 25
    assert dip.choose_step(run.held_out, patience=60, first=10) == run.chosen_step
    assert len(run.loss) == run.steps + 1 and np.isfinite(run.loss).all()


def scripted(curve):
    """A loss whose values at the pixels held out, and only there, are known."""
    values = iter(curve)

    def loss(output, target):
        # The pixels held out come in a row, those of the average without a gradient; of a perfect copy they are none.
        measured = output.shape[2] == 1 and not output.requires_grad and output is not target
        return output.new_tensor(next(values)) if measured else F.mse_loss(output, target)

    return loss


@pytest.mark.parametrize(("patience", "chosen", "end"), [(8, 10, 25), (13, 23, 50), (None, 23, 100)])
def test_what_comes_after_patience_is_too_late(z, noisy, patience, chosen, end):
    """`fit` looks every 25 steps; it must choose what a look at every step would have chosen."""
    curve = [9.0] * 10 + [5.0] + [9.0] * 12 + [1.0] + [9.0] * 80
    run = fit(z, noisy, 100, loss=scripted(curve), stop=dip.HoldOut(patience=patience, first=2))
    assert run.chosen_step == chosen == dip.choose_step(curve, patience or 1000, first=2)
    assert run.steps == end


def test_value_of_the_last_output_comes_within_patience(z, noisy):
    """Of step 25, when it is looked for the first time."""
    curve = [5.0] + [9.0] * 24 + [1.0] + [9.0] * 80
    run = fit(z, noisy, 100, loss=scripted(curve), stop=dip.HoldOut(patience=25, first=0))
    assert run.chosen_step == dip.choose_step(curve, 25, first=0) == 25 and 50 < run.steps < 100


@pytest.mark.parametrize("seed", range(8))
def test_choice_is_that_of_a_look_at_every_step(seed):
    random = np.random.default_rng(seed)
    curve, patience, first = (
        random.permutation(111).astype(float),
        int(random.integers(1, 60)),
        int(random.integers(40)),
    )
    image, network = dip.uniform_noise(1, 8, 8, seed=0), build(1, (2,), (0,), 1)
    stop = dip.HoldOut(patience=patience, first=first)
    run = fit(dip.random_input(1, 8, 8, seed=0), image, 110, network=network, loss=scripted(curve), stop=stop)
    assert run.chosen_step == dip.choose_step(curve, patience, first)
    assert run.steps == 110 or run.chosen_step + patience < run.steps <= run.chosen_step + patience + 25


def test_wasted_patience_chooses_nothing(z, noisy):
    run = fit(z, noisy, 30, stop=dip.HoldOut(first=50))
    assert run.chosen is None and run.chosen_step is None and run.steps == 30 and torch.equal(run.result, run.average)


def test_hold_out_in_short_floats(z, noisy):
    run = fit(z, noisy, stop=HOLD_OUT, precision="bfloat16")
    assert np.isfinite(run.held_out).all() and run.chosen_step >= 20


def test_target_in_another_memory_order(z, noisy):
    turned = noisy.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    runs = [fit(z, target, stop=HOLD_OUT) for target in (noisy, turned)]
    assert np.array_equal(runs[0].held_out, runs[1].held_out)


def test_hold_out_survives_a_divergence(z, noisy):
    calls = []

    def spoiling(x):
        # Hold-out applies the operator to the average too, without a gradient.
        calls.append(x.requires_grad)
        return x * float("nan") if x.requires_grad and sum(calls) == 61 else x

    run = fit(z, noisy, 100, operator=spoiling, stop=HOLD_OUT)
    assert len(run.remarks) == 1 and "going on from step" in run.remarks[0]
    assert run.steps == 100 and np.isfinite(run.held_out[20:]).all()
    assert run.chosen_step == 20 + np.argmin(run.held_out[20:])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_grey_stored_as_colour_stops_near_its_best(seed):
    """Its channels are equal: what is left out of one alone would be given away by the others."""
    clean = dip.luma(dip.resize(dip.sample("chelsea"), 128, 128)).expand(3, -1, -1)
    noisy = dip.add_gaussian_noise(clean[:1], 0.2, seed=seed).expand(3, -1, -1)
    network, stop = dip.SkipNetwork(8, (32, 32, 32), (4, 4, 4), seed=seed), dip.HoldOut(patience=100)
    z = dip.random_input(8, 128, 128, seed=seed)
    run = fit(z, noisy, 2000, network=network, stop=stop, reference=clean, precision="float32", seed=seed)
    assert run.steps < 2000
    assert run.average_psnr.max() - dip.psnr(clean, run.chosen) < 0.3


# --- going on


def test_a_part_and_the_rest_are_the_whole_to_the_bit(z, noisy, tmp_path):
    options = {"precision": "float32", "stop": HOLD_OUT, "trace": 50}
    whole, part = fit(z, noisy, 50, **options), fit(z, noisy, 30, **options)
    part.save(tmp_path / "run.pt")
    loaded = dip.load_fit(tmp_path / "run.pt")
    rest = fit(z, noisy, 20, start=loaded, **options)
    assert np.array_equal(whole.held_out, rest.held_out) and torch.equal(whole.trace, rest.trace)
    assert whole.chosen_step == rest.chosen_step and torch.equal(whole.chosen, rest.chosen)
    assert torch.equal(loaded.trace, part.trace) and torch.equal(loaded.chosen, part.chosen)
    assert np.array_equal(loaded.held_out, part.held_out) and loaded.chosen_step == part.chosen_step


def test_going_on_with_another_loss_chooses_by_that_one(z, noisy):
    options = {"precision": "float32", "stop": dip.HoldOut(first=3, patience=None)}
    part = fit(z, noisy, 40, **options)
    for factor in (100, 0.01):
        rest = fit(z, noisy, 80, start=part, loss=lambda a, b, f=factor: f * F.mse_loss(a, b), **options)
        measured = rest.held_out / np.where(np.arange(121) <= 40, 1, factor)
        assert rest.chosen_step == measured[3:].argmin() + 3


def test_hold_out_is_refused_where_its_pixels_were_fitted(z, noisy):
    part = fit(z, noisy, 3)
    with pytest.raises(ValueError, match="stop: got a HoldOut, but the run in start has fitted the pixels"):
        fit(z, noisy, 3, start=part, stop=dip.HoldOut())
    part = fit(z, noisy, 3, stop=dip.HoldOut(patience=None))
    assert fit(z, noisy, 3, start=part, stop=dip.HoldOut(patience=7)).steps == 6
    assert fit(z, noisy, 30, start=part, stop=dip.HoldOut(first=20)).chosen_step >= 20
    # Once they have been fitted they stay so.
    fitted = fit(z, noisy, 5, start=part)
    with pytest.raises(ValueError, match="has fitted the pixels"):
        fit(z, noisy, 5, start=fitted, stop=dip.HoldOut())


def test_figure_of_a_run_that_got_its_reference_later(z, noisy, photograph, monkeypatch):
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda axes, *values, **style: drawn.append(values) or plot(axes, *values, **style)
    )
    stop = dip.HoldOut(first=0)
    rest = fit(z, noisy, 10, start=fit(z, noisy, 10, stop=stop), reference=photograph, stop=stop)
    assert np.isnan(rest.average_psnr[:10]).all()
    with cell():
        dip.plot_stopping(rest)
    stars = [values[0] for values in drawn if isinstance(values[-1], str) and values[-1] == "*"]
    assert stars == [np.nanargmax(rest.average_psnr)] and 10 < stars[0] <= 20
