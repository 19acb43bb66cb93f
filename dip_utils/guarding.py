"""What keeps a run safe: it notices divergence, it may be watched, ■ ends it."""

import contextlib
import math
import signal
import threading
import time

import torch

#: How often, in steps, the losses are looked at for divergence.
CHECK_EVERY = 25
#: How often `fit` goes back to the last good state before it gives up.
MOST_RECOVERIES = 3
#: The largest share of the time that `watch` may take.
WATCH_SHARE = 0.02


class Guard:
    """Notices a divergence within 2 × `CHECK_EVERY` steps and goes back to the last good state.

    An update can spoil the weights without any loss showing it yet. So a copy is
    good only when the losses after it have been seen: there are two, the good
    one and a newer one on probation.
    """

    def __init__(self, problem, run, step):
        self.problem, self.run = problem, run
        self.good, self.newer = ({name: tensor.clone() for name, tensor in problem.state().items()} for _ in range(2))
        self.good_step = self.newer_step = self.checked = step
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
        high = finite and self.is_high(losses[-5:].min())
        if finite and not high:
            self.usual, self.doubtful = losses.median().item(), False
            self.good, self.newer = self.newer, self.good
            self.good_step, self.newer_step = self.newer_step, step
            torch._foreach_copy_(list(self.newer.values()), list(self.problem.state().values()))
            return step
        if high and not self.doubtful:
            # Adam's usual spikes are mended by the next look.
            self.doubtful = True
            return step
        what = "stayed high after a jump" if high else "became NaN or infinite"
        back = self.go_back()
        if self.recoveries == MOST_RECOVERIES:
            self.run.diverged = True
            self.run.say(f"The loss {what} again: given up at step {back}, the last good state is kept.")
        else:
            self.recoveries += 1
            self.problem.use(self.problem.exact)
            exact = str(self.problem.exact)[6:]
            self.run.say(f"The loss {what} by step {step}: going on from step {back} in {exact}.")
        return back

    def is_high(self, loss):
        """Whether a loss is far above the usual, and about that of a flat image."""
        return bool(loss > max(4 * self.usual, self.variance / 2))

    def is_sound(self, step):
        """Whether all losses since the last look are finite, this step's included."""
        return bool(torch.isfinite(self.problem.records[0, self.checked : step + 1]).all())

    def go_back(self):
        """Restore the last good state and return its step. The noise that follows is new."""
        loss = self.problem.records[0, self.newer_step]
        if torch.isfinite(loss) and not self.is_high(loss):
            self.good, self.newer, self.good_step = self.newer, self.good, self.newer_step
        self.problem.restore(self.good)
        torch._foreach_copy_(list(self.newer.values()), list(self.good.values()))
        self.checked, self.newer_step, self.doubtful = self.good_step, self.good_step, False
        self.run.kept = {step: image for step, image in self.run.kept.items() if step <= self.good_step}
        return self.good_step


class Watcher:
    """Calls `watch` at most twice a second and for at most `WATCH_SHARE` of the time."""

    def __init__(self, watch, begun, presses):
        self.watch, self.begun, self.shown, self.presses = watch, begun, begun, presses
        self.spent = 0.0

    def is_due(self):
        """Whether the last call is long enough ago, and the share of time not used up."""
        if self.watch is None:
            return False
        now = time.perf_counter()
        return now - self.shown > 0.5 and self.spent < WATCH_SHARE * (now - self.begun)

    def show(self, run):
        """Call `watch`, and count its time."""
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
def stop_button():
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
