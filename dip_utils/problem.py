"""What one step computes: noise on z, forward, loss, backward, Adam, records."""

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .stopping import some_positions

#: Weight of the newest output in the exponential average, as in the authors' code.
AVERAGE_WEIGHT = 0.01
#: Steps that CUDA takes one by one before it captures one.
WARM_UP_STEPS = 3


def prepared(function, precision, device):
    """A copy of an operator or a regularizer with its tensors where the fit will be; a plain function as it is."""
    if not isinstance(function, nn.Module):
        return function
    return copy.deepcopy(function).to(device, torch.promote_types(precision, torch.float32))


class Problem:
    """One image, one network, one optimiser on a device."""

    def __init__(
        self,
        network,
        z,
        target,
        *,
        operator,
        regularizer,
        reference,
        learning_rate,
        input_noise,
        stop,
        trace,
        device,
        precision,
        generator,
    ):
        self.device, self.generator, self.input_noise = device, generator, input_noise
        # Weights, output and loss; the activations alone may be of fewer bits.
        self.exact = torch.promote_types(precision, torch.float32)
        self.network = network.to(device, self.exact, memory_format=torch.channels_last)
        self.operator, self.regularizer = operator, regularizer
        self.z, self.target = z[None].to(device), target[None].to(device, self.exact)
        self.reference = None if reference is None else reference[None].to(device, self.exact)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True, capturable=cuda)
        self.optimizer.zero_grad()
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        shape = (1, network.output_channels, *z.shape[1:])
        self.output = torch.zeros(shape, dtype=self.exact, device=device)
        self.average = torch.zeros_like(self.output)
        #: For every step: loss; error of the output and of the average against the reference; criterion.
        self.names = [
            "loss",
            *(["error", "average_error"] if reference is not None else []),
            *(["criterion"] * bool(stop)),
        ]
        self.records = torch.empty(len(self.names), 0, dtype=self.exact, device=device)
        self.traced = some_positions(self.output.numel(), trace, "trace").to(device)
        self.trace = torch.empty(0, len(self.traced), dtype=self.exact, device=device)
        self.mask = None
        # A copy: one criterion may serve several fits.
        self.stop = copy.copy(stop)
        if stop:
            self.mask = self.stop.begin(self.target, self.output, self.operator)
            self.least = torch.full((), math.inf, dtype=self.exact, device=device)
            self.chosen_step = torch.full((), -1, dtype=torch.int64, device=device)
            self.chosen = torch.zeros_like(self.output)
        if self.mask is not None:
            self.target_seen, self.share_seen = self.target * self.mask, self.mask.mean().item()
        self.use(precision)

    def state(self):
        """All tensors that an update changes, by name."""
        moments = self.optimizer.state
        names = [name for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        state = {"count": self.count, "average": self.average}
        for name, parameter in zip(names, self.parameters, strict=True):
            state[f"weight.{name}"] = parameter.detach()
            state[f"exp_avg.{name}"] = moments[parameter]["exp_avg"]
            state[f"exp_avg_sq.{name}"] = moments[parameter]["exp_avg_sq"]
        if self.stop:
            state |= {"stop.least": self.least, "stop.chosen_step": self.chosen_step, "stop.chosen": self.chosen}
            state |= {f"stop.state.{name}": tensor for name, tensor in self.stop.state.items()}
        return state

    def restore(self, saved):
        """Go back to a copy of `state`. A criterion that the copy does not know begins anew."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                if name in saved or not name.startswith("stop."):
                    tensor.copy_(saved[name])
        for moments in self.optimizer.state.values():
            moments["step"].copy_(self.count)

    def saved_state(self, step):
        """A copy on the CPU of all that a run needs to go on."""
        saved = {name: tensor.cpu().clone() for name, tensor in self.state().items()}
        saved |= {f"record.{name}": record[:step].cpu() for name, record in zip(self.names, self.records, strict=True)}
        return saved | {"stop.kind": self.kind(), "generator": self.generator.get_state()}

    def kind(self):
        """The criterion's name and settings, as a tensor for the file."""
        return torch.tensor(list(self.stop.kind().encode() if self.stop else b""), dtype=torch.uint8)

    def resume(self, start):
        """Take up the state of a run, from this device or from another."""
        saved = start.state
        if not torch.equal(saved["stop.kind"], self.kind()):
            # Values of another criterion cannot be compared with this one's.
            saved = {name: tensor for name, tensor in saved.items() if "stop." not in name and "criterion" not in name}
        self.restore(saved)
        if saved["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(saved["generator"])
        unknown = torch.full_like(saved["record.loss"], math.nan)
        self.records = torch.stack([saved.get(f"record.{name}", unknown) for name in self.names]).to(self.records)
        self.trace = self.trace.new_full((start.steps, len(self.traced)), math.nan)
        if start.trace is not None and start.trace.shape[1] == len(self.traced):
            self.trace.copy_(start.trace[: start.steps])

    def make_room(self, length):
        """Lengthen the records to this many steps."""
        more = length - self.records.shape[1]
        self.records = F.pad(self.records, (0, more), value=math.nan)
        self.trace = F.pad(self.trace, (0, 0, 0, more), value=math.nan)

    def use(self, precision):
        """Compute the activations in this dtype from here on."""
        self.precision, self.graph, self.warm = precision, None, 0
        # A gradient of the mean over N numbers is of the order 1/N, below what float16 can hold.
        bits = min(15, int(math.log2(self.target.numel())) - 4)
        self.loss_scale = 2.0**bits if precision == torch.float16 else 1.0
        self.x = torch.empty_like(self.z, dtype=precision, memory_format=torch.channels_last)

    def loss(self, output):
        """Mean squared error against the target, over the values that may be fitted."""
        made = output if self.operator is None else self.operator(output)
        if self.mask is None:
            return F.mse_loss(made, self.target)
        return F.mse_loss(made * self.mask, self.target_seen) / self.share_seen

    def forward(self):
        """Draw noise, compute the output and what is minimised, and record."""
        if self.input_noise:
            # Filled in contiguous order: a channels-last tensor is filled by one thread.
            noise = torch.empty_like(self.z).normal_(generator=self.generator)
            self.x.copy_(noise.mul_(self.input_noise).add_(self.z))
            # Else it would take its memory through the whole pass.
            del noise
        else:
            self.x.copy_(self.z)
        output = self.network(self.x)
        loss = self.loss(output)
        with torch.no_grad():
            self.record(output, loss)
        return loss if self.regularizer is None else loss + self.regularizer(output)

    def record(self, output, loss):
        """Bring average, curves, trace and the choice of the criterion up to this step."""
        self.output.copy_(output)
        self.average.lerp_(self.output, (1 / (self.count + 1)).clamp(min=AVERAGE_WEIGHT).to(self.exact))
        values = [loss]
        if self.reference is not None:
            values += [F.mse_loss(self.output, self.reference), F.mse_loss(self.average, self.reference)]
        if self.stop:
            values.append(self.stop.measure(self.output, self.average))
            better = (values[-1] < self.least) & (self.count >= self.stop.first)
            if self.stop.patience:
                # What comes between the end of patience and the next look of `ended` is too late.
                better &= (self.chosen_step < 0) | (self.count - self.chosen_step <= self.stop.patience)
            for old, new in ((self.least, values[-1]), (self.chosen_step, self.count), (self.chosen, self.average)):
                old.copy_(torch.where(better, new, old))
        self.records.index_copy_(1, self.count[None], torch.stack(values)[:, None])
        if len(self.traced):
            self.trace.index_copy_(0, self.count[None], self.output.flatten()[None, self.traced])

    def step(self):
        """Forward, backward, one update of Adam."""
        objective = self.forward()
        (objective * self.loss_scale).backward()
        if self.loss_scale != 1:
            torch._foreach_mul_([parameter.grad for parameter in self.parameters], 1 / self.loss_scale)
        self.optimizer.step()
        # Not before the backward pass: in the forward pass they would lie between the large images.
        self.optimizer.zero_grad()
        self.count += 1

    def advance(self, run):
        """One step; on CUDA a captured graph of it, one launch instead of some thousand."""
        if self.graph is not None:
            self.graph.replay()
            return
        if self.device.type == "cuda" and self.warm == WARM_UP_STEPS:
            self.graph = self.capture(run)
            if self.graph is not None:
                self.graph.replay()
                return
        self.warm += 1
        self.step()

    def capture(self, run):
        """A CUDA graph of one step, or None where it cannot be had, with the reason."""
        noise_state = self.generator.get_state()
        graph = torch.cuda.CUDAGraph()
        try:
            graph.register_generator_state(self.generator)
            # Other threads, of a panel for one, may use the card meanwhile.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.step()
        except RuntimeError as error:
            reason = str(error.__context__ or error).splitlines()[0]
            run.say(f"No CUDA graph, the steps are launched one by one: {reason}")
            # The old generator may still believe that it is being captured.
            self.generator = torch.Generator(self.device)
            self.generator.set_state(noise_state)
            return None
        return graph

    def ended(self, step):
        """Whether the criterion has run out of patience. Waits for the device."""
        # The newest value is that of the step before.
        return bool(self.stop and self.stop.patience) and 0 <= self.chosen_step < step - self.stop.patience

    def report(self, run, step):
        """Bring the run up to its state at this step."""
        curves = dict(zip(self.names, self.records[:, : step + 1].double().cpu().numpy(), strict=True))
        run.loss, run.criterion = curves["loss"], curves.get("criterion")
        if self.reference is not None:
            with np.errstate(divide="ignore"):
                run.psnr, run.average_psnr = (-10 * np.log10(curves[name]) for name in ("error", "average_error"))
        run.output = self.output[0].cpu().float().clone()
        run.average = self.average[0].cpu().float().clone()
