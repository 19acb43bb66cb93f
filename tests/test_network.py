"""The network against one read off the paper; its faster forms against the plain ones; its weights; its input."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dip_utils as dip
from dip_utils.engine.card import Reflected, enlarge
from dip_utils.engine.kernels import accelerated
from dip_utils.engine.machine import tuned
from dip_utils.network import Scale

from .conftest import build


@pytest.mark.parametrize(("configuration", "count"), [(dip.PARAMETRIZATION, 572_827), (dip.RESTORATION, 2_217_831)])
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

    def convolve(x, name, stride=1):
        x = nn.ReflectionPad2d(weights[f"{name}.weight"].shape[-1] // 2)(x)
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride)

    def normalise(x, name):
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    def block(x, name, stride=1):
        return nn.LeakyReLU(0.2)(normalise(convolve(x, f"{name}.0", stride), f"{name}.1"))

    def scale(x, name, inner):
        y = block(block(x, f"{name}.down.0", 2), f"{name}.down.1")
        y = inner(y)
        y = nn.Upsample(scale_factor=2, mode="bilinear")(y)[..., : x.shape[2], : x.shape[3]]
        if f"{name}.skip.0.weight" in weights:
            y = torch.cat([block(x, f"{name}.skip"), y], dim=1)
        y = convolve(normalise(y, f"{name}.join.norm"), f"{name}.join.convolution")
        return block(nn.LeakyReLU(0.2)(normalise(y, f"{name}.up.0")), f"{name}.up.2")

    x = scale(z, "scales", lambda y: scale(y, "scales.deeper", lambda deepest: deepest))
    return torch.sigmoid(F.conv2d(x, weights["head.weight"], weights["head.bias"]))


FORMS = {"faster": dict(large=0), "plain": dict(large=2**40)}
NARROW, WIDE = (4, 6), (128, 128)


@pytest.mark.parametrize(
    ("size", "channels", "batch"),
    [(size, NARROW, 1) for size in ((32, 48), (33, 47), (34, 46), (8, 8), (33, 48), (32, 47), (7, 9))]
    # Wide layers, as notebook 2's are, have a form of their own.
    + [((32, 48), WIDE, 1), ((16, 15), WIDE, 1), ((32, 48), NARROW, 2), ((33, 47), NARROW, 2)],
)
@pytest.mark.parametrize("form", FORMS)
def test_network_is_the_obvious_one_in_value_and_gradient(size, channels, batch, form):
    network = build(channels=channels).double()
    z = torch.rand(batch, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for x in (z, z.contiguous(memory_format=torch.channels_last)):
        with tuned(**FORMS[form]), accelerated(network):
            value = network(x)
            # Zero for what has no effect.
            gradients = torch.autograd.grad(value.square().sum(), list(network.parameters()), materialize_grads=True)
        expected = obvious(network, z)
        assert torch.allclose(value, expected, rtol=0, atol=1e-12)
        wanted = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
        for gradient, want in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, want, rtol=0, atol=1e-9 * (1 + want.abs().max().item()))


def test_outside_of_a_fit_the_network_is_plain():
    """So that a student's hooks, copies and files of it see nothing else."""
    network, z = build(), torch.rand(1, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    before, forms = network(z), [vars(layer).get("forward") for layer in network.modules()]
    with pytest.raises(KeyError), tuned(large=0), accelerated(network):
        raise KeyError
    assert torch.equal(network(z), before)
    assert [vars(layer).get("forward") for layer in network.modules()] == forms == [None] * len(forms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_channel_is_no_division_by_nothing(dtype):
    """In bfloat16 the mean of squares, rounded, may be less than the square of the mean."""
    y = torch.linspace(1, 2, 128).view(1, 128, 1, 1).expand(1, 128, 8, 8).to(dtype)
    y = y.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.random.fork_rng():
        scale = Scale(1, (4, 128), (0, 0))
    scale.join.convolution.to(dtype)
    with tuned(large=0), accelerated(scale):
        joined = scale.join(None, y, 16, 16)
    joined.sum().backward()
    assert torch.isfinite(joined).all() and torch.isfinite(y.grad).all()


def innermost(*shape, dtype=torch.float64, device="cpu", seed=0):
    """Random numbers about 0, the channels innermost, with a gradient."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype) - 0.5
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def are_alike(value, inputs, expected, exact_inputs, tolerance):
    """Whether two results and their gradients are the same up to rounding, both with the channels innermost."""
    pull = innermost(*expected.shape, seed=2).detach()
    pulls = pull.to(value.device, value.dtype), pull.to(expected.dtype)
    found = [value, *torch.autograd.grad((value * pulls[0]).sum(), inputs)]
    wanted = [expected, *torch.autograd.grad((expected * pulls[1]).sum(), exact_inputs)]
    return all(
        a.is_contiguous(memory_format=torch.channels_last)
        and torch.allclose(a.cpu().to(b.dtype), b, rtol=0, atol=tolerance * (1 + b.abs().max().item()))
        for a, b in zip(found, wanted, strict=True)
    )


def check_reflected(channels, size, stride, dtype, device, tolerance):
    behind = [1 - (side - 1) % stride for side in size]
    x = innermost(1, channels, *size, dtype=dtype, device=device)
    weight = innermost(7, channels, 3, 3, dtype=dtype, device=device, seed=1)
    exact = [values.detach().cpu().double().requires_grad_() for values in (x, weight)]
    padded = F.pad(exact[0], (1, behind[1], 1, behind[0]), mode="reflect")
    value = Reflected.apply(x, weight, (stride, stride), behind)
    assert are_alike(value, [x, weight], F.conv2d(padded, exact[1], stride=stride), exact, tolerance)


def check_reflected_exactly(behind, dtype, device):
    """Small integers, and each channel of the result one neighbour of one channel: exact in all dtypes."""
    exact = (torch.arange(5 * 6 * 4, dtype=torch.float64).view(1, 5, 6, 4) % 8).requires_grad_()
    taps = torch.eye(5 * 9, dtype=torch.float64).view(45, 5, 3, 3)
    x, weight = (v.detach().to(device, dtype).contiguous(memory_format=torch.channels_last) for v in (exact, taps))
    value = Reflected.apply(x.requires_grad_(), weight, (1, 1), behind)
    expected = F.conv2d(F.pad(exact, (1, behind[1], 1, behind[0]), mode="reflect"), taps)
    assert torch.equal(value.cpu().double(), expected)
    pull = torch.arange(expected.numel()).view(expected.shape) % 3
    (gradient,) = torch.autograd.grad((value * pull.to(device)).sum(), x)
    (wanted,) = torch.autograd.grad((expected * pull).sum(), exact)
    assert torch.equal(gradient.cpu().double(), wanted)


def check_enlarge(size, enlarged, dtype, device, tolerance):
    y = innermost(1, 6, *size, dtype=dtype, device=device)
    exact = y.detach().cpu().double().requires_grad_()
    expected = F.interpolate(exact, scale_factor=2, mode="bilinear")[..., : enlarged[0], : enlarged[1]]
    assert are_alike(enlarge(y, *enlarged), [y], expected, [exact], tolerance)


REFLECTED = dict(
    argnames=("channels", "size", "stride"),
    argvalues=[(8, (6, 4), 1), (8, (6, 4), 2), (12, (5, 7), 2), (12, (4, 5), 1), (3, (5, 4), 2), (132, (9, 8), 1)],
)
ENLARGED = dict(
    argnames=("size", "enlarged"),
    # The last one as after a layer that halves more than is doubled.
    argvalues=[((3, 5), (6, 10)), ((3, 5), (5, 9)), ((1, 2), (2, 4)), ((8, 4), (16, 7)), ((3, 5), (8, 12))],
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(**REFLECTED)
def test_the_cards_convolution_reflects_the_border(channels, size, stride, dtype, tolerance):
    check_reflected(channels, size, stride, dtype, "cpu", tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("behind", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_the_border_that_it_reflects_is_exact(behind, dtype):
    check_reflected_exactly(behind, dtype, "cpu")


@pytest.mark.parametrize(**ENLARGED)
def test_the_cards_enlarging_is_bilinear(size, enlarged):
    check_enlarge(size, enlarged, torch.float64, "cpu", 1e-12)


class Between(nn.Module):
    """A block whose layers do not compute in the order in which they stand."""

    def __init__(self, block):
        super().__init__()
        self.convolution, self.norm, self.end = block

    def forward(self, x):
        return self.end(self.norm(F.relu(self.convolution(x))))


def one_activation(blocks):
    """Blocks without norms, with one activation in two places."""
    once = nn.LeakyReLU(0.2)
    return nn.Sequential(*(nn.Sequential(block[0], once) for block in blocks))


def with_hook(layer):
    layer.register_forward_hook(lambda layer, inputs, output: F.relu(output))
    return layer


def with_pre_hook(layer):
    layer.register_forward_pre_hook(lambda layer, inputs: F.relu(inputs[0]))
    return layer


def with_forward(layer):
    plain = layer.forward
    layer.forward = lambda x: F.relu(plain(F.relu(x))).clone()
    return layer


def with_join(layer):
    plain = layer.forward
    layer.forward = lambda *arguments: F.relu(plain(*arguments))
    return layer


def halved_in_turn(blocks):
    """First one side is halved, then the other."""
    for block, inputs, stride in zip(blocks, (2, 4), ((1, 2), (2, 1)), strict=True):
        block[0] = nn.Conv2d(inputs, 4, 3, stride, padding=1, padding_mode="reflect")
    return blocks


#: A part of the outermost scale, and what takes its place.
REPLACED = {
    "zeros around": ("down.1.0", lambda old: nn.Conv2d(4, 4, 3, padding=1)),
    "dilated": ("down.1.0", lambda old: nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="reflect")),
    "grouped": ("down.1.0", lambda old: nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect")),
    "of 5 × 5": ("down.1.0", lambda old: nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect")),
    "halved in turn": ("down", halved_in_turn),
    "not halved": ("down.0.0", lambda old: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")),
    "something between": ("down.1", Between),
    "one activation twice": ("down", one_activation),
    "the join's convolution": ("join.convolution", lambda old: nn.Conv2d(8, 4, 1)),
    "the join's norm": ("join.norm", lambda old: nn.InstanceNorm2d(8)),
    "statistics": ("up.0", lambda old: nn.BatchNorm2d(4)),
    "no norm": ("up.0", lambda old: nn.Identity()),
    "a hook": ("down.1.0", with_hook),
    "a hook behind": ("down.1.1", with_pre_hook),
    "a hook on the join": ("join", with_hook),
    "a hook on layers in a row": ("up", with_pre_hook),
    "a forward of its own on the join": ("join", with_join),
    "a forward of its own": ("down.1.0", with_forward),
    "a forward of its own behind": ("up.0", with_forward),
}


#: The same where the output becomes smaller than z.
SMALLER = {
    "the join's stride": ("join.convolution", lambda old: nn.Conv2d(8, 4, 3, 2, padding=1, padding_mode="reflect")),
}


def replaced(network, name):
    """A network of which one part is another than we made."""
    path, change = (REPLACED | SMALLER)[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.scales.set_submodule(path, change(network.scales.get_submodule(path)))
    return network


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REPLACED | SMALLER)
def test_a_network_of_which_a_part_was_replaced_stays_what_it_is(name, form):
    network = replaced(build(), name).double()
    z = torch.rand(1, 2, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = network(z)
    with tuned(**FORMS[form]), accelerated(network) as idle:
        value = network(z)
        weights = [weight for weight in network.parameters() if weight not in idle]
        gradients = torch.autograd.grad(value.square().sum(), weights)
    wanted = torch.autograd.grad(expected.square().sum(), weights)
    assert torch.allclose(value, expected, rtol=0, atol=1e-12)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, want, rtol=0, atol=1e-9 * (1 + want.abs().max().item()))


@pytest.mark.parametrize("name", REPLACED)
def test_so_it_is_trained_in_short_floats(z, photograph, name):
    run = dip.fit(replaced(build(), name), z, photograph, steps=2, device="cpu", precision="bfloat16")
    assert run.loss[-1] < run.loss[0]


@pytest.mark.parametrize(("name", "idle"), [("nothing", True), ("no norm", False), ("statistics", False)])
def test_a_bias_without_an_effect_is_left_alone_and_no_other(name, idle):
    network = build() if name == "nothing" else replaced(build(), name)
    with accelerated(network) as found:
        assert (network.scales.join.convolution.bias in found) == (network.scales.join.norm.bias in found) == idle
        assert network.scales.down[0][0].bias in found
        assert found.isdisjoint([network.head.bias, *(p for p in network.parameters() if p.ndim == 4)])


def test_a_bias_without_an_effect_stays_also_after_an_older_file(z, photograph):
    network, again = build(), build()
    part = dip.fit(network, z, photograph, steps=3, device="cpu")
    bias = "scales.down.0.0.bias"
    # As files had it that were written when each bias was trained.
    part.state[f"gradient.{bias}"] = torch.ones(4)
    dip.fit(again, z, photograph, steps=30, device="cpu", start=part)
    assert torch.equal(dict(again.named_parameters())[bias], dict(network.named_parameters())[bias])


@pytest.mark.parametrize("place", ["down.1.0", "join.norm", "join.convolution"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_are_called(kind, place):
    network, called = build(), []
    getattr(network.scales.get_submodule(place), f"register_{kind}_hook")(lambda *arguments: called.append(kind))
    z = torch.rand(1, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    with tuned(large=0), accelerated(network):
        network(z).sum().backward()
    assert called == [kind]


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_narrow_batch_norm_is_batch_norm(channels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 9, 16, dtype=torch.float64, generator=generator) * 3 + 1
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = nn.BatchNorm2d(channels, track_running_stats=False, dtype=torch.float64)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_(generator=generator)
    with tuned(large=0), accelerated(norm):
        value = norm(x)
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=1e-5)
    assert torch.allclose(value, expected, rtol=0, atol=1e-12)
    pull = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    gradients, wanted = (
        torch.autograd.grad((result * pull).sum(), (x, norm.weight, norm.bias)) for result in (value, expected)
    )
    for gradient, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_batch_norms_of_other_kinds_are_left_alone(form):
    x = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    layers = [nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4, affine=False, track_running_stats=False)]
    for layer in layers:
        with tuned(**FORMS[form]), accelerated(layer):
            value = layer(x)
        if layer.running_mean is not None and layer.training:
            assert torch.allclose(layer.running_mean, 0.1 * x.mean((0, 2, 3)))
            layer.reset_running_stats()
        assert torch.equal(value, layer(x))


def test_short_floats_change_the_output_by_their_rounding_only():
    network = build()
    z = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = network(z)
    network.to(torch.bfloat16)
    assert network(z.bfloat16()).dtype == torch.float32
    assert (network(z.bfloat16()) - exact).abs().max() < 0.1


# --- the weights


def test_same_seed_same_weights():
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_weights_built_in_threads_are_those_built_alone():
    """Nor does a thread that draws from the global generator notice that networks are built beside it."""
    alone = [nn.utils.parameters_to_vector(build(seed=seed).parameters()) for seed in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        undisturbed = torch.rand(20_000)
        torch.manual_seed(0)
        start = threading.Barrier(3)

        def builds(seed):
            start.wait()
            return [nn.utils.parameters_to_vector(build(seed=seed).parameters()) for _ in range(30)]

        with ThreadPoolExecutor(2) as pool:
            built = [pool.submit(builds, seed) for seed in range(2)]
            start.wait()
            drawn = torch.cat([torch.rand(20) for _ in range(1000)])
        assert torch.equal(drawn, undisturbed)
    for seed, future in enumerate(built):
        assert all(torch.equal(weights, alone[seed]) for weights in future.result())


def check_uniform(values, low, high):
    """Four standard errors of mean and variance of a uniform variable."""
    width = high - low
    assert values.min() >= low and values.max() < high
    assert values.mean().item() == pytest.approx((low + high) / 2, abs=4 * width * (1 / 12 / len(values)) ** 0.5)
    assert values.var().item() == pytest.approx(width**2 / 12, abs=4 * width**2 * (1 / 180 / len(values)) ** 0.5)


def test_weights_begin_as_in_2018():
    """Batch norms between 0 and 1, as PyTorch drew them up to 1.1; convolutions as it draws them still."""
    network = dip.SkipNetwork(2, (64, 64), (4, 4), seed=0)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    check_uniform(torch.cat([norm.weight.detach() for norm in norms]), 0, 1)
    assert all((norm.bias == 0).all() for norm in norms)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for parameter in ("weight", "bias"):
        scaled = [getattr(c, parameter).detach().flatten() * c.weight[0].numel() ** 0.5 for c in convolutions]
        check_uniform(torch.cat(scaled), -1, 1)


# --- the input


def test_input_is_uniform_up_to_its_scale():
    z = dip.random_input(32, 64, 64, seed=0)
    assert z.shape == (32, 64, 64)
    check_uniform(z.flatten() * 10, 0, 1)
    assert z.mean().item() == pytest.approx(0.05, abs=0.001)


def test_input_of_a_signal():
    assert dip.random_input(3, 100, seed=0).shape == (3, 100)
    assert dip.random_input(3, 100, scale=1.0, seed=0).max() > 0.9
