"""What an optimisation leaves behind, in memory and in a file."""

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

FILE_FORMAT = "dip_utils.Fit 3"


@dataclass
class Fit:
    """What an optimisation leaves behind.

    Entry t of a curve belongs to the network after t updates: entry 0 to the
    untrained network, entry `steps` to `output`.

    Attributes
    ----------
    loss : ndarray, (steps + 1,)
        Mean squared error of d(output) against the target; with `HoldOut`, over
        the values that are fitted.
    psnr, average_psnr : ndarray, (steps + 1,), or None
        PSNR in dB of the output and of the average; None without a reference.
    criterion : ndarray, (steps + 1,), or None
        The criterion of `stop`, where one was given.
    trace : Tensor, (steps + 1, values), or None
        Some values of each output, where `trace` was given.
    kept : dict of int to Tensor (C, H, W)
        The outputs at the steps that were asked for.
    output, average : Tensor, (C, H, W)
        The last output, and the exponential average of all outputs with weight
        0.01 for the newest; over the first 100 it is their plain mean.
    chosen : Tensor, (C, H, W), or None
        The average at the step that the criterion chose.
    chosen_step : int or None
    target, reference : Tensor or None
        As given to `fit`.
    steps, planned : int
        Updates done, and updates asked for.
    seconds : float
        Time spent in the loop.
    device, precision : str
        Where it ran, and the dtype of the activations at the end.
    running, interrupted : bool
        Whether it is still under way; whether it was stopped by hand.
    stopped : bool
        Whether the criterion ended it before the planned steps.
    diverged : bool
        Whether it gave up after a divergence.
    remarks : list of str
        What happened on the way, one sentence each.
    state : dict of str to Tensor
        All that `fit(..., start=run)` needs to go on.
    """

    target: torch.Tensor
    reference: torch.Tensor | None
    planned: int
    device: str
    precision: str = ""
    loss: np.ndarray = None
    psnr: np.ndarray = None
    average_psnr: np.ndarray = None
    criterion: np.ndarray = None
    trace: torch.Tensor = None
    kept: dict = field(default_factory=dict)
    output: torch.Tensor = None
    average: torch.Tensor = None
    chosen: torch.Tensor = None
    chosen_step: int | None = None
    seconds: float = 0.0
    running: bool = True
    interrupted: bool = False
    stopped: bool = False
    diverged: bool = False
    remarks: list = field(default_factory=list)
    state: dict = field(default_factory=dict)

    def say(self, sentence):
        """Print a remark and remember it."""
        self.remarks.append(sentence)
        print(sentence)

    @property
    def steps(self):
        """Number of updates done."""
        return len(self.loss) - 1

    @property
    def best(self):
        """What to take away: the criterion's choice where there was one, else the average."""
        return self.average if self.chosen is None else self.chosen

    def __repr__(self):
        quality = "" if self.psnr is None else f", PSNR {self.psnr[-1]:.2f} dB"
        return (
            f"<Fit: {self.steps} of {self.planned} steps in {self.seconds:.0f} s "
            f"on {self.device} in {self.precision}, loss {self.loss[-1]:.4g}{quality}>"
        )

    def save(self, path):
        """Write the run to one file, from which `load_fit` restores all of it.

        The file is a NumPy archive without pickled objects. It appears under
        its name only when complete.

        Parameters
        ----------
        path : str or Path
            Ends with ``.npz``.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"path: got {str(path)!r}; wants a name that ends with .npz")
        arrays = {"loss": self.loss, "output": self.output, "average": self.average, "target": self.target}
        for name in ("psnr", "average_psnr", "criterion", "trace", "chosen", "reference"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        arrays |= {f"kept/{step}": image for step, image in self.kept.items()}
        arrays |= {f"state/{name}": tensor for name, tensor in self.state.items()}
        names = ("planned", "chosen_step", "seconds", "device", "precision")
        names += ("running", "interrupted", "stopped", "diverged", "remarks")
        facts = {"format": FILE_FORMAT} | {name: getattr(self, name) for name in names}
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def load_fit(path):
    """Read a run that `Fit.save` wrote.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Fit

    Raises
    ------
    FileNotFoundError
        If there is no file at `path`.
    ValueError
        If the file is truncated or not a saved run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: got {str(path)!r}, where there is no file; wants a saved run")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts.pop("format") != FILE_FORMAT:
            raise KeyError("format")
        curves = {name: arrays.pop(name, None) for name in ("loss", "psnr", "average_psnr", "criterion")}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        part = {"kept": {}, "state": {}}
        for name in [name for name in tensors if "/" in name]:
            kind, key = name.split("/", 1)
            part[kind][int(key) if kind == "kept" else key] = tensors.pop(name)
        optional = {name: tensors.pop(name, None) for name in ("trace", "chosen", "reference")}
        return Fit(**curves, **part, **optional, **tensors, **facts)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: got {str(path)!r}, truncated or not a run that Fit.save wrote") from error


def verdict(sentence, holds, runs=()):
    """End a part of a notebook: assert its claim and print it.

    Parameters
    ----------
    sentence : str
        The claim.
    holds : bool
        Whether the measurements bear it out.
    runs : iterable of Fit
        What it was measured on. Where one of them was stopped by hand, there is
        no verdict, and no error either.

    Raises
    ------
    AssertionError
        If the claim does not hold.
    """
    stopped = sum(run.interrupted for run in runs)
    if stopped:
        print(f"No verdict: {stopped} of the runs were stopped by hand.")
    elif not holds:
        raise AssertionError(f"This run does not show it: {sentence}")
    else:
        print(f"Verdict: {sentence}")
