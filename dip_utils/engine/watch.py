"""A run may be watched, and ■ ends it between two steps."""

import contextlib
import signal
import threading
import time

#: The largest share of the time that `watch` may take.
WATCH_SHARE = 0.02


class Watcher:
    """Calls `watch` at most twice a second and for at most `WATCH_SHARE` of the time."""

    def __init__(self, watch, presses):
        self.watch, self.presses = watch, presses
        self.begun = self.shown = time.perf_counter()
        self.calls, self.spent = 0, 0.0

    def is_due(self):
        """Whether the last call is long enough ago, and the share of time not used up."""
        now = time.perf_counter()
        return self.watch is not None and now - self.shown > 0.5 and self.spent < WATCH_SHARE * (now - self.begun)

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
        self.shown = time.perf_counter()
        # The first call sets things up: to count it would silence the watch for long.
        self.spent += self.shown - before if self.calls else 0
        self.calls += 1


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
