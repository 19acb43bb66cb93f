"""CUDA: a whole step captured as a graph and replayed, one launch instead of some thousand.

A graph replays what was launched when it was captured: an operator's or a
network's Python code runs then and never again, so that what it counts or
decides in Python is frozen.
"""

import contextlib
import functools
import threading

import torch

from .checks import first_line
from .machine import TUNING
from .threads import Threads

#: Steps that are taken one by one before one is captured.
WARM_UP_STEPS = 3
#: One fit at a time on the cards of a process: during a capture nothing else may be launched.
_LOCK = threading.RLock()


@functools.cache
def _stream(around):
    """Not the default stream, on which no graph can be captured; one, since PyTorch reuses memory by stream.

    A fit inside another one, whose stream is then the one around, has its own: with a
    graph cuBLAS's memory goes that belongs to its stream (pytorch/pytorch#193402).
    """
    return torch.cuda.Stream(around.device)


@contextlib.contextmanager
def without_tf32():
    """Convolutions of float32 in all its bits; afterwards all is as it was."""
    cudnn = torch.backends.cudnn
    # PyTorch has two ways to set TF32; where the user has taken the newer one, reading the older may fail.
    try:
        newer = cudnn.fp32_precision != "none" or cudnn.allow_tf32 is None
    except RuntimeError:
        newer = True
    owner, name, value = (cudnn.conv, "fp32_precision", "ieee") if newer else (cudnn, "allow_tf32", False)
    before = getattr(owner, name)
    try:
        setattr(owner, name, value)
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def on_device(device):
    """Everything that a fit on this device has to itself; nothing to do on the CPU."""
    if device.type != "cuda":
        yield
        return
    with _LOCK, without_tf32():
        around = torch.cuda.current_stream(device)
        stream = _stream(around)
        stream.wait_stream(around)
        with torch.cuda.stream(stream):
            yield


class Stepper:
    """Takes the steps of a problem: one by one, and on CUDA, after some of them, as a graph."""

    def __init__(self, problem, say):
        self.problem, self.say = problem, say
        self.threads = Threads() if problem.z.device.type == "cpu" and TUNING["threads"] else None
        self.may_capture = problem.z.device.type == "cuda" and TUNING["graph"]
        self.start_over()

    def start_over(self):
        """Forget the graph: what it was captured from has changed."""
        self.graph, self.warm = None, 0

    def __call__(self):
        """Take one step."""
        if self.may_capture and self.graph is None and self.warm == WARM_UP_STEPS:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
        elif self.threads is not None:
            self.threads.take(self.problem.step)
        else:
            self.problem.step()
            self.warm += 1

    def _capture(self):
        """Capture one step without taking it; where that cannot be done, say why."""
        problem, graph = self.problem, torch.cuda.CUDAGraph()
        noise_state, groups = problem.generator.get_state(), problem.optimizer.param_groups
        # Only here: outside of a capture Adam warns of it.
        groups[0]["capturable"] = True
        try:
            graph.register_generator_state(problem.generator)
            # Other threads may use the card meanwhile for something else than fits.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                problem.step()
            self.graph = graph
        except RuntimeError as error:
            self.say(f"No CUDA graph, the steps are launched one by one: {first_line(error.__context__ or error)}")
            # The old generator may still believe that it is being captured.
            problem.generator = torch.Generator(problem.z.device)
            problem.generator.set_state(noise_state)
            self.may_capture = False
        finally:
            groups[0]["capturable"] = False
