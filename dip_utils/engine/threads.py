"""CPU: how many threads take a step.

The threads of a step wait for each other hundreds of times. If other programs are
busy, one of them is always late, and a small step takes several times as long as
with a single thread. It is visible: threads that wait get less processor time than
they could use. Then a few steps are taken with fewer threads, and the faster number stays.
"""

import threading
import time

import torch

#: Share of its processors' time from which a step counts as undisturbed.
WHOLE = 0.9
#: Steps with another number of threads. The first sets them up; the fastest of the others counts.
TRIAL = 3
#: Steps before the first trial, and at most between two: pauses double while nothing better is found.
FIRST, LONGEST = 4, 256
#: A number of threads is adopted if its steps take less than this share of the time.
BETTER = 0.9
#: Held during a step: meanwhile other fits of the process leave the number alone, but for one inside it.
_LOCK = threading.RLock()


def use(number):
    """Let PyTorch use this many threads."""
    # Setting it drops PyTorch's prepared convolutions, even if nothing changes: a tenth of a small step.
    if number != torch.get_num_threads():
        torch.set_num_threads(number)


class Threads:
    """Takes steps with all threads of PyTorch, half of them, a quarter, …: whatever is fastest just now."""

    def __init__(self):
        with _LOCK:
            self.most = torch.get_num_threads()
        self.number, self.tried, self.pause = self.most, None, FIRST
        self.down, self.times, self.usual = True, [], None

    def take(self, step):
        """Take a step; outside of it the number of threads is the user's."""
        if self.most == 1 or not _LOCK.acquire(blocking=False):
            return step()
        try:
            begun, used = time.perf_counter(), time.process_time()
            use(self.tried or self.number)
            step()
        finally:
            use(self.most)
            _LOCK.release()
        seconds = time.perf_counter() - begun
        self._learn(seconds, time.process_time() - used >= WHOLE * self.most * seconds)

    def _learn(self, seconds, whole):
        self.times.append(seconds)
        if self.tried is None and whole:
            # There is nothing to gain.
            self.times.clear()
        elif self.tried is None and len(self.times) >= self.pause:
            self.usual, self.tried = min(self.times[-TRIAL:]), self._other()
            self.times.clear()
        elif self.tried is not None and len(self.times) == TRIAL:
            better = min(self.times[1:]) < BETTER * self.usual
            self.number, self.pause = (self.tried, FIRST) if better else (self.number, min(2 * self.pause, LONGEST))
            self.tried = None
            self.times.clear()

    def _other(self):
        """Half as many threads and twice as many, in turn, if possible."""
        down = self.number > 1 and (self.down or self.number == self.most)
        self.down = not down
        return max(1, self.number // 2) if down else min(self.most, 2 * self.number)
