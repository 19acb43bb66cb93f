"""When to stop, without a ground truth.

The PSNR of the output rises, peaks and falls as the network begins to copy the
noise. `HoldOut` finds the peak of the average while a fit runs. The two
variances, ES-WMV and ES-EMV, are computed on a finished run's `trace`, for
comparison.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .engine.checks import check_curve, check_integer, check_number
from .engine.machine import seeded

#: At most this many pixels are held out: the precision of their error depends on their number, not their share.
PIXELS = 5000


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Leave one pixel in twenty out of the loss, 5000 at most, and measure the error of the average there.

    Independent noise cannot be predicted from its neighbours. At a pixel that is
    not fitted, the squared error of the average against the *noisy* value is
    therefore, in expectation, its error against the clean value plus the variance
    of the noise, a constant: both have their minimum at the same step. This needs
    no noise level and no window. It costs the pixels left out.

    The noise must be independent from pixel to pixel and have mean zero (with an
    L1 loss: median zero). Hold-out does not work for noise that neighbours share,
    such as that of JPEG. Where clipping moves the mean, near 0 and 1, it measures
    the error against the moved value.

    Attributes
    ----------
    patience : int or None
        `fit` ends after this many steps without a new minimum; None to go on to the
        last step.
    first : int
        The first step that counts.
    """

    patience: int | None = 200
    first: int = 100

    def __post_init__(self):
        if self.patience is not None:
            check_integer("patience", self.patience, 1)
        check_integer("first", self.first, 0)

    def choose(self, total):
        """The positions among `total` pixels that are left out, with all their channels; the same every time."""
        if total < 2:
            raise ValueError("target: got a single pixel; wants two at least, to leave one of them out")
        number = min(PIXELS, -(-total // 20))
        return torch.randperm(total, generator=seeded(0, "held out"), device="cpu")[:number]


def windowed_variance(trace, window=100):
    """ES-WMV: the variance of the last `window` outputs about their mean; NaN until the window is full.

    From `Fit.trace`, (steps + 1, values), to an array (steps + 1,). Wang et al., *Early
    Stopping for Deep Image Prior*, TMLR 2023, algorithm 1; the window is theirs.
    """
    check_integer("window", window, 2)
    curve = np.full(len(_checked(trace)), np.nan)
    if len(trace) >= window:
        variances = trace.double().unfold(0, window, 1).var(dim=2, correction=0).mean(dim=1)
        curve[window - 1 :] = variances.numpy()
    return curve


def exponential_variance(trace, weight=0.1):
    """ES-EMV: the same with exponential means in place of the window; NaN for the first 3 / weight steps.

    `weight` is that of the newest output. Algorithm 2 of the same paper, and the
    weight of its experiments.
    """
    check_number("weight", weight, above=0, below=1)
    trace = _checked(trace).double()
    # A run that was continued with a trace has NaN for its first steps.
    first = int(trace.isnan().any(dim=1).sum())
    mean, variance, curve = trace[first].clone(), 0.0, np.full(len(trace), np.nan)
    for step, values in enumerate(trace[first:], first):
        variance = (1 - weight) * (variance + weight * (values - mean).square().mean().item())
        mean.lerp_(values, weight)
        if step - first >= 3 / weight:
            curve[step] = variance
    return curve


def choose_step(curve, patience=1000, first=200):
    """The step that a criterion chooses: that of its minimum, until `patience` steps bring no lower one.

    `curve` has one value per step, NaN where it is undefined; steps before `first` do
    not count. Returns None if no value counts. The default patience is the paper's.
    """
    check_integer("patience", patience, 1)
    check_integer("first", first, 0)
    chosen, least = None, np.inf
    for step, value in enumerate(np.atleast_1d(check_curve("curve", curve))):
        if step >= first and value < least:
            chosen, least = step, value
        if chosen is not None and step - chosen >= patience:
            break
    return chosen


def _checked(trace):
    if not isinstance(trace, torch.Tensor) or trace.ndim != 2 or not len(trace):
        raise TypeError(f"trace: got {type(trace).__name__}; wants the trace of a run of fit(..., trace=2048)")
    return trace
