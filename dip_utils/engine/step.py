"""One step of a fit: noise on z, forward, loss, gradient, Adam, and what is recorded.

A step first updates the weights with the gradient that it finds, then computes
output, loss and the next gradient. So loss, output and average always belong to the
current weights, and nothing is left to compute when a run ends.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from ..stopping import HoldOut
from .card import Round
from .checks import check_function, check_integer, check_number
from .hold_out import HeldOutPixels
from .kernels import accelerated, takes_channels_last
from .machine import seeded
from .memory import tensors_in_place
from .rehearsal import move, placed

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: Weight of the newest output in the exponential average, as in the authors' code.
AVERAGE_WEIGHT = 0.01


@dataclass(frozen=True)
class Settings:
    """The settings of a fit: everything but the network and the images."""

    operator: Callable | None
    loss: Callable
    regularizer: Callable | None
    learning_rate: float
    input_noise: float
    trace: int
    stop: HoldOut | None
    seed: int
    device: torch.device
    precision: torch.dtype

    def __post_init__(self):
        for name in ("operator", "loss", "regularizer"):
            if name == "loss" or getattr(self, name) is not None:
                check_function(name, getattr(self, name), "a function of tensors (1, C, H, W)")
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("input_noise", self.input_noise, least=0)
        check_integer("trace", self.trace, 0)
        if self.stop is not None and not isinstance(self.stop, HoldOut):
            raise TypeError(f"stop: got {self.stop!r}; wants a HoldOut")
        seeded(self.seed)

    @property
    def exact(self):
        """The dtype of weights, output and loss; only the activations may have fewer bits."""
        return torch.promote_types(self.precision, torch.float32)

    def placed(self):
        """Copies of operator, loss and regularizer, with their tensors on the device of the fit."""
        names = ("operator", "loss", "regularizer")
        return [placed(name, getattr(self, name), self.device, self.exact) for name in names]

    def rates(self):
        """What may differ when a run is continued, and is then reported."""
        # Plain numbers: `load_fit` would refuse NumPy's.
        return {name: float(getattr(self, name)) for name in ("learning_rate", "input_noise")}


@contextlib.contextmanager
def lent(network, settings):
    """The network on the device of the fit, in its faster forms; at the end on the CPU in float32, without gradients.

    Yields the parameters that have no effect meanwhile.
    """
    try:
        move(network, settings.device, settings.exact)
        if takes_channels_last(network, settings.device, settings.precision):
            network.to(memory_format=torch.channels_last)
        with accelerated(network) as idle:
            yield idle
    finally:
        network.zero_grad()
        move(network, "cpu", torch.float32).to(memory_format=torch.contiguous_format)


class Problem:
    """One network, one input and one target on a device, with an optimizer."""

    def __init__(self, network, z, target, reference, shape, steps, settings, idle):
        device, self.exact, self.idle = settings.device, settings.exact, idle
        self.settings, self.network = settings, network
        self.operator, self.loss_function, self.regularizer = settings.placed()
        self.z, self.target = z[None].to(device), target[None].to(device, self.exact)
        self.reference = None if reference is None else reference[None].to(device, self.exact)
        # The meta device, on which tests take dry steps, has no generator of its own.
        self.generator = seeded(settings.seed, device="cpu" if device.type == "meta" else device)
        self.weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._prepare_adam()
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.output = torch.zeros((1, *shape), dtype=self.exact, device=device)
        self.average = torch.zeros_like(self.output)
        self.hold_out = None
        if settings.stop is not None:
            self.hold_out = HeldOutPixels(settings.stop, self.loss_function, self.target, self.output)
        #: For every step: loss; error of the output and of the average against the reference; held-out loss.
        self.curves = ["loss"]
        self.curves += ["error", "average_error"] * (reference is not None) + ["held_out"] * (settings.stop is not None)
        traced = torch.randperm(self.output.numel(), generator=seeded(0, "trace"), device="cpu")[: settings.trace]
        self.traced = traced.to(device)
        # One more than steps: the first is the untrained network's.
        self.records = self.output.new_full((len(self.curves), steps + 1), math.nan)
        self.trace = self.output.new_full((steps + 1, len(self.traced)), math.nan)
        innermost = self.z.ndim == 4 and takes_channels_last(network, device, settings.precision)
        self.layout = torch.channels_last if innermost else torch.contiguous_format
        self.use(settings.precision)

    def _prepare_adam(self):
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=self.settings.learning_rate, fused=True)
        for weight in self.weights.values():
            # Written in place from here on: a graph knows tensors by their addresses.
            weight.grad = torch.zeros_like(weight)
            self.optimizer.state[weight] = {
                # Adam on CUDA takes no other dtype, whatever the default is.
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self.moving = [weight for weight in self.weights.values() if weight not in self.idle]
        self.gradients = [weight.grad for weight in self.moving]

    def use(self, precision):
        """Compute the activations in this dtype from here on."""
        self.precision = precision
        # The gradients of a mean over N numbers are of order 1/N, too small for float16.
        bits = min(15, int(math.log2(self.target.numel())) - 4)
        self.loss_scale = 2.0**bits if precision == torch.float16 else 1.0
        # The weights of batch norms stay exact, whatever the dtype of the image.
        norms = [layer for layer in self.network.modules() if isinstance(layer, BATCH_NORMS)]
        as_they_are = self.idle | {weight for norm in norms for weight in norm.parameters()}
        self.rounded = {
            name: weight
            for name, weight in tensors_in_place(self.network).items()
            if isinstance(weight, nn.Parameter) and precision != self.exact and weight not in as_they_are
        }

    # --- the mathematics

    def step(self):
        """Update the weights, and evaluate them."""
        self.optimizer.step()
        self.count += 1
        self.evaluate()

    def evaluate(self):
        """Compute and record output, loss and gradient of the current weights."""
        output, loss = self.differentiate()
        with torch.no_grad():
            self.record(output, loss)

    def differentiate(self):
        """Compute the gradient of the current weights; return output and loss."""
        output = self.generate(self.draw_input())
        loss = self.loss(output)
        objective = loss if self.regularizer is None else loss + self.regularizer(output)
        gradients = torch.autograd.grad(objective * self.loss_scale, self.moving, materialize_grads=True)
        torch._foreach_copy_(self.gradients, gradients)
        if self.loss_scale != 1:
            torch._foreach_mul_(self.gradients, 1 / self.loss_scale)
        return output, loss

    def draw_input(self):
        """The input of this step, z + n: a copy, which the network may overwrite."""
        x = self.z
        if self.settings.input_noise:
            # Drawn in contiguous order: on the CPU a channels-last tensor is filled by a single thread.
            noise = torch.empty_like(x).normal_(generator=self.generator)
            x = noise.mul_(self.settings.input_noise).add_(x)
        return x.to(self.precision, copy=True, memory_format=self.layout)

    def generate(self, x):
        """The output for an input, f_θ(x)."""
        # Weights are rounded for this pass only: in fewer bits Adam's small steps would be lost.
        if self.rounded:
            rounded = Round.apply(self.precision, *self.rounded.values())
            rounded = dict(zip(self.rounded, rounded, strict=True))
            output = functional_call(self.network, rounded, (x,), tie_weights=False)
        else:
            output = self.network(x)
        # The user's operators and losses expect it contiguous.
        return output.to(self.exact, memory_format=torch.contiguous_format)

    def made(self, output):
        """What is compared with the target: d(output)."""
        return output if self.operator is None else self.operator(output).to(self.exact)

    def loss(self, output):
        """The loss of d(output), over the pixels that may be fitted."""
        made = self.made(output)
        return self.loss_function(made, self.target) if self.hold_out is None else self.hold_out.loss(made)

    def record(self, output, loss):
        """Bring average, curves, trace and the choice of hold-out up to date."""
        self.output.copy_(output)
        self.average.lerp_(self.output, (1 / (self.count + 1)).clamp(min=AVERAGE_WEIGHT).to(self.exact))
        values = [loss]
        if self.reference is not None:
            values += [(image - self.reference).square().mean() for image in (self.output, self.average)]
        if self.hold_out is not None:
            values.append(self.hold_out.held_out_loss(self.made(self.average)))
            self.hold_out.choose(values[-1], self.average, self.count)
        self.records.index_copy_(1, self.count[None], torch.stack(values).to(self.exact)[:, None])
        if len(self.traced):
            self.trace.index_copy_(0, self.count[None], self.output.flatten()[None, self.traced])

    # --- what surrounds it

    def state(self):
        """The tensors that a step changes and the next one needs, by name."""
        # Buffers too: batch norms may keep statistics there.
        tensors = (*self.network.named_parameters(), *self.network.named_buffers())
        state = {"output": self.output, "average": self.average}
        state |= {f"network.{name}": tensor.detach() for name, tensor in tensors}
        for name, weight in self.weights.items():
            moments = self.optimizer.state[weight]
            if weight not in self.idle:
                # The others' stay 0.
                state[f"gradient.{name}"] = weight.grad
            state |= {f"mean.{name}": moments["exp_avg"], f"square.{name}": moments["exp_avg_sq"]}
        if self.hold_out is not None:
            state |= self.hold_out.state()
        return state

    def restore(self, saved, step):
        """Go back to copies of the tensors of `state`, as they were at a step."""
        for name, tensor in self.state().items():
            if name in saved:
                tensor.copy_(saved[name])
        self.count.fill_(step)
        for moments in self.optimizer.state.values():
            moments["step"].fill_(step)

    def resume(self, run):
        """Go on where a run has ended, on the same device or another."""
        saved = run.state | {"output": run.output[None], "average": run.average[None]}
        if run.chosen is not None:
            saved["chosen"] = run.chosen[None]
        self.restore(saved, run.steps)
        if self.hold_out is not None and self.hold_out.step >= 0:
            # The run may be continued with another loss or operator.
            self.hold_out.least.copy_(self.hold_out.held_out_loss(self.made(self.hold_out.chosen)))
        if saved["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(saved["generator"])
        known = slice(0, run.steps + 1)
        for row, name in zip(self.records, self.curves, strict=True):
            if f"record.{name}" in saved:
                row[known] = saved[f"record.{name}"]
        if run.trace is not None and run.trace.shape[1] == len(self.traced):
            self.trace[known] = run.trace.to(self.trace)
        self.trace[run.steps] = self.output.flatten()[self.traced]
        # If the run had no reference, at least its last entry is known.
        for name, image in (("error", self.output), ("average_error", self.average)):
            if name in self.curves:
                self.records[self.curves.index(name), run.steps] = (image - self.reference).square().mean()

    def saved_state(self, step):
        """What a run needs to be continued and does not hold elsewhere, on the CPU."""
        saved = {n: t.cpu().clone() for n, t in self.state().items() if n not in ("output", "average", "chosen")}
        known = self.records[:, : step + 1].cpu()
        saved |= {f"record.{name}": row.clone() for name, row in zip(self.curves, known, strict=True)}
        return saved | {"generator": self.generator.get_state()}
