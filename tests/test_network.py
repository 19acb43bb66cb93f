import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dip_utils as dip
from dip_utils.kernels import NarrowBatchNorm, join_and_convolve
from dip_utils.network import PARAMETRIZATION, RESTORATION

from .conftest import build


@pytest.mark.parametrize(("configuration", "count"), [(PARAMETRIZATION, 572_827), (RESTORATION, 2_217_831)])
def test_published_configurations_have_the_published_number_of_parameters(configuration, count):
    network = dip.SkipNetwork(**configuration, seed=0)
    assert network.parameter_count == count == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("output_channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (7, 5), (64, 9)])
def test_output_has_the_size_of_the_input(output_channels, size):
    output = build(output_channels=output_channels)(torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (1, output_channels, *size)
    assert output.dtype == torch.float32
    assert output.min() > 0 and output.max() < 1


def obvious(network, z):
    """The same network from stock PyTorch modules, read off the paper, for two scales."""
    weights = dict(network.named_parameters())

    def block(x, name, stride=1):
        weight, bias = weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]
        x = nn.ReflectionPad2d(weight.shape[-1] // 2)(x)
        x = F.conv2d(x, weight, bias, stride=stride)
        x = F.batch_norm(x, None, None, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"], training=True)
        return nn.LeakyReLU(0.2)(x)

    def scale(x, name, inner):
        y = block(block(x, f"{name}.down.0", 2), f"{name}.down.1")
        y = inner(y)
        y = nn.Upsample(scale_factor=2, mode="bilinear")(y)[..., : x.shape[2], : x.shape[3]]
        if f"{name}.skip.0.weight" in weights:
            y = torch.cat([block(x, f"{name}.skip"), y], dim=1)
        y = F.batch_norm(y, None, None, weights[f"{name}.join.weight"], weights[f"{name}.join.bias"], training=True)
        return block(block(y, f"{name}.up.0"), f"{name}.up.1")

    x = scale(z, "scales", lambda y: scale(y, "scales.deeper", lambda deepest: deepest))
    return torch.sigmoid(F.conv2d(x, weights["head.weight"], weights["head.bias"]))


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (34, 46), (8, 8)])
@pytest.mark.parametrize("large", [0, 2**18], ids=["faster forms", "plain forms"])
def test_network_is_the_obvious_one_in_value_and_gradient(size, large, monkeypatch):
    monkeypatch.setattr("dip_utils.network.LARGE", large)
    network = build().double()
    z = torch.rand(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for value in (network(z), network(z.contiguous(memory_format=torch.channels_last))):
        expected = obvious(network, z)
        assert torch.allclose(value, expected, rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(value.square().sum(), list(network.parameters()))
        wanted = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
        for gradient, want in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, want, rtol=0, atol=1e-9 * (1 + want.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_channel_is_no_division_by_nothing(dtype):
    """In bfloat16 the mean of squares, rounded, may be less than the square of the mean."""
    y = torch.linspace(1, 2, 128).view(1, 128, 1, 1).expand(1, 128, 8, 8).to(dtype)
    y = y.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.random.fork_rng():
        joined = join_and_convolve(None, y, nn.BatchNorm2d(128), nn.Conv2d(128, 4, 3))
    joined.sum().backward()
    assert torch.isfinite(joined).all() and torch.isfinite(y.grad).all()


def test_short_floats_change_the_output_by_their_rounding_only():
    network = build()
    z = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (network(z.bfloat16()) - network(z)).abs().max() < 0.1


def test_same_seed_same_weights():
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_uniform_gain_changes_the_batch_norms_weights_only():
    shape = dict(input_channels=2, channels=(64, 64), skip_channels=(4, 4))
    plain, uniform = (
        dict(dip.SkipNetwork(**shape, uniform_gain=gain, seed=0).named_parameters()) for gain in (False, True)
    )
    differ = {name for name in plain if not torch.equal(plain[name], uniform[name])}
    assert differ == {name for name, weight in plain.items() if weight.ndim == 1 and name.endswith("weight")}
    gains = torch.cat([uniform[name].detach() for name in differ])
    assert all((plain[name] == 1).all() for name in differ)
    assert gains.min() >= 0 and gains.max() < 1
    # Four standard errors of mean and variance of a uniform variable.
    assert gains.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / len(gains)) ** 0.5)
    assert gains.var().item() == pytest.approx(1 / 12, abs=4 * (1 / 180 / len(gains)) ** 0.5)


def test_input_is_uniform_up_to_its_scale():
    z = dip.random_input(32, 64, 64, seed=0)
    assert z.shape == (32, 64, 64) and z.min() >= 0 and z.max() < 0.1
    assert z.mean().item() == pytest.approx(0.05, abs=0.001)
    assert z.var().item() == pytest.approx(0.1**2 / 12, rel=0.02)


@pytest.mark.parametrize("channels", [4, 8, 30])
def test_narrow_batch_norm_is_batch_norm(channels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 9, 16, dtype=torch.float64, generator=generator) * 3 + 1
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(channels, dtype=torch.float64, generator=generator).requires_grad_() for _ in "wb")
    value = NarrowBatchNorm.apply(x, weight, bias, 1e-5)
    expected = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
    assert torch.allclose(value, expected, rtol=0, atol=1e-12)
    pull = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad((value * pull).sum(), (x, weight, bias))
    for gradient, want in zip(gradients, torch.autograd.grad((expected * pull).sum(), (x, weight, bias)), strict=True):
        assert torch.allclose(gradient, want, rtol=0, atol=1e-10)
