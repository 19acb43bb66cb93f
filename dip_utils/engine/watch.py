"""Watching a run, and ending it with ■ between two steps."""

import contextlib
import signal
import threading
import time

from .machine import Pace

#: The largest share of the time that `watch` may take.
WATCH_SHARE = 0.02


class Watcher:
    """Calls `watch` at most twice a second and for at most `WATCH_SHARE` of the time."""

    def __init__(self, watch, presses):
        self.watch, self.presses, self.pace, self.shown = watch, presses, Pace(WATCH_SHARE), time.perf_counter()

    def is_due(self):
        """Whether the last call is long enough ago, and some of its share of the time is left."""
        return self.watch is not None and time.perf_counter() - self.shown > 0.5 and self.pace.is_due()

    def show(self, run):
        """Call `watch`, and count its time."""
        if self.watch is None:
            return
        with self.pace.counted():
            try:
                self.watch(run)
            except KeyboardInterrupt:
                # Either the second press of ■, or the watch's own, which ends the fit as a first press does.
                if len(self.presses) > 1 and run.running:
                    raise
                self.presses.append(True)
            except Exception as error:
                # A picture that cannot be drawn is no reason to lose the run.
                self.watch = None
                run.say(f"The watch failed and was dropped: {error!r}")
        self.shown = time.perf_counter()


@contextlib.contextmanager
def stop_button():
    """Let the first ■ (SIGINT) be read between two steps; a second one raises as usual."""
    presses = []
    if threading.current_thread() is not threading.main_thread():
        yield presses
        return
    before = signal.getsignal(signal.SIGINT)

    def press(number, frame):
        presses.append(True)
        if len(presses) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
