"""Hold-out inside a step: the loss without some pixels, the loss at them, and the choice of the average."""

import math

import torch


def in_a_row(image, places):
    """Some pixels of an image as one of height 1, (1, C, 1, N), or of a signal, (1, C, N): as many axes as before."""
    return image.flatten(2)[..., places].unflatten(2, (*[1] * (image.ndim - 3), -1))


class HeldOutPixels:
    """The pixels that a `HoldOut` leaves out of a loss, and the average that it has chosen so far."""

    def __init__(self, stop, loss, target, output):
        pixels = target[0, 0].numel()
        self.stop, self.loss_function, self.target = stop, loss, target
        self.places = stop.choose(pixels).to(target.device)
        self.hidden = in_a_row(target, self.places)
        seen = torch.ones(pixels, dtype=torch.bool, device=target.device)
        seen[self.places] = False
        self.seen, self.share_seen = seen.view(target.shape[2:]), 1 - len(self.places) / pixels
        # What a perfect copy of the pixels left out adds: 0 for a squared error, not for every loss.
        self.of_hidden = (1 - self.share_seen) * loss(self.hidden, self.hidden).detach()
        self.least, self.step = target.new_full((), math.inf), target.new_full((), -1)
        self.chosen = torch.zeros_like(output)

    def loss(self, made):
        """The loss over the pixels that may be fitted: the target replaces the others, without a gradient."""
        whole = self.loss_function(torch.where(self.seen, made, self.target), self.target)
        return (whole - self.of_hidden) / self.share_seen

    def held_out_loss(self, made):
        """The loss at the pixels that are left out."""
        return self.loss_function(in_a_row(made, self.places), self.hidden)

    def choose(self, loss, average, step):
        """Take the average of this step if its held-out loss is the lowest so far."""
        better = (loss < self.least) & (step >= self.stop.first)
        if self.stop.patience is not None:
            # What comes after patience has ended, before the next look, is too late.
            better &= (self.step < 0) | (step - self.step <= self.stop.patience)
        for kept, new in ((self.least, loss), (self.step, step), (self.chosen, average)):
            kept.copy_(torch.where(better, new, kept))

    def has_lost_patience(self, step):
        """Whether nothing better was found for too long. Waits for the device."""
        return self.stop.patience is not None and bool(0 <= self.step.item() < step - self.stop.patience)

    def state(self):
        """The tensors that a step changes and the next one needs, by name."""
        return {"least": self.least, "chosen_step": self.step, "chosen": self.chosen}
