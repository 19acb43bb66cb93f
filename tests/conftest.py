"""Small things that several tests need."""

import gc

import matplotlib
import numpy as np
import pytest
import torch

import dip_utils as dip

# The tensors of the tests are small: a second thread costs more than it brings.
torch.set_num_threads(1)


def build(input_channels=2, channels=(4, 6), skip_channels=(2, 0), output_channels=3, seed=0):
    return dip.SkipNetwork(input_channels, channels, skip_channels, output_channels, seed=seed)


@pytest.fixture
def network():
    return build()


@pytest.fixture
def photograph():
    """A piece of a real photograph, (3, 32, 48)."""
    return dip.resize(dip.sample("chelsea"), 32, 48)


@pytest.fixture
def z():
    return dip.random_input(2, 32, 48, seed=0)


# Set at its first use: here, and not by a test.
matplotlib.get_backend()

# What has been imported need not be searched for garbage, a third of a second each time.
gc.freeze()


@pytest.fixture(autouse=True)
def global_state_is_left_alone():
    """No public function may touch what belongs to the user's session."""
    before = (
        torch.random.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].copy(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        # Not `dict(…)`: it would check each of 300 values anew, which takes longer than many a test.
        dict.copy(matplotlib.rcParams),
    )
    yield
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state(legacy=False)["state"]["key"]).all()
    assert before[2:] == (torch.get_default_dtype(), torch.get_num_threads(), dict.copy(matplotlib.rcParams))
