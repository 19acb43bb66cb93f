"""A step on PyTorch's meta device, where nothing is computed: what would be wrong on a card is wrong there.

A tensor on another device is found, and so is every read-back to the host, which would make the host wait for the card.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dip_utils as dip
from dip_utils.engine.card import Reflected, enlarge
from dip_utils.engine.kernels import accelerated, takes_channels_last
from dip_utils.engine.machine import tuned
from dip_utils.engine.step import Problem, Settings

META, SIZE = torch.device("meta"), (64, 96)
DOWNSAMPLE = dip.LanczosDownsampler(4)
PLAIN = dict(operator=None, loss=F.mse_loss, regularizer=None, stop=None, trace=0, input_noise=1 / 30)
EVERYTHING = dict(operator=DOWNSAMPLE, regularizer=dip.total_variation, stop=dip.HoldOut(first=0), trace=2048)


class OneDevice(TorchDispatchMode):
    """Whatever is computed is computed on the meta device; PyTorch itself does not check it in convolutions."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves((arguments, options, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device != META:
                raise RuntimeError(f"{function} on {tensor.device}")
        return result


def dry_steps(network, precision, **options):
    """Evaluate and take a step on the meta device, as it is captured on a card."""
    options = PLAIN | options
    size = SIZE if options["operator"] is None else [side // 4 for side in SIZE]
    settings = Settings(learning_rate=0.01, seed=0, device=META, precision=precision, **options)
    z = dip.random_input(network.input_channels, *SIZE, seed=0)
    network.to(META, settings.exact)
    if takes_channels_last(network, META, precision):
        network.to(memory_format=torch.channels_last)
    with accelerated(network) as idle:
        problem = Problem(network, z, torch.zeros(3, *size), torch.zeros(3, *SIZE), (3, *SIZE), 2, settings, idle)
        with OneDevice():
            problem.evaluate()
            problem.step()
    return problem


def check(problem):
    for tensor in (*problem.state().values(), problem.records, problem.trace, problem.output):
        assert tensor.device == META and tensor.dtype == problem.exact == torch.float32


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("configuration", [dip.PARAMETRIZATION, dip.RESTORATION], ids=["network 1", "network 2"])
def test_a_step_stays_on_its_device_and_reads_nothing_back(configuration, precision):
    check(dry_steps(dip.SkipNetwork(**configuration, seed=0), precision, **EVERYTHING))


@pytest.mark.parametrize("channels", [8, 12])
def test_so_do_the_forms_of_the_card(channels):
    """By themselves: on the meta device a convolution forgets that the channels were innermost."""
    shapes = (1, channels, 9, 8), (7, channels, 3, 3)
    x, weight = (
        torch.empty(shape, dtype=torch.bfloat16, device=META, memory_format=torch.channels_last).requires_grad_()
        for shape in shapes
    )
    with OneDevice():
        values = Reflected.apply(x, weight, (2, 2), [1, 0]), enlarge(x, 17, 16)
        assert [value.shape for value in values] == [(1, 7, 5, 4), (1, channels, 17, 16)]
        gradients = torch.autograd.grad(sum(value.sum() for value in values), (x, weight))
    assert [gradient.shape for gradient in gradients] == [*shapes]


def behind(operator):
    return dict(loss=lambda output, target: F.mse_loss(operator(output), target))


SETTINGS = {
    "nothing": {},
    "a function as loss": behind(lambda x: x),
    "absolute error, no noise": dict(loss=F.l1_loss, input_noise=0.0, stop=dip.HoldOut(patience=None)),
    "a module as loss": EVERYTHING | dict(loss=nn.HuberLoss(delta=0.1)),
    "pixels of one channel": EVERYTHING | dict(operator=lambda x: F.avg_pool2d(x, 4)),
}


@pytest.mark.parametrize("tuning", [{}, {"channels_last": False}], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_so_does_every_setting_and_variant(name, tuning):
    with tuned(**tuning):
        check(dry_steps(dip.SkipNetwork(3, (8, 16), (0, 4), seed=0), torch.bfloat16, **SETTINGS[name]))


class Forgotten(nn.Module):
    """A tensor that is no buffer stays where it is."""

    def __init__(self):
        super().__init__()
        self.kernel = torch.ones(3, 1, 3, 3)

    def forward(self, x):
        return F.conv2d(x, self.kernel, padding=1, groups=3)


FAULTS = {
    "operator with a tensor of the CPU": behind(lambda x: x * torch.ones(SIZE[1])),
    "module with a tensor of the CPU": behind(Forgotten()),
    "operator that makes a tensor on the CPU": behind(lambda x: x + torch.linspace(0, 1, SIZE[1]).to(x)),
    "operator that goes to the CPU": behind(lambda x: x.cpu() * 2),
    "operator that reads a number": behind(lambda x: x / x.max().item()),
    "operator that decides": behind(lambda x: x if x.mean() > 0 else -x),
    "operator by way of NumPy": behind(lambda x: torch.from_numpy(x.detach().numpy())),
    "operator whose result has a size that depends": behind(lambda x: x[x > 0].mean()),
    "loss that is read": dict(loss=lambda output, target: output.new_tensor(F.mse_loss(output, target).item())),
    "loss with weights on the CPU": dict(loss=lambda output, target: ((output - target) * torch.ones(SIZE)).mean()),
    "regularizer that decides": dict(regularizer=lambda x: x.mean() if x.mean() > 0 else 0 * x.mean()),
    "regularizer with a tensor of the CPU": dict(regularizer=lambda x: F.l1_loss(x, torch.zeros(1, 3, *SIZE))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_stay_there_is_found(name):
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        dry_steps(dip.SkipNetwork(3, (4,), (2,), seed=0), torch.float32, **FAULTS[name])


@pytest.mark.parametrize("layer", ["scales", "head"])
def test_a_layer_that_reads_a_number_is_found(layer):
    network = dip.SkipNetwork(3, (4,), (2,), seed=0)
    getattr(network, layer).register_forward_hook(lambda layer, inputs, output: output * output.max().item())
    with pytest.raises(RuntimeError, match="meta"):
        dry_steps(network, torch.float32)
