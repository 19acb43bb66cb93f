"""`fit` trains any module: a student's own, one on signals, one of another library; and any loss."""

import inspect
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dip_utils as dip
from dip_utils.engine.machine import tuned

from .conftest import build
from .textbook import textbook


def weighted(network, seed=0):
    """The network with weights that do not touch the global random state."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            bound = max(1, parameter[0].numel()) ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return network


def skipping(layer, *arguments, **options):
    return nn.utils.skip_init(layer, *arguments, **options)


class Plain(nn.Module):
    """What a student writes first."""

    def __init__(self):
        super().__init__()
        self.first = skipping(nn.Conv2d, 2, 6, 3, padding=1)
        self.second = skipping(nn.Conv2d, 6, 3, 3, padding=1)

    def forward(self, x):
        return torch.sigmoid(self.second(torch.relu(self.first(x))))


class Branches(Plain):
    """One branch has no parameters, one layer is used twice."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.again = skipping(nn.Conv2d, 6, 6, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.again(self.again(F.interpolate(self.first(self.pool(x)), scale_factor=2)))
        return torch.sigmoid(self.second(F.instance_norm(y)) + x.mean())


class Tied(Plain):
    """Two layers share one parameter."""

    def __init__(self):
        super().__init__()
        self.third = skipping(nn.Conv2d, 6, 6, 3, padding=1)
        self.fourth = skipping(nn.Conv2d, 6, 6, 3, padding=1)
        self.fourth.weight = self.third.weight

    def forward(self, x):
        y = self.fourth(torch.relu(self.third(torch.relu(self.first(x)))))
        return torch.sigmoid(self.second(y))


def repeated():
    """One layer in two places."""
    again = skipping(nn.Conv2d, 6, 6, 3, padding=1)
    first, last = skipping(nn.Conv2d, 2, 6, 1), skipping(nn.Conv2d, 6, 3, 1)
    return nn.Sequential(first, again, nn.ReLU(), again, last, nn.Sigmoid())


class Unused(Plain):
    """A layer that nothing is made of, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.forgotten = skipping(nn.Linear, 3, 3)
        self.second.weight.requires_grad_(False)


class Coordinates(Plain):
    """Makes a tensor of its own in forward, which the meta device does not know of."""

    def forward(self, x):
        return super().forward(x + torch.linspace(0, 1, x.shape[-1]).to(x.dtype))


class Deciding(Plain):
    """Reads a number in forward."""

    def forward(self, x):
        return super().forward(x if x.mean().item() > -1 else -x)


class Attention(nn.Module):
    """As a U-Net of another library may have it: group norm, attention, transposed convolution."""

    def __init__(self):
        super().__init__()
        self.down = skipping(nn.Conv2d, 2, 8, 4, stride=4)
        self.norm = nn.GroupNorm(2, 8)
        self.mix = skipping(nn.Linear, 8, 24)
        self.up = skipping(nn.ConvTranspose2d, 8, 3, 4, stride=4)

    def forward(self, x):
        y = self.norm(self.down(x))
        query, key, value = self.mix(y.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(y.shape)
        return torch.sigmoid(self.up(F.silu(y + mixed)))


class Narrow(dip.SkipNetwork):
    """A student's variant of ours."""

    def forward(self, z):
        return super().forward(z) * 0.9 + 0.05


NETWORKS = {
    "a student's": Plain,
    "branches": Branches,
    "tied weights": Tied,
    "a layer in two places": repeated,
    "unused and frozen weights": Unused,
    "a tensor of its own": Coordinates,
    "a decision": Deciding,
    "attention": Attention,
    "a sequence": lambda: nn.Sequential(skipping(nn.Conv2d, 2, 3, 1), nn.Sigmoid()),
    "SkipNetwork inherited": lambda: Narrow(2, (4, 6), (2, 0), seed=0),
    "SkipNetwork inside": lambda: nn.Sequential(build(), nn.LeakyReLU()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_trained_as_by_the_textbook(z, photograph, name):
    def network():
        return weighted(NETWORKS[name]())

    expected = textbook(z, photograph, 12, network=network())
    trained = network()
    with tuned(large=0):
        run = dip.fit(trained, z, photograph, steps=12, device="cpu", precision="float64", keep=(0, 12))
    assert np.allclose(run.loss, expected.loss, rtol=1e-8)
    assert torch.allclose(run.output, expected.outputs[12].float(), atol=1e-6)
    assert {p.dtype for p in trained.parameters()} == {torch.float32} and trained.training
    assert all(p.grad is None for p in trained.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_in_short_floats(z, photograph, name, precision):
    networks = [weighted(NETWORKS[name]()) for _ in range(3)]
    whole, part = (
        dip.fit(network, z, photograph, steps=steps, device="cpu", precision=precision)
        for network, steps in zip(networks, (12, 7), strict=False)
    )
    assert np.isfinite(whole.loss).all() and whole.loss[-1] < whole.loss[0]
    rest = dip.fit(networks[2], z, photograph, steps=5, device="cpu", precision=precision, start=part)
    assert np.array_equal(rest.loss, whole.loss) and torch.equal(rest.output, whole.output)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "SkipNetwork i" not in name])
def test_any_network_but_our_own_is_fitted_in_float32(z, photograph, name):
    """Only of our own is it known that it stands less."""
    assert dip.fit(weighted(NETWORKS[name]()), z, photograph, steps=1, device="cpu").precision == "float32"


def test_our_own_with_buffers_is_fitted_in_float32(z, photograph):
    """They are not rounded as its weights are, and do not mix with numbers that are."""
    network = build()
    with torch.random.fork_rng(devices=[]):
        for layer in list(network.modules()):
            if isinstance(layer, nn.Conv2d):
                nn.utils.parametrizations.spectral_norm(layer)
    run = dip.fit(network, z, photograph, steps=5, device="cpu")
    assert run.precision == "float32" and run.loss[-1] < run.loss[0]


def test_buffers_that_do_not_mix_are_named(z, photograph):
    network = weighted(Plain())
    network.register_buffer("grid", torch.linspace(0, 1, 9))
    network.register_forward_pre_hook(lambda layer, x: F.conv2d(x[0], layer.grid.view(1, 1, 3, 3).repeat(2, 2, 1, 1)))
    with pytest.raises(ValueError, match=r"network: got one that fails on a tensor of .*, bfloat16, on cpu"):
        dip.fit(network, z, photograph[:, 1:-1, 1:-1], steps=5, device="cpu", precision="bfloat16")


@pytest.mark.parametrize("name", ["a tensor of its own", "a decision"])
def test_what_cannot_be_foreseen_is_said(z, photograph, name, capsys):
    dip.fit(weighted(NETWORKS[name]()), z, photograph, steps=1, device="cpu")
    assert "How much memory this network needs cannot be foreseen" in capsys.readouterr().out
    dip.fit(weighted(Plain()), z, photograph, steps=1, device="cpu")
    assert capsys.readouterr().out == ""


def test_running_statistics_are_those_of_the_steps_alone(z, photograph):
    """The trial before the fit leaves no trace in them; a finished run is used in eval mode."""
    network = nn.Sequential(skipping(nn.Conv2d, 2, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid())
    for precision in ("float32", "bfloat16"):
        norm = weighted(network)[1]
        norm.reset_running_stats()
        with tuned(large=0):
            run = dip.fit(network, z, photograph, steps=30, device="cpu", precision=precision)
        assert norm.num_batches_tracked == 31 and norm.running_mean.dtype == torch.float32
        assert norm.running_var.min() > 0 and (norm.running_mean != 0).all()
        assert torch.isfinite(network.eval()(z[None])).all() and np.isfinite(run.loss).all()
        network.train()


def test_running_statistics_are_mended_too(z, photograph):
    calls = []

    def spoil(x):
        calls.append(x)
        return x * float("nan") if len(calls) == 31 else x

    network = weighted(nn.Sequential(skipping(nn.Conv2d, 2, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid()))
    network[0].register_forward_hook(lambda layer, inputs, output: spoil(output))
    run = dip.fit(network, z, photograph, steps=60, device="cpu")
    assert len(run.remarks) == 1 and not run.diverged and torch.isfinite(network.eval()(z[None])).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_layers_in_front_cost_no_gradient(z, photograph, precision):
    """In no precision."""
    with torch.random.fork_rng():
        layers = nn.Sequential(*(nn.Conv2d(width, width + 1, 1) for width in (2, 3, 4)), nn.Conv2d(5, 3, 1))
    for layer in layers[:2]:
        layer.requires_grad_(False)
    differentiated = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, output: differentiated.append(output.requires_grad))
    dip.fit(layers, z, photograph, steps=1, device="cpu", precision=precision)
    assert differentiated[-4:] == [False, False, True, True]


def test_a_run_takes_frozen_weights_and_statistics_along(z, photograph, tmp_path):
    def network(seed):
        layers = nn.Sequential(skipping(nn.Conv2d, 2, 4, 1), nn.BatchNorm2d(4), skipping(nn.Conv2d, 4, 3, 1))
        weighted(layers, seed)[0].requires_grad_(False)
        return layers

    options, first, second = dict(device="cpu", seed=1), network(0), network(1)
    whole = dip.fit(network(0), z, photograph, steps=9, **options)
    dip.fit(first, z, photograph, steps=5, **options).save(tmp_path / "run.pt")
    rest = dip.fit(second, z, photograph, steps=4, start=dip.load_fit(tmp_path / "run.pt"), **options)
    assert torch.equal(rest.output, whole.output)
    assert torch.equal(second[0].weight, first[0].weight) and second[1].num_batches_tracked == 10


@pytest.mark.skipif(
    "bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="this PyTorch has no batch norm without bias"
)
def test_batch_norm_without_a_bias(z, photograph):
    network = nn.Sequential(
        skipping(nn.Conv2d, 2, 8, 1), nn.BatchNorm2d(8, track_running_stats=False, bias=False),
        skipping(nn.Conv2d, 8, 3, 1),
    )  # fmt: skip
    with tuned(large=0):
        assert np.isfinite(dip.fit(weighted(network), z, photograph, steps=3, device="cpu").loss).all()


def test_hooks_see_every_step_and_stay(z, photograph):
    network, seen = weighted(Plain()), []
    network.first.register_forward_hook(lambda layer, inputs, output: seen.append(output.device.type))
    dip.fit(network, z, photograph, steps=5, device="cpu")
    assert seen.count("cpu") == 6
    network(z[None])
    assert seen.count("cpu") == 7


def test_the_channels_are_innermost_where_that_is_known_to_be_right(z, photograph):
    """It is faster; PyTorch's instance norm has a wrong gradient there."""
    for network, layer, innermost in ((build(), "head", True), (weighted(Branches()), "second", False)):
        seen = []
        getattr(network, layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # noqa: B023
        dip.fit(network, z, photograph, steps=1, device="cpu", precision="float32")
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) == innermost


class Signal(nn.Module):
    """An hourglass of one scale on (1, C, T)."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            skipping(nn.Conv1d, 4, 8, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.BatchNorm1d(8, track_running_stats=False),
            nn.LeakyReLU(0.2),
        )
        self.up = skipping(nn.Conv1d, 8, 1, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        return self.up(F.interpolate(self.down(x), scale_factor=2, mode="linear"))


def test_one_dimensional_network_on_a_signal(tmp_path):
    time = torch.linspace(0, 1, 200)
    clean = torch.sin(12 * time)[None]
    noise = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    z, noisy = dip.random_input(4, 200, seed=0), clean + 0.3 * noise
    expected = textbook(z, noisy, 12, network=weighted(Signal()))
    run = dip.fit(weighted(Signal()), z, noisy, steps=12, device="cpu", precision="float64", reference=clean)
    assert np.allclose(run.loss, expected.loss, rtol=1e-8) and run.output.shape == (1, 200)
    operator = lambda x: x[..., ::2]  # noqa: E731
    options = dict(operator=operator, stop=dip.HoldOut(patience=None, first=9), trace=50, keep=(0, 60), reference=clean)
    run = dip.fit(weighted(Signal()), z, noisy[:, ::2], steps=60, device="cpu", precision="bfloat16", **options)
    assert run.average_psnr[-1] > run.average_psnr[0] and run.trace.shape == (61, 50)
    run.save(tmp_path / "signal.pt")
    assert torch.equal(dip.load_fit(tmp_path / "signal.pt").chosen, run.chosen)


def test_large_network_of_any_kind_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e8))
    image = torch.zeros(3, 1024, 1024)
    with pytest.raises(MemoryError, match=r"z: a fit of 1024 × 1024 needs about .* GB, 0.1 GB are free on cpu; wants"):
        dip.fit(weighted(Plain()), image[:2], image, steps=1, device="cpu")


BAD_NETWORKS = {
    "frozen": (lambda: weighted(Plain()).requires_grad_(False), "wants at least one that requires a gradient"),
    "without parameters": (nn.Sigmoid, "wants at least one that requires a gradient"),
    "of two images": (lambda: Twice(weighted(Plain())), r"got one that makes \(2, 3, 32, 48\) of z; wants one image"),
    "of a vector": (lambda: nn.Sequential(weighted(Plain()), nn.Flatten()), "wants one image"),
    "of a tuple": (lambda: Pair(weighted(Plain())), "got one that makes tuple of z"),
    "of float32 alone": (
        lambda: nn.Sequential(build(), skipping(nn.Conv2d, 3, 3, 1)),
        "network: got one that fails on a tensor of 1 × 2 × 32 × 48, bfloat16, on cpu: .*; wants one that computes",
    ),
    "of other channels": (lambda: skipping(nn.Conv2d, 5, 3, 1), r"network: got one that fails on .* 1 × 2 × 32 × 48"),
}


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(x).repeat(2, 1, 1, 1)


class Pair(nn.Sequential):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_network_that_cannot_be_fitted_is_refused(z, photograph, name):
    make, words = BAD_NETWORKS[name]
    with pytest.raises(ValueError, match=words):
        dip.fit(make(), z, photograph, steps=1, device="cpu", precision="bfloat16")


class Lazy(Plain):
    """Makes what it needs at its first call: a grid, a buffer, a count."""

    grid, calls = None, 0

    def forward(self, x):
        self.calls += 1
        if self.grid is None:
            self.grid = torch.linspace(-1, 1, x.shape[3], device=x.device).expand(1, 2, x.shape[2], -1)
            self.register_buffer("weight", torch.full((1,), 0.5, device=x.device))
        return super().forward(x + self.weight * self.grid)


def test_what_a_network_makes_at_its_first_call(z, photograph):
    network, ready = weighted(Lazy()), weighted(Lazy())
    ready(z[None])
    runs = [dip.fit(each, z, photograph, steps=5, device="cpu", precision="float32") for each in (network, ready)]
    assert np.array_equal(runs[0].loss, runs[1].loss)
    assert network(z[None]).shape == (1, 3, 32, 48) and network.calls == ready.calls


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network(z, photograph):
    plain = weighted(Plain())
    traced = torch.jit.trace(weighted(Plain()), z[None])
    runs = [dip.fit(each, z, photograph, steps=5, device="cpu", precision="float32") for each in (plain, traced)]
    assert np.allclose(runs[1].loss, runs[0].loss, rtol=1e-4)


# --- operators


class Stubborn(nn.Module):
    """Holds what cannot be copied: the output of a layer."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel.requires_grad_() * 1

    def forward(self, x):
        return x * self.kernel


def test_operator_that_cannot_be_copied_is_refused_in_words(z, photograph):
    with pytest.raises(TypeError, match=r"operator: got a module that cannot be copied: .*; wants one that can"):
        dip.fit(build(), z, photograph, steps=1, device="cpu", operator=Stubborn(torch.ones(48)))
    # As a plain function it is taken as it is.
    module = Stubborn(torch.ones(48))
    assert dip.fit(build(), z, photograph, steps=1, device="cpu", operator=lambda x: module(x)).steps == 1


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (torch.fft.fft2, "operator: got one that returns torch.complex64; wants one that returns a tensor of real"),
        (lambda x: x.round().long(), "operator: got one whose result has no gradient; wants a differentiable function"),
        (lambda x: (x, x), "operator: got one that returns tuple"),
    ],
)
def test_operator_whose_result_cannot_be_fitted_is_refused(z, photograph, operator, words):
    with pytest.raises(TypeError, match=words):
        dip.fit(build(), z, photograph, steps=1, device="cpu", operator=operator)


def test_fourier_measurements_are_fitted_as_real_numbers(z, photograph):
    measure = lambda x: torch.view_as_real(torch.fft.rfft2(x)).flatten(3)  # noqa: E731
    run = dip.fit(build(), z, measure(photograph[None])[0] / 100, steps=3, operator=lambda x: measure(x) / 100)
    assert np.isfinite(run.loss).all()


class FourierBlur(nn.Module):
    """Multiplies the Fourier transform by complex numbers, which it holds as a buffer."""

    def __init__(self, height, width):
        super().__init__()
        kernel = torch.zeros(height, width)
        kernel[:5, :7] = 1 / 35
        self.transfer = nn.Buffer(torch.fft.fft2(kernel))

    def forward(self, x):
        return torch.fft.ifft2(torch.fft.fft2(x) * self.transfer).real


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_complex_numbers_of_an_operator_stay_complex(z, photograph, precision):
    blur = FourierBlur(32, 48)
    blurred = blur(photograph[None])[0]
    assert not torch.allclose(blurred, blurred.flip(2), atol=0.01), "the kernel is to one side"
    run = dip.fit(build(), z, blurred, steps=5, operator=blur, device="cpu", precision=precision)
    # As on a function, which is taken as it is.
    plain = dip.fit(build(), z, blurred, steps=5, operator=lambda x: blur(x), device="cpu", precision=precision)
    assert np.allclose(run.loss, plain.loss, rtol=1e-5)
    assert run.loss[-1] == pytest.approx(F.mse_loss(blur(run.output[None])[0], blurred).item(), rel=1e-4)


# --- losses


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (None, TypeError, "loss: got NoneType; wants a function"),
        ("l1", TypeError, "loss: got str; wants a function"),
        (lambda output, target: (output - target).abs(), TypeError, "loss: got one that returns no number"),
        (lambda output, target: ((output - target) ** 2).mean().item(), TypeError, "loss: got one that returns no num"),
        (lambda output, target: (output[..., 1:] - target).mean(), ValueError, "loss: got one that fails on"),
    ],
)
def test_loss_that_cannot_be_used_is_refused(z, photograph, loss, error, words):
    with pytest.raises(error, match=words):
        dip.fit(build(), z, photograph, steps=1, loss=loss, device="cpu")


def test_losses_may_be_negative(z, photograph):
    """A constant changes no gradient; nor what counts as a divergence, of a dark picture that is learnt slowly."""
    dark = photograph * 0.02
    options = dict(steps=200, learning_rate=1e-3, device="cpu", precision="float32")
    plain, lower = (
        dip.fit(build(), z, dark, loss=lambda a, b, shift=shift: F.mse_loss(a, b) - shift, **options)
        for shift in (0, 0.3)
    )
    assert not lower.diverged and lower.remarks == plain.remarks
    assert np.allclose(lower.loss, plain.loss - 0.3, atol=1e-3)


def test_loss_may_be_a_module_and_of_double_precision(z, photograph):
    plain = dip.fit(build(), z, photograph, steps=5, device="cpu", precision="float32")
    for loss in (nn.MSELoss(), lambda output, target: F.mse_loss(output.double(), target.double())):
        run = dip.fit(
            build(),
            z,
            photograph,
            steps=5,
            loss=loss,
            device="cpu",
            precision="float32",
            reference=z[:1] + 0 * photograph,
        )
        assert np.allclose(run.loss, plain.loss, rtol=1e-4)


@pytest.mark.slow
def test_absolute_error_removes_salt_and_pepper_that_squares_cannot():
    """Squared errors put every pixel at its mean, which salt and pepper move; absolute ones at its median."""
    clean = dip.resize(dip.sample("chelsea"), 64, 64)
    noisy, z = dip.add_salt_and_pepper(clean, 0.3, seed=0), dip.random_input(8, 64, 64, seed=0)
    absolute, squared = (
        dip.fit(
            dip.SkipNetwork(8, (16, 32), (4, 4), seed=0), z, noisy, steps=200, learning_rate=0.02, loss=loss,
            reference=clean, device="cpu", precision="float32",
        )
        for loss in (F.l1_loss, F.mse_loss)
    )  # fmt: skip
    # Even at the best of its steps.
    assert absolute.average_psnr[-1] > squared.average_psnr.max() + 3
