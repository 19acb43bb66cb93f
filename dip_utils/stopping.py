"""When to stop, without a ground truth.

The PSNR of the output rises, peaks and falls as the network begins to copy the
noise. A criterion is a number that `fit` computes at every step, on the device,
from what it has: the output, the average of the outputs and the target, never
the reference. The step of its least value is the one to choose; `fit` remembers
the average there, and ends when `patience` steps have brought nothing better.
"""

import json
import math

import torch

from .runtime import check_integer, check_number, seeded


def some_positions(size, number, purpose, seed=0):
    """Positions of some of `size` values, the same at every call, unrelated to those for another purpose."""
    return torch.randperm(size, generator=seeded(seed, purpose))[:number]


class Criterion:
    """What the criteria have in common.

    Attributes
    ----------
    patience : int or None
        Steps without a new least value after which `fit` ends; None to watch to
        the end.
    first : int
        The first step that counts, to pass over false minima in the untrained
        network's outputs.
    """

    def __init__(self, patience, first):
        if patience is not None:
            check_integer("patience", patience, 1)
        check_integer("first", first, 0)
        self.patience, self.first = patience, int(first)

    def kind(self):
        """What the values of two runs must share to be compared: all settings but the patience, as JSON."""
        settings = {name: value for name, value in vars(self).items() if isinstance(value, (int, float))}
        settings.pop("patience", None)
        return json.dumps({"criterion": type(self).__name__, **settings}, sort_keys=True)

    def choose(self, curve):
        """The step that the criterion takes on a curve of its values.

        Parameters
        ----------
        curve : array_like, (steps + 1,)
            As `Fit.criterion`, or as `curve` returns it.

        Returns
        -------
        int or None
            None where no value counts: the curve ends before `first`.
        """
        best, chosen = float("inf"), None
        for step, value in enumerate(curve):
            if step >= self.first and value < best:
                best, chosen = value, step
            if None not in (chosen, self.patience) and step - chosen >= self.patience:
                break
        return chosen


class _Variance(Criterion):
    """A criterion on how much the outputs of neighbouring steps differ."""

    def __init__(self, patience, first, values):
        super().__init__(patience, first)
        check_integer("values", values, 1)
        self.values = int(values)

    def begin(self, target, output, operator):
        """Get ready for outputs like this one; return which target values may be fitted: all."""
        self.positions = some_positions(output.numel(), self.values, "trace").to(output.device)
        self.start_over(output.new_zeros(len(self.positions)))

    def measure(self, output, average):
        """The criterion at this step, from the output (1, C, H, W); a tensor without dimensions."""
        return self.update(output.flatten()[self.positions])

    def curve(self, trace):
        """The criterion at every step of a finished run.

        Parameters
        ----------
        trace : Tensor, (steps + 1, values)
            As `Fit.trace`.

        Returns
        -------
        ndarray, (steps + 1,)
        """
        if not isinstance(trace, torch.Tensor) or trace.ndim != 2:
            raise TypeError(f"trace: got {type(trace).__name__}; wants the trace of a run of fit(..., trace=1024)")
        self.start_over(torch.zeros_like(trace[0]))
        # A run that went on with a trace has none of its first steps.
        known = trace.isfinite().all(dim=1)
        curve = torch.full((len(trace),), torch.nan, dtype=trace.dtype)
        curve[known] = torch.stack([self.update(values) for values in trace[known]])
        return curve.numpy()


class WindowedVariance(_Variance):
    """ES-WMV: the variance of the last `window` outputs about their mean.

    In the form used here a fixed random subset of the output's values stands
    for all of them, so that the window is a few hundred kilobytes on the device
    instead of `window` images.

    Parameters
    ----------
    window : int
        100 in the paper.
    patience : int or None
        1000 in the paper.
    first : int
    values : int
        Size of the subset.

    References
    ----------
    Wang et al., *Early Stopping for Deep Image Prior*, TMLR 2023, algorithm 1.
    """

    def __init__(self, window=100, patience=1000, first=200, values=2048):
        super().__init__(patience, first, values)
        check_integer("window", window, 2)
        self.window = int(window)

    def start_over(self, zeros):
        """Empty the window."""
        self.last = zeros.new_zeros(self.window, len(zeros))
        self.count = torch.zeros((), dtype=torch.int64, device=zeros.device)
        self.state = {"last": self.last, "count": self.count}

    def update(self, values):
        """Take in the values of one more output."""
        self.last.index_copy_(0, (self.count % self.window)[None], values[None])
        self.count += 1
        variance = self.last.var(dim=0, correction=0).mean()
        return torch.where(self.count >= self.window, variance, torch.inf)


class ExponentialVariance(_Variance):
    """ES-EMV: the same with exponential means, which need no window.

    Parameters
    ----------
    weight : float
        Of the newest output; 0.1 in the paper's experiments.
    patience : int or None
    first : int
    values : int
        Size of the subset.

    References
    ----------
    Wang et al., *Early Stopping for Deep Image Prior*, TMLR 2023, algorithm 2.
    """

    def __init__(self, weight=0.1, patience=1000, first=200, values=2048):
        super().__init__(patience, first, values)
        check_number("weight", weight, above=0)
        if weight >= 1:
            raise ValueError(f"weight: got {weight}; wants a number below 1")
        self.weight = float(weight)

    def start_over(self, zeros):
        """Forget all outputs."""
        self.mean, self.variance = zeros.clone(), zeros.new_zeros(())
        self.count = torch.zeros((), dtype=torch.int64, device=zeros.device)
        self.state = {"mean": self.mean, "variance": self.variance, "count": self.count}

    def update(self, values):
        """Take in the values of one more output."""
        # The first output is the first mean.
        self.mean.copy_(torch.where(self.count == 0, values, self.mean))
        difference = (values - self.mean).square().mean()
        self.variance.copy_((1 - self.weight) * (self.variance + self.weight * difference))
        self.mean.lerp_(values, self.weight)
        self.count += 1
        # It begins at zero, and says something when its memory is filled.
        return torch.where(self.count > math.ceil(3 / self.weight), self.variance, torch.inf)


class HoldOut(Criterion):
    """Leave some values of the target out of the loss, and measure the error there.

    Independent noise cannot be predicted from its neighbours. Where a value is
    not fitted, the squared error of the average against the *noisy* value is
    therefore, in expectation, its error against the clean value plus the
    variance of the noise, a constant: both are least at the same step. It needs
    no noise level and no window. It costs the values left out. It asks for noise
    that is independent from value to value and has mean zero. It says nothing
    about noise that neighbours share, such as that of JPEG; where clipping moves
    the mean, near 0 and 1, it measures the error against the moved value.

    Parameters
    ----------
    values : int
        How many to leave out, each one channel of one pixel; at most a twentieth
        of the target's. How precise the error is depends on their number, not on
        their share.
    patience : int or None
    first : int
    seed : int
        Of the choice of values.
    """

    def __init__(self, values=10_000, patience=200, first=100, seed=0):
        super().__init__(patience, first)
        check_integer("values", values, 1)
        seeded(seed)
        self.values, self.seed = int(values), int(seed)

    def leaves_out_what(self, earlier):
        """Whether a criterion of this kind has left the same values out."""
        other = json.loads(earlier or "{}")
        return all(other.get(name) == value for name, value in json.loads(self.kind()).items() if name != "first")

    def begin(self, target, output, operator):
        """Choose the values; return which ones may be fitted, ones and zeros of the target's shape."""
        number = min(self.values, -(-target.numel() // 20))
        self.held = some_positions(target.numel(), number, "held out", self.seed).to(target.device)
        self.wanted, self.operator, self.state = target.flatten()[self.held], operator, {}
        mask = target.new_ones(target.shape)
        mask.view(-1)[self.held] = 0
        return mask

    def measure(self, output, average):
        """The criterion at this step, from the average (1, C, H, W); a tensor without dimensions."""
        made = average if self.operator is None else self.operator(average)
        return (made.flatten()[self.held] - self.wanted).square().mean()
