"""The method: x* = f_θ*(z) with θ* = argmin ‖d(f_θ(z)) − x₀‖² + R(f_θ(z)), by Adam.

`fit` checks its arguments and runs the loop; `Fit` is its result. The mathematics
of one step is in `engine/step.py`. In plain PyTorch the loop would be

    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(steps):
        output = network(z + torch.randn(z.shape) / 30)
        loss = torch.nn.functional.mse_loss(operator(output), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""

import math
import time
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch.nn import functional as F

from .engine import memory, saving
from .engine.checks import check_integer, first_line
from .engine.graph import Stepper, on_device
from .engine.guard import Guard
from .engine.machine import choose_device, choose_precision, keep_freed_memory, release_memory, say
from .engine.rehearsal import checked_images, checked_steps, evaluate_untrained, rehearse, reserved
from .engine.step import Problem, Settings, lent
from .engine.watch import Watcher, stop_button
from .network import SkipNetwork


# Tensors cannot be compared as a whole.
@dataclass(eq=False)
class Fit:
    """The result of a fit.

    Entry t of a curve belongs to the network after t updates: entry 0 to the
    untrained network, entry `steps` to `output`.

    Attributes
    ----------
    loss : ndarray, (steps + 1,)
        Of d(output) against the target; with `HoldOut`, over the fitted pixels
        alone.
    psnr, average_psnr : ndarray, (steps + 1,), or None
        PSNR in dB of the output and of the average; None without a reference.
    held_out : ndarray, (steps + 1,), or None
        The loss of the average at the pixels that `HoldOut` leaves out.
    trace : Tensor, (steps + 1, values), or None
        Some values of each output, if `trace` was given.
    kept : dict of int to Tensor (C, H, W)
        The outputs at the steps that were asked for.
    output, average : Tensor, (C, H, W)
        The last output, and the exponential average of all outputs with weight
        0.01 for the newest; over the first 100 it is their plain mean.
    chosen, chosen_step : Tensor (C, H, W) and int, or None
        The average at the step that hold-out chose, and that step. None while the
        fit runs, as is the trace.
    z, target, reference : Tensor
        As given to `fit`; the last may be None.
    steps, planned : int
        Updates done, and updates asked for.
    seconds : float
        Time spent in the loop.
    device, precision : str
        Where it ran, and the dtype of the activations at the end.
    running, interrupted, diverged : bool
        Whether the fit is under way, was stopped by hand, or gave up. All three
        are False after hold-out has ended it early.
    remarks : list of str
        What happened on the way, one sentence each.
    rates, state : dict
        What `fit(..., start=run)` compares, and what it starts from.
    """

    #: While the fit runs, a function that returns as a dict what is filled in at its end.
    complete = None

    z: torch.Tensor
    target: torch.Tensor
    reference: torch.Tensor | None
    planned: int
    device: str
    rates: dict
    precision: str = ""
    loss: np.ndarray = None
    psnr: np.ndarray = None
    average_psnr: np.ndarray = None
    held_out: np.ndarray = None
    trace: torch.Tensor = None
    kept: dict = field(default_factory=dict)
    output: torch.Tensor = None
    average: torch.Tensor = None
    chosen: torch.Tensor = None
    chosen_step: int | None = None
    seconds: float = 0.0
    running: bool = True
    interrupted: bool = False
    diverged: bool = False
    remarks: list = field(default_factory=list)
    state: dict = field(default_factory=dict)

    @property
    def steps(self):
        """Number of updates done."""
        return len(self.loss) - 1

    @property
    def result(self):
        """The image to use: the average at the step that hold-out chose, or, without hold-out, at the last step."""
        return self.average if self.chosen is None else self.chosen

    def say(self, sentence):
        """Print a remark and remember it."""
        self.remarks.append(sentence)
        say(sentence)

    def save(self, path):
        """Write the run to a file that ends with ``.pt``, from which `load_fit` restores all of it.

        A run saved or copied from `watch`, while it is under way, becomes one that was stopped there.
        """
        content = self.__getstate__()
        saving.save({entry.name: content[entry.name] for entry in fields(self)}, path)

    def __getstate__(self):
        if self.complete is None:
            return vars(self)
        return vars(self) | self.complete() | {"complete": None, "running": False, "interrupted": True}

    def __repr__(self):
        quality = "" if self.psnr is None else f", PSNR {self.psnr[-1]:.2f} dB"
        return (
            f"<Fit: {self.steps} of {self.planned} steps in {self.seconds:.0f} s "
            f"on {self.device} in {self.precision}, loss {self.loss[-1]:.4g}{quality}>"
        )


def load_fit(path):
    """Read a run that `Fit.save` wrote; FileNotFoundError or ValueError if `path` holds none, or only part of one."""
    content = saving.load(path)
    curves = ("loss", "psnr", "average_psnr", "held_out")
    return Fit(**content | {name: content[name].numpy() for name in curves if content[name] is not None})


def fit(
    network,
    z,
    target,
    *,
    operator=None,
    loss=F.mse_loss,
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
    """Fit a network to one image: the deep image prior.

    Minimises loss(d(f_θ(z + n)), x₀) + R(f_θ(z + n)) over θ with Adam; the noise
    n is drawn anew at each step. Interrupting it (■) ends it between two steps
    and returns the run so far.

    Parameters
    ----------
    network : Module
        The generator f_θ, from (1, C, H, W) to (1, C', H', W'): a `SkipNetwork`
        or any other; for signals, from (1, C, T) to (1, C', T'). It is trained in
        place and left on the CPU in float32. During the fit its layers have faster
        forms: to keep its weights from `watch`, take ``deepcopy(network.state_dict())``.
    z : Tensor, (C, H, W)
        The input, as `random_input` makes it.
    target : Tensor, (c, h, w)
        The image x₀; (C', H', W') if there is no operator. May lie outside [0, 1].
    operator : callable, optional
        The differentiable operator d, from (1, C', H', W') to (1, c, h, w); the
        identity if not given. A module is copied, with its tensors on the device
        and in the dtype of the loss.
    loss : callable
        A function of d(output) and target that returns a number: the mean squared
        error, or ``torch.nn.functional.l1_loss``, for example. With `HoldOut` it
        has to be a mean over pixels; it is then also called on some of them, in a
        row (1, c, 1, n).
    regularizer : callable, optional
        R, a differentiable function of the output (1, C', H', W'), for example
        `total_variation` times a weight. The recorded loss is without it.
    steps : int
        Updates to do in this call.
    learning_rate : float
        Of Adam.
    input_noise : float
        Standard deviation of n.
    reference : Tensor, (C', H', W'), optional
        The ground truth. Used to report PSNR, never to train.
    keep : iterable of int
        Steps whose outputs are kept, counted from the start of the run: 0 is
        the untrained network. Without `start`, `steps` is the last output.
    trace : int
        How many values of the output to record at every step, at random places:
        what ES-WMV and ES-EMV are computed from.
    stop : HoldOut, optional
        Ends the run when its patience is used up, and keeps the average at the
        step that it chooses. It never sees `reference`.
    seed : int
        Of the noise n. Rounding depends on the number of CPU threads, which `fit`
        chooses by speed. With ``OMP_NUM_THREADS=1`` a fit repeats to the last bit,
        unless the network draws random numbers of its own, as dropout does.
    start : Fit, optional
        A run to continue: its weights and moments are taken up, and its random
        state too if it ran on the same kind of device. It must have the same z,
        target and reference (if both have one), a network built alike and, with
        `stop`, a `HoldOut` too. Operator, loss, learning rate and noise may differ.
    watch : callable, optional
        Called with the run so far, at most twice a second and for at most 2 %
        of the time, and once at the end. It may save the run, in case the machine
        is lost, or raise KeyboardInterrupt to stop the fit, as ■ does.
    device : {"auto", "cpu", "cuda", "cuda:N"} or torch.device
        "auto" is CUDA if there is a card, else the CPU. On CUDA a step is captured
        as a graph: Python code of network and operator runs only a few times.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}
        Of the activations; see `choose_precision`. For a network that is not a
        `SkipNetwork`, or has buffers, "auto" is float32.

    Returns
    -------
    Fit

    Raises
    ------
    TypeError, ValueError
        If an argument makes no sense; the message names it. Nothing has been
        trained then.
    MemoryError
        If the fit needs more memory than is free. Where that is foreseen, the
        message names the largest size that would do.

    References
    ----------
    Deep Image Prior, equations 1 and 2; the report's requirements 1 to 3.
    """
    if start is not None and not (isinstance(start, Fit) and start.state):
        raise TypeError(f"start: got {type(start).__name__}; wants a finished or interrupted Fit")
    device = choose_device(device)
    if watch is not None and (isinstance(watch, type) or not callable(watch)):
        raise TypeError(f"watch: got {watch!r}; wants a function of the run, for example LivePlot()")
    check_integer("steps", steps, 1)
    # Buffers are not rounded, and do not mix with activations that are.
    plain = isinstance(network, SkipNetwork) and not any(buffer.is_floating_point() for buffer in network.buffers())
    if precision == "auto" and not plain:
        precision = "float32"
    settings = Settings(
        operator, loss, regularizer, learning_rate, input_noise, trace, stop, seed,
        device, choose_precision(precision, device),
    )  # fmt: skip
    keep_freed_memory()
    try:
        with (
            torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False),
            stop_button() as presses, reserved(network),
        ):  # fmt: skip
            images = checked_images(z, target, reference)
            shape = rehearse(network, images, settings, start)
            before = 0 if start is None else start.steps
            run = Fit(*images, before + int(steps), str(device), settings.rates())
            keep, values = checked_steps(keep, before, run.planned), math.prod(shape)
            if start is not None:
                run.seconds, run.kept, run.remarks = start.seconds, dict(start.kept), list(start.remarks)
                for name, rate in run.rates.items():
                    if rate != start.rates[name]:
                        run.say(f"{name}: {rate:g}, where the run in start had {start.rates[name]:g}.")
            # Four curves at most.
            records = run.planned + 1
            memory.check_records(4 * records, len(keep) * values, min(trace, values) * records, device)
            with on_device(device), lent(network, settings) as idle:
                problem = Problem(network, *images, shape, run.planned, settings, idle)
                try:
                    return _descend(problem, run, start, keep, Watcher(watch, presses), presses)
                finally:
                    # It would hold on to all that is on the device.
                    run.complete = None
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        reason = first_line(error)
    finally:
        release_memory(device)
    # Out here the error is gone, and with its traceback all that had been allocated.
    size = memory.by(z.shape[1:])
    raise MemoryError(
        f"z: a fit of {size} ran out of memory on {device}; wants a smaller image: shrink it or crop it ({reason})"
    )


def _descend(problem, run, start, keep, watcher, presses):
    """Step until the end, or until the run is stopped; return the run."""
    begun, step, hold_out = time.perf_counter() - run.seconds, 0, problem.hold_out
    if start is None:
        evaluate_untrained(problem)
    else:
        problem.resume(start)
        step = start.steps
    advance, stopped = Stepper(problem, run.say), False
    guard = Guard(problem, run, step, advance)
    run.complete = lambda: _completed(problem, step)
    try:
        while step < run.planned and not (presses or run.diverged or stopped):
            if step in keep:
                run.kept[step] = _on_cpu(problem.output)
            advance()
            step = guard.check(step + 1)
            # Only when the guard has waited for the device anyway.
            stopped = step == guard.checked and hold_out is not None and hold_out.has_lost_patience(step)
            # At the end it is called in any case.
            if step < run.planned and watcher.is_due():
                _report(run, problem, step, begun)
                # Other losses are mended at the guard's next look.
                if np.isfinite(run.loss[-1]):
                    watcher.show(run)
    except KeyboardInterrupt:
        # Raised inside a step, by an operator. A second press of ■ is meant to end everything.
        if len(presses) > 1:
            raise
        presses.append(True)
        step = guard.go_back()
    finally:
        # Whoever keeps an error keeps what this frame holds; that must not include the graph.
        advance.start_over()
    step = guard.last_look(step, bool(presses))
    if step in keep:
        run.kept[step] = _on_cpu(problem.output)
    run.interrupted = bool(presses) and step < run.planned
    if run.interrupted:
        run.say(f"Stopped by hand at step {step} of {run.planned}; the run so far is kept.")
    elif hold_out is not None and hold_out.step < 0:
        run.say(f"By step {step} hold-out has chosen none; they count from step {hold_out.stop.first} on.")
    _report(run, problem, step, begun)
    vars(run).update(run.complete(), running=False, complete=None)
    watcher.show(run)
    return run


def _completed(problem, step):
    """The attributes of a run that are not reported on the way, by name."""
    found, hold_out = {"state": problem.saved_state(step)}, problem.hold_out
    if problem.trace.shape[1]:
        found["trace"] = problem.trace[: step + 1].to("cpu", torch.float32, copy=True)
    if hold_out is not None and hold_out.step >= 0:
        found |= {"chosen_step": int(hold_out.step), "chosen": _on_cpu(hold_out.chosen)}
    return found


def _on_cpu(images):
    """A copy of the first image of a batch: a view would change with the next step."""
    return images[0].to("cpu", torch.float32, copy=True)


def _report(run, problem, step, begun):
    """Bring the run up to date with this step."""
    curves = dict(zip(problem.curves, problem.records[:, : step + 1].double().cpu().numpy(), strict=True))
    run.loss, run.held_out = curves["loss"], curves.get("held_out")
    if problem.reference is not None:
        with np.errstate(divide="ignore"):
            run.psnr, run.average_psnr = (-10 * np.log10(curves[name]) for name in ("error", "average_error"))
    run.output, run.average = _on_cpu(problem.output), _on_cpu(problem.average)
    run.precision, run.seconds = str(problem.precision)[6:], time.perf_counter() - begun
