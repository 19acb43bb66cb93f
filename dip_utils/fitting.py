"""The optimisation: x* = f_θ*(z) with θ* = argmin ‖d(f_θ(z)) − x₀‖².

The mathematics of one step is in `_Problem`, the loop in `_optimize`. Around
them stand the things that an instrument needs: the loop can be watched, stopped
and continued, and it notices when it diverges.
"""

import contextlib
import copy
import functools
import math
import signal
import threading
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .images import check_image, check_same_shape
from .memory import check_memory, free_memory, memory_free, too_large
from .network import SkipNetwork
from .runs import Fit
from .runtime import check_integer, check_number, choose_device, choose_precision, keep_freed_memory, seeded

#: Weight of the newest output in the exponential average, as in the authors' code.
AVERAGE_WEIGHT = 0.01
#: How often, in steps, the losses are looked at for divergence.
CHECK_EVERY = 25
#: How often `fit` goes back to the last good state before it gives up.
MOST_RECOVERIES = 3
#: Steps that CUDA takes one by one before it captures one.
WARM_UP_STEPS = 3
#: The largest share of the time that `watch` may take.
WATCH_SHARE = 0.02

keep_freed_memory()


class _Problem:
    """One image, one network, one optimiser on a device: what a step computes."""

    def __init__(
        self, network, z, target, operator, reference, learning_rate, input_noise, device, precision, generator
    ):
        self.device, self.generator, self.input_noise = device, generator, input_noise
        # Weights, output and loss; the activations alone may be of fewer bits.
        self.exact = torch.promote_types(precision, torch.float32)
        self.network = network.to(device, self.exact, memory_format=torch.channels_last)
        self.operator = copy.deepcopy(operator).to(device, self.exact) if isinstance(operator, nn.Module) else operator
        self.z, self.target = z[None].to(device), target[None].to(device, self.exact)
        self.reference = None if reference is None else reference[None].to(device, self.exact)
        self.noise = torch.empty_like(self.z)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True, capturable=cuda)
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        shape = (1, network.output_channels, *z.shape[1:])
        self.output = torch.zeros(shape, dtype=self.exact, device=device)
        self.average = torch.zeros(shape, dtype=self.exact, device=device)
        #: Rows: loss; error of the output and of the average against the reference.
        self.records = torch.empty(1 if reference is None else 3, 0, dtype=self.exact, device=device)
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
        return state

    def restore(self, saved):
        """Go back to a copy of `state`."""
        state = self.state()
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(saved[name])
        for moments in self.optimizer.state.values():
            moments["step"].copy_(self.count)

    def saved_state(self, step):
        """A copy on the CPU of all that a run needs to go on."""
        saved = {name: tensor.cpu().clone() for name, tensor in self.state().items()}
        return saved | {"records": self.records[:, :step].cpu(), "generator": self.generator.get_state()}

    def resume(self, saved):
        """Take up a saved state, on this device or from another."""
        self.restore(saved)
        if saved["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(saved["generator"])
        history = torch.full((len(self.records), saved["records"].shape[1]), math.nan, dtype=self.exact)
        rows = min(len(history), len(saved["records"]))
        history[:rows] = saved["records"][:rows]
        self.records = history.to(self.device)

    def make_room(self, length):
        """Lengthen the records to this many steps."""
        more = length - self.records.shape[1]
        self.records = F.pad(self.records, (0, more), value=math.nan)

    def use(self, precision):
        """Compute the activations in this dtype from here on."""
        self.precision, self.graph, self.warm = precision, None, 0
        # A gradient of the mean over N numbers is of the order 1/N, below what float16 can hold.
        bits = min(15, int(math.log2(self.target.numel())) - 4)
        self.loss_scale = 2.0**bits if precision == torch.float16 else 1.0
        self.x = torch.empty_like(self.z, dtype=precision, memory_format=torch.channels_last)

    def forward(self):
        """Draw noise, compute the output and the loss, and record them."""
        if self.input_noise:
            # Filled in contiguous order: a channels-last tensor is filled by one thread.
            self.x.copy_(self.noise.normal_(generator=self.generator).mul_(self.input_noise).add_(self.z))
        else:
            self.x.copy_(self.z)
        output = self.network(self.x)
        loss = F.mse_loss(output if self.operator is None else self.operator(output), self.target)
        with torch.no_grad():
            self.output.copy_(output)
            self.average.lerp_(self.output, (1 / (self.count + 1)).clamp(min=AVERAGE_WEIGHT).to(self.exact))
            values = [loss]
            if self.reference is not None:
                values += [F.mse_loss(self.output, self.reference), F.mse_loss(self.average, self.reference)]
            self.records.index_copy_(1, self.count[None], torch.stack(values)[:, None])
        return loss

    def step(self):
        """Forward, backward, one update of Adam."""
        loss = self.forward()
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.loss_scale).backward()
        if self.loss_scale != 1:
            torch._foreach_mul_([parameter.grad for parameter in self.parameters], 1 / self.loss_scale)
        self.optimizer.step()
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

    def report(self, run, step):
        """Bring the run up to its state at this step."""
        curves = self.records[:, : step + 1].double().cpu().numpy()
        run.loss = curves[0]
        if self.reference is not None:
            with np.errstate(divide="ignore"):
                run.psnr, run.average_psnr = -10 * np.log10(curves[1:])
        run.output = self.output[0].cpu().float().clone()
        run.average = self.average[0].cpu().float().clone()


class _Guard:
    """Notices a divergence within 2 × `CHECK_EVERY` steps and goes back to the last good state."""

    def __init__(self, problem, run, step):
        self.problem, self.run = problem, run
        self.good = {name: tensor.clone() for name, tensor in problem.state().items()}
        self.good_step = self.checked = step
        history = problem.records[0, max(0, step - CHECK_EVERY) : step]
        self.usual = history.median().item() if len(history) else math.inf
        self.doubtful, self.recoveries = False, 0
        self.variance = problem.target.var(correction=0).item()

    def check(self, step):
        """Look at the newest losses; return the step to go on from."""
        if step - self.checked < CHECK_EVERY and step < self.run.planned:
            return step
        losses = self.problem.records[0, self.checked : step].cpu()
        self.checked = step
        finite = torch.isfinite(losses).all()
        high = finite and losses[-5:].min() > max(4 * self.usual, self.variance / 2)
        if finite and not high:
            self.usual, self.doubtful, self.good_step = losses.median().item(), False, step
            torch._foreach_copy_(list(self.good.values()), list(self.problem.state().values()))
            return step
        if high and not self.doubtful:
            # Adam's usual spikes are mended by the next look.
            self.doubtful = True
            return step
        what = "stayed high after a jump" if high else "became NaN or infinite"
        if self.recoveries == MOST_RECOVERIES:
            self.run.diverged = True
            self.run.say(f"The loss {what} again: given up at step {self.good_step}, the last good state is kept.")
        else:
            self.recoveries += 1
            self.problem.use(self.problem.exact)
            exact = str(self.problem.exact)[6:]
            self.run.say(f"The loss {what} by step {step}: going on from step {self.good_step} in {exact}.")
        return self.go_back()

    def is_sound(self, step):
        """Whether all losses since the last look are finite."""
        return bool(torch.isfinite(self.problem.records[0, self.checked : step]).all())

    def go_back(self):
        """Restore the last good state and return its step. The noise that follows is new."""
        self.problem.restore(self.good)
        self.checked, self.doubtful = self.good_step, False
        self.run.kept = {step: image for step, image in self.run.kept.items() if step <= self.good_step}
        return self.good_step


class _Watcher:
    """Calls `watch` at most twice a second and for at most `WATCH_SHARE` of the time."""

    def __init__(self, watch, begun, presses):
        self.watch, self.begun, self.shown, self.presses = watch, begun, begun, presses
        self.spent = 0.0

    def is_due(self):
        if self.watch is None:
            return False
        now = time.perf_counter()
        return now - self.shown > 0.5 and self.spent < WATCH_SHARE * (now - self.begun)

    def show(self, run):
        if self.watch is None:
            return
        before = time.perf_counter()
        try:
            self.watch(run)
        except KeyboardInterrupt:
            self.presses.append(signal.SIGINT)
        except Exception as error:
            # A picture that cannot be drawn is no reason to lose the run.
            self.watch = None
            run.say(f"The watch failed and was dropped: {error!r}")
        now = time.perf_counter()
        # The first call sets things up: to count it would silence the watch for long.
        self.spent += 0 if self.shown == self.begun else now - before
        self.shown = now


@contextlib.contextmanager
def _stop_button():
    """Let the first ■ (SIGINT) be read between two steps; a second one raises as usual."""
    presses = []
    if threading.current_thread() is not threading.main_thread():
        yield presses
        return
    before = signal.getsignal(signal.SIGINT)

    def press(number, frame):
        if presses:
            raise KeyboardInterrupt
        presses.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@functools.cache
def _side_stream(device):
    """One for all fits: PyTorch keeps the memory that it may use again by stream."""
    return torch.cuda.Stream(device)


def _own_stream(device):
    """On CUDA a stream that is not the default one: a graph cannot be captured there."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def _check(network, z, target, operator, reference, keep, start, steps, precision, device):
    """Raise for arguments that do not fit together, before any work."""
    if not isinstance(network, SkipNetwork):
        raise TypeError(f"network: got {type(network).__name__}; wants a SkipNetwork")
    if isinstance(z, torch.Tensor) and z.ndim == 3:
        # Before anything that takes time in proportion to the image.
        check_memory(network, *z.shape[1:], precision=precision, device=device)
    check_image("z", z, bounded=False)
    if len(z) != network.input_channels:
        raise ValueError(f"z: got {len(z)} channels; wants {network.input_channels}, the network's input_channels")
    if min(z.shape[1:]) < network.smallest_side:
        raise ValueError(
            f"z: got {z.shape[1]} × {z.shape[2]}; wants at least {network.smallest_side} on each side "
            "for the network's scales"
        )
    # Recipe A's target leaves [0, 1].
    check_image("target", target, bounded=False)
    shape = (network.output_channels, *z.shape[1:])
    if operator is None:
        made, maker = shape, "the network makes from z"
    else:
        if not callable(operator):
            raise TypeError(f"operator: got {type(operator).__name__}; wants a function of a tensor (1, C, H, W)")
        small = operator(torch.zeros(1, *shape))
        if not isinstance(small, torch.Tensor):
            raise TypeError(f"operator: got one that returns {type(small).__name__}; wants one that returns a tensor")
        made, maker = tuple(small.shape[1:]), "the operator makes of the network's output"
    if tuple(target.shape) != made:
        raise ValueError(f"target: got shape {tuple(target.shape)}; wants {made}, what {maker}")
    if reference is not None:
        check_image("reference", reference, bounded=False)
        if tuple(reference.shape) != shape:
            raise ValueError(
                f"reference: got shape {tuple(reference.shape)}; wants {shape}, what the network makes from z"
            )
    first = 0 if start is None else start.steps
    for step in keep:
        check_integer("keep", step, 0)
        if not first <= step <= first + steps:
            raise ValueError(f"keep: got {step}; wants steps from {first} to {first + steps}")
    if start is not None:
        check_same_shape("target", target, "the target of start", start.target)
        wanted = {name: tuple(p.shape) for name, p in network.named_parameters() if p.requires_grad}
        had = {name[7:]: tuple(t.shape) for name, t in start.state.items() if name.startswith("weight.")}
        if wanted != had:
            raise ValueError("start: got a run of another network; wants one of a network built like this one")


def fit(
    network,
    z,
    target,
    *,
    operator=None,
    steps,
    learning_rate=0.01,
    input_noise=1 / 30,
    reference=None,
    keep=(),
    seed=0,
    start=None,
    watch=None,
    device="auto",
    precision="auto",
):
    """Fit a network to one image by gradient descent: the deep image prior.

    Minimises ‖d(f_θ(z + n)) − x₀‖² / size over θ with Adam; the noise n is drawn
    anew at each step. Interrupting it (■) ends it between two steps and
    returns the run so far.

    Parameters
    ----------
    network : SkipNetwork
        The generator f_θ; it is trained in place, and is left on the CPU in
        float32.
    z : Tensor, (input_channels, H, W)
        The input, as `random_input` makes it.
    target : Tensor, (C, h, w)
        The image x₀; (output_channels, H, W) where there is no operator. May
        leave [0, 1].
    operator : callable, optional
        The differentiable operator d, from (1, output_channels, H, W) to
        (1, C, h, w); the identity where not given.
    steps : int
        Updates to do in this call.
    learning_rate : float
        Of Adam.
    input_noise : float
        Standard deviation of n.
    reference : Tensor, (output_channels, H, W), optional
        The ground truth. Used to report PSNR, never to train.
    keep : iterable of int
        Steps whose outputs are kept, counted from the start of the run: 0 is
        the untrained network, `steps` the last output.
    seed : int
        Of the noise n.
    start : Fit, optional
        A run to go on with: its weights and moments are taken up, and its noise
        where it ran on the same kind of device.
    watch : callable, optional
        Called with the run so far, at most twice a second and for at most 2 %
        of the time, and once at the end. It may raise KeyboardInterrupt to stop
        the fit, as ■ does.
    device : {"auto", "cpu", "cuda", "cuda:N"} or torch.device
        CUDA where there is one, else the CPU.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}
        Of the activations; see `choose_precision`.

    Returns
    -------
    Fit

    Raises
    ------
    TypeError, ValueError
        If an argument has no meaning; the message names it. Nothing has been
        trained then.
    MemoryError
        If the fit is too large for the free memory; the message names the
        largest size that is not.

    References
    ----------
    Deep Image Prior, equation 2; the report's requirements 1 to 3.
    """
    check_integer("steps", steps, 1)
    check_number("learning_rate", learning_rate, above=0)
    check_number("input_noise", input_noise, least=0)
    try:
        keep = set(keep)
    except TypeError:
        raise TypeError(f"keep: got {keep!r}; wants some steps, for example (0, {steps})") from None
    if watch is not None and not callable(watch):
        raise TypeError(f"watch: got {watch!r}; wants a function of the run")
    if start is not None and not (isinstance(start, Fit) and start.state):
        raise TypeError(f"start: got {type(start).__name__}; wants a finished or interrupted Fit")
    device = choose_device(device)
    precision = choose_precision(precision, device)
    generator = seeded(seed, device)
    _check(network, z, target, operator, reference, keep, start, steps, precision, device)

    try:
        with _stop_button() as presses, _own_stream(device):
            try:
                problem = _Problem(
                    network, z, target, operator, reference, learning_rate, input_noise, device, precision, generator
                )
                return _optimize(problem, target, reference, int(steps), keep, start, watch, presses)
            finally:
                network.zero_grad()
                network.to("cpu", torch.float32)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        # Its traceback holds what was allocated; it is gone when this block is left.
        problem = None
    free_memory(device)
    raise too_large(network, *z.shape[1:], precision, device, memory_free(device), "ran out of memory")


def _optimize(problem, target, reference, steps, keep, start, watch, presses):
    """Step until the end, or until the run is stopped; return the run."""
    begun, earlier, step = time.perf_counter(), 0.0, 0
    run = Fit(target=target, reference=reference, planned=steps, device=str(problem.device))
    if start is not None:
        step, earlier = start.steps, start.seconds
        run.kept, run.remarks, run.planned = dict(start.kept), list(start.remarks), step + steps
        problem.resume(start.state)
    problem.make_room(run.planned + 1)
    guard, watcher = _Guard(problem, run, step), _Watcher(watch, begun, presses)
    try:
        while step < run.planned and not presses and not run.diverged:
            problem.advance(run)
            if step in keep:
                run.kept[step] = problem.output[0].to("cpu", torch.float32, non_blocking=True, copy=True)
            step += 1
            if watcher.is_due():
                problem.report(run, step - 1)
                run.seconds = earlier + time.perf_counter() - begun
                # Otherwise the guard mends it at its next look.
                if np.isfinite(run.loss[-1]):
                    watcher.show(run)
            step = guard.check(step)
    except KeyboardInterrupt:
        # Raised inside a step, by `operator`; a second press of ■ means it.
        if presses:
            raise
        presses.append(signal.SIGINT)
        step = guard.go_back()
    if not guard.is_sound(step):
        step = guard.go_back()
    run.state = problem.saved_state(step)
    # The graph holds the memory of a whole step.
    problem.graph = None
    problem.optimizer.zero_grad()
    with torch.no_grad():
        problem.forward()
    problem.report(run, step)
    if step in keep:
        run.kept[step] = run.output
    run.running, run.interrupted = False, bool(presses) and step < run.planned
    run.seconds = earlier + time.perf_counter() - begun
    run.precision = str(problem.precision)[6:]
    if run.interrupted:
        run.say(f"Stopped by hand at step {step} of {run.planned}; the run so far is kept.")
    watcher.show(run)
    return run
