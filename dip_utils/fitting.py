"""The optimisation: x* = f_θ*(z) with θ* = argmin ‖d(f_θ(z)) − x₀‖² + R(f_θ(z)).

`fit` checks its arguments and runs the loop. The mathematics of one step is in
`problem.py`; what makes the loop safe to watch, to stop and to leave alone is in
`guarding.py`.
"""

import contextlib
import functools
import math
import signal
import threading
import time

import numpy as np
import torch

from .guarding import Guard, Watcher, stop_button
from .images import check_image, check_same_shape
from .memory import available_memory, check_memory, check_records, release_memory, too_large
from .network import Generator
from .problem import Problem, prepared
from .runs import Fit
from .runtime import check_integer, check_number, choose_device, choose_precision, keep_freed_memory, seeded
from .stopping import Criterion, HoldOut

#: What PyTorch says when the system gives it no memory, on Linux and macOS, and on Windows.
ALLOCATION_FAILED = ("can't allocate memory", "not enough memory")

keep_freed_memory()


@functools.cache
def _side_stream(device, thread):
    """One for all fits of a thread: PyTorch keeps the memory that it may use again by stream.

    A thread must not launch anything on the stream on which another one captures a graph.
    """
    return torch.cuda.Stream(device)


def _own_stream(device):
    """On CUDA a stream that is not the default one: a graph cannot be captured there."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = _side_stream(device, threading.get_ident())
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def _try(name, function, shape, precision, device):
    """What the operator or the regularizer makes of an image, where and in the dtype that the fit will use."""
    if not callable(function):
        raise TypeError(f"{name}: got {type(function).__name__}; wants a function of a tensor (1, C, H, W)")
    dtype = torch.promote_types(precision, torch.float32)
    try:
        with torch.enable_grad():
            return function(torch.zeros(1, *shape, device=device, dtype=dtype, requires_grad=True))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name}: got one that fails for {str(dtype)[6:]} on {device}: {reason}; wants one that computes there, "
            "as a tensor that it needs does where it is a buffer of an nn.Module"
        ) from error


def _check_network(network, z, precision, device):
    """Raise unless the network can make an image from z here; return that image's shape."""
    if not isinstance(network, Generator):
        raise TypeError(f"network: got {type(network).__name__}; wants a SkipNetwork or Pixels")
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
    if network.size not in (None, tuple(z.shape[1:])):
        height, width = network.size
        raise ValueError(f"z: got {z.shape[1]} × {z.shape[2]}; wants {height} × {width}, the network's size")
    return (network.output_channels, *z.shape[1:])


def _check_loss(target, operator, regularizer, shape, precision, device):
    """Raise unless an output of this shape can be compared with the target."""
    # Recipe A's target leaves [0, 1].
    check_image("target", target, bounded=False)
    if operator is None:
        made, maker = shape, "the network makes from z"
    else:
        small = _try("operator", operator, shape, precision, device)
        if not isinstance(small, torch.Tensor):
            raise TypeError(f"operator: got one that returns {type(small).__name__}; wants one that returns a tensor")
        if not small.requires_grad:
            raise TypeError("operator: got one whose result has no gradient; wants a differentiable function")
        made, maker = tuple(small.shape[1:]), "the operator makes of the network's output"
    if tuple(target.shape) != made:
        raise ValueError(f"target: got shape {tuple(target.shape)}; wants {made}, what {maker}")
    if regularizer is not None:
        value = _try("regularizer", regularizer, shape, precision, device)
        if not isinstance(value, torch.Tensor) or value.ndim or not value.requires_grad:
            raise TypeError(
                "regularizer: got one that returns no number with a gradient; "
                "wants one that returns a tensor without dimensions"
            )


def _check_recording(reference, keep, trace, shape, first, last):
    """Raise unless what is to be recorded from the first step to the last is there, and has room."""
    if reference is not None:
        check_image("reference", reference, bounded=False)
        if tuple(reference.shape) != shape:
            raise ValueError(
                f"reference: got shape {tuple(reference.shape)}; wants {shape}, what the network makes from z"
            )
    for step in keep:
        check_integer("keep", step, 0)
        if not first <= step <= last:
            raise ValueError(f"keep: got {step}; wants steps from {first} to {last}")
    if trace > math.prod(shape):
        raise ValueError(f"trace: got {trace}; wants at most {math.prod(shape)}, the values of an output")
    check_records(len(keep), trace * (last + 1), math.prod(shape))


def _check_start(start, network, target, stop, shape):
    """Raise unless the fit can go on from this run."""
    check_same_shape("target", target, "the target of start", start.target)
    if not torch.equal(target, start.target):
        raise ValueError("start: got a run on another target; wants one on this target")
    if tuple(start.output.shape) != shape:
        raise ValueError(f"start: got a run with outputs of {tuple(start.output.shape)}; wants {shape}")
    wanted = {name: tuple(p.shape) for name, p in network.named_parameters() if p.requires_grad}
    had = {name[7:]: tuple(t.shape) for name, t in start.state.items() if name.startswith("weight.")}
    if wanted != had:
        raise ValueError("start: got a run of another network; wants one of a network built like this one")
    if isinstance(stop, HoldOut) and not stop.leaves_out_what(bytes(start.state["stop.kind"].tolist()).decode()):
        raise ValueError("stop: got a HoldOut, but the run in start has fitted the values that it would leave out")


def fit(
    network,
    z,
    target,
    *,
    operator=None,
    regularizer=None,
    steps,
    learning_rate=0.01,
    input_noise=1 / 30,
    reference=None,
    keep=(),
    trace=0,
    stop=None,
    seed=0,
    start=None,
    watch=None,
    device="auto",
    precision="auto",
):
    """Fit a network to one image by gradient descent: the deep image prior.

    Minimises ‖d(f_θ(z + n)) − x₀‖² / size + R(f_θ(z + n)) over θ with Adam; the
    noise n is drawn anew at each step. Interrupting it (■) ends it between two
    steps and returns the run so far.

    Parameters
    ----------
    network : SkipNetwork or Pixels
        The generator f_θ; it is trained in place, and is left on the CPU in
        float32.
    z : Tensor, (input_channels, H, W)
        The input, as `random_input` makes it.
    target : Tensor, (C, h, w)
        The image x₀; (output_channels, H, W) where there is no operator. May
        leave [0, 1].
    operator : callable, optional
        The differentiable operator d, from (1, output_channels, H, W) to
        (1, C, h, w); the identity where not given. Of a module `fit` uses a copy,
        its tensors on the device and in the dtype of the loss.
    regularizer : callable, optional
        R, a differentiable function of the output (1, output_channels, H, W),
        for example `total_variation` times a weight. The recorded loss is
        without it.
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
    trace : int
        How many values of the output to record at every step, at random places:
        what a criterion needs to be tried on the finished run. Takes four bytes
        for each value and step.
    stop : WindowedVariance, ExponentialVariance or HoldOut, optional
        Ends the run when it has run out of patience, and remembers the average
        at the step that it chooses. It never sees `reference`.
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
    Deep Image Prior, equations 1 and 2; the report's requirements 1 to 3.
    """
    check_integer("steps", steps, 1)
    check_number("learning_rate", learning_rate, above=0)
    check_number("input_noise", input_noise, least=0)
    try:
        keep = set(keep)
    except TypeError:
        raise TypeError(f"keep: got {keep!r}; wants some steps, for example (0, {steps})") from None
    check_integer("trace", trace, 0)
    if watch is not None and not callable(watch):
        raise TypeError(f"watch: got {watch!r}; wants a function of the run")
    if stop is not None and not isinstance(stop, Criterion):
        raise TypeError(f"stop: got {stop!r}; wants a criterion, for example HoldOut()")
    if start is not None and not (isinstance(start, Fit) and start.state):
        raise TypeError(f"start: got {type(start).__name__}; wants a finished or interrupted Fit")
    device = choose_device(device)
    precision = choose_precision(precision, device)
    generator = seeded(seed, device=device)
    operator, regularizer = (prepared(function, precision, device) for function in (operator, regularizer))
    shape = _check_network(network, z, precision, device)
    _check_loss(target, operator, regularizer, shape, precision, device)
    first = 0 if start is None else start.steps
    _check_recording(reference, keep, trace, shape, first, first + int(steps))
    if start is not None:
        _check_start(start, network, target, stop, shape)

    try:
        with stop_button() as presses, _own_stream(device):
            try:
                problem = Problem(
                    network, z, target,
                    operator=operator, regularizer=regularizer, reference=reference, learning_rate=learning_rate,
                    input_noise=input_noise, stop=stop, trace=trace, device=device, precision=precision,
                    generator=generator,
                )  # fmt: skip
                return _optimize(problem, target, reference, int(steps), keep, start, watch, presses)
            finally:
                network.zero_grad()
                network.to("cpu", torch.float32)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            words in str(error) for words in ALLOCATION_FAILED
        ):
            raise
        # Its traceback holds what was allocated; it is gone when this block is left.
        problem = None
    release_memory(device)
    raise too_large(network, *z.shape[1:], precision, device, available_memory(device), "ran out of memory")


def _optimize(problem, target, reference, steps, keep, start, watch, presses):
    """Step until the end, or until the run is stopped; return the run."""
    begun, earlier, step = time.perf_counter(), 0.0, 0
    run = Fit(target=target, reference=reference, planned=steps, device=str(problem.device))
    if start is not None:
        step, earlier = start.steps, start.seconds
        run.kept, run.remarks, run.planned = dict(start.kept), list(start.remarks), step + steps
        problem.resume(start)
    problem.make_room(run.planned + 1)
    guard, watcher = Guard(problem, run, step), Watcher(watch, begun, presses)
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
            # Only where the guard has waited for the device anyway.
            if guard.checked == step and problem.ended(step):
                run.stopped = step < run.planned and not run.diverged
                break
    except KeyboardInterrupt:
        # Raised inside a step, by `operator`; a second press of ■ means it.
        if presses:
            raise
        presses.append(signal.SIGINT)
        step = guard.go_back()
    # The graph holds the memory of a whole step.
    problem.graph = None
    while True:
        run.state = problem.saved_state(step)
        # What the last update has done shows only now.
        with torch.no_grad():
            problem.forward()
        if guard.is_sound(step) or step == guard.good_step:
            break
        step, run.diverged = guard.go_back(), not presses
        run.say(f"The last losses are NaN or infinite: the run ends at step {step}, the last good state.")
    if guard.doubtful or guard.is_high(problem.records[0, step]):
        run.say("The last losses are high after a jump: the last output may be the worse for it.")
    problem.report(run, step)
    if problem.trace.shape[1]:
        # A copy: a slice would hold on to the room for all planned steps.
        run.trace = problem.trace[: step + 1].to("cpu", torch.float32, copy=True)
    if problem.stop and problem.chosen_step >= 0:
        run.chosen_step, run.chosen = problem.chosen_step.item(), problem.chosen[0].cpu().float()
    if step in keep:
        run.kept[step] = run.output
    run.running, run.interrupted = False, bool(presses) and step < run.planned
    run.seconds = earlier + time.perf_counter() - begun
    run.precision = str(problem.precision)[6:]
    if run.interrupted:
        run.say(f"Stopped by hand at step {step} of {run.planned}; the run so far is kept.")
    watcher.show(run)
    return run
