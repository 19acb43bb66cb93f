"""How many threads take a step: on a clock of the tests', with steps that last as they do on a busy machine."""

import threading

import pytest
import torch

from dip_utils.engine import threads
from dip_utils.engine.threads import Threads

QUIET = {4: 1.0, 2: 1.8, 1: 3.4}
BUSY = {4: 30.0, 2: 4.0, 1: 3.5}


class Machine:
    """A step lasts `seconds[number of threads]`; a busy machine gives 0.6 of the processor time asked for."""

    def __init__(self, seconds):
        self.seconds, self.now, self.used, self.taken = seconds, 0.0, 0.0, []

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.used

    def step(self):
        threads = torch.get_num_threads()
        self.taken.append(threads)
        self.now += self.seconds[threads]
        self.used += self.seconds[threads] * threads * (0.6 if self.seconds is BUSY else 0.97)


@pytest.fixture
def machine(monkeypatch):
    before = torch.get_num_threads()
    machine = Machine({})
    monkeypatch.setattr(threads, "time", machine)
    torch.set_num_threads(4)
    yield machine
    torch.set_num_threads(before)


def take(machine, crew, number):
    """The mean seconds of so many steps."""
    begun = machine.now
    for _ in range(number):
        crew.take(machine.step)
        assert torch.get_num_threads() == 4
    return (machine.now - begun) / number


def test_a_quiet_machine_keeps_its_threads(machine, monkeypatch):
    machine.seconds, told = QUIET, []
    # Told a number, the same too, PyTorch would prepare all convolutions anew.
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", told.append)
        take(machine, Threads(), 500)
    assert set(machine.taken) == {4} and not told


def test_a_machine_that_only_looks_busy_loses_little(machine):
    """Steps of which much is Python's use one core, on a quiet machine too."""
    machine.seconds = QUIET
    machine.process_time = lambda: 0.0
    assert take(machine, Threads(), 2000) < 1.02


def test_a_busy_machine_gets_fewer_threads_and_a_quiet_one_its_threads_back(machine):
    machine.seconds, crew = BUSY, Threads()
    take(machine, crew, 60)
    # Half the threads are tried again and again, those of the user not from one alone.
    assert take(machine, crew, 500) < 1.05 * BUSY[1]
    machine.seconds = QUIET
    take(machine, crew, 600)
    assert take(machine, crew, 500) < 1.05


def test_becoming_busy_is_noticed_within_some_steps(machine):
    machine.seconds, crew = QUIET, Threads()
    take(machine, crew, 300)
    machine.seconds = BUSY
    take(machine, crew, 25)
    assert take(machine, crew, 100) < 1.3 * BUSY[1]


def test_a_failing_step_leaves_the_number_of_threads_alone(machine):
    machine.seconds, crew = BUSY, Threads()
    take(machine, crew, 60)
    with pytest.raises(ZeroDivisionError):
        crew.take(lambda: 1 / 0)
    assert torch.get_num_threads() == 4
    take(machine, crew, 1)


def test_one_fit_at_a_time_changes_the_number(machine):
    machine.seconds, crew = BUSY, Threads()
    take(machine, crew, 60)
    inside, seen = Threads(), []

    def step():
        thread = threading.Thread(target=lambda: inside.take(lambda: seen.append("taken")))
        thread.start()
        thread.join()
        machine.step()

    crew.take(step)
    assert seen == ["taken"] and inside.times == [] and machine.taken[-1] < 4


def test_a_fit_inside_a_step_does_not_wait_for_itself(machine):
    machine.seconds = QUIET
    inner = threading.Thread(target=lambda: Threads().take(lambda: take(machine, Threads(), 3)), daemon=True)
    inner.start()
    inner.join(10)
    assert not inner.is_alive() and machine.taken == [4, 4, 4]
