"""CPU: how many threads take a step.

The threads of a step wait for each other hundreds of times. Where other programs
are busy, one of them is always late, and a small step takes ten times as long as
with one thread alone. A machine does not tell, so it is tried: now and then some
steps are taken with other than the usual number, and the faster number stays.
"""

import threading
import time

import torch

#: Steps with another number of threads, of which the fastest counts.
TRIAL = 2
#: Steps until the first trial, and at most between two; the pauses double while nothing better is found.
FIRST, LONGEST = 4, 256
#: A number of threads is taken where its steps need less than this share of the time.
BETTER = 0.9
#: Another fit of the process leaves the number alone meanwhile.
_LOCK = threading.Lock()


class Threads:
    """Takes steps with all threads of PyTorch, with half of them, a quarter, …, whatever is fastest just now."""

    def __init__(self):
        with _LOCK:
            self.most = torch.get_num_threads()
        self.number, self.usual, self.pause = self.most, [], FIRST
        self.tried, self.times, self.down = None, [], True

    def take(self, step):
        """Take a step; outside of it the number of threads is the user's."""
        if self.most == 1 or not _LOCK.acquire(blocking=False):
            return step()
        begun = time.perf_counter()
        torch.set_num_threads(self.tried or self.number)
        try:
            step()
        finally:
            torch.set_num_threads(self.most)
            _LOCK.release()
        self._learn(time.perf_counter() - begun)

    def _learn(self, seconds):
        self.times.append(seconds)
        if self.tried is None:
            # Much slower than before: the machine has become busy.
            late = len(self.usual) > 0 and min(self.times[-TRIAL:]) > 2 * min(self.usual)
            if len(self.times) >= self.pause or (late and len(self.times) > TRIAL):
                self.usual, self.times = self.times[-TRIAL:], []
                self.tried = self._other()
        elif len(self.times) > TRIAL:
            # The first step with other threads sets them up.
            if min(self.times[1:]) < BETTER * min(self.usual):
                self.number, self.usual, self.pause = self.tried, self.times[1:], FIRST
            else:
                self.pause = min(2 * self.pause, LONGEST)
            self.tried, self.times = None, []

    def _other(self):
        """Half as many threads and twice as many, in turn, where there are."""
        self.down = self.number > 1 and (self.down or self.number == self.most)
        other = max(1, self.number // 2) if self.down else min(self.most, 2 * self.number)
        self.down = not self.down
        return other
