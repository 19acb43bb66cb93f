"""CUDA: a whole step captured as a graph and replayed, one launch instead of a thousand.

A graph replays what was launched while it was captured. The Python code of an
operator or a network runs then and never again: what it counts or decides is
frozen.
"""

import contextlib
import functools
import threading

import torch

from .checks import first_line
from .machine import TUNING
from .threads import Threads

#: Steps taken one by one before one is captured.
WARM_UP_STEPS = 3
#: One fit at a time on the cards of a process: during a capture no other fit may launch anything.
_LOCK = threading.RLock()


@functools.cache
def _stream(around):
    """The stream of a fit: not the default, which cannot be captured, and always the same, to reuse its memory.

    A fit inside another one finds that one's stream around it, and has its own: when a
    graph is deleted, cuBLAS's memory for its stream goes with it (pytorch/pytorch#193402).
    """
    return torch.cuda.Stream(around.device)


@contextlib.contextmanager
def without_tf32():
    """Convolutions in full float32 in this block."""
    cudnn = torch.backends.cudnn
    # PyTorch has two settings for TF32; if the user has changed the newer one, reading the older may fail.
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
    """What a fit on a card needs around it: the lock, a stream, no TF32. Nothing on the CPU."""
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
    """Takes the steps of a problem: one by one and, on CUDA, after some of them as a graph."""

    def __init__(self, problem, say):
        self.problem, self.say = problem, say
        self.threads = Threads() if problem.z.device.type == "cpu" and TUNING["threads"] else None
        self.may_capture = problem.z.device.type == "cuda" and TUNING["graph"]
        self.start_over()

    def start_over(self):
        """Forget the graph, as what it was captured from has changed."""
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
        """Capture one step without taking it; if that is impossible, say why."""
        problem, graph = self.problem, torch.cuda.CUDAGraph()
        noise_state, groups = problem.generator.get_state(), problem.optimizer.param_groups
        # Set for the capture only: outside of one Adam warns of it.
        groups[0]["capturable"] = True
        try:
            graph.register_generator_state(problem.generator)
            # Meanwhile other threads may use the card, though not for fits.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                problem.step()
            self.graph = graph
        except RuntimeError as error:
            self.say(f"No CUDA graph, the steps are launched one by one: {first_line(error.__context__ or error)}")
            # The old generator may still be marked as being captured.
            problem.generator = torch.Generator(problem.z.device)
            problem.generator.set_state(noise_state)
            self.may_capture = False
        finally:
            groups[0]["capturable"] = False
