"""Divergence is noticed soon, and the run goes on from the last good state."""

import math

import torch

#: Steps between two looks at the losses.
CHECK_EVERY = 25
#: How often a run may go back within `FORGIVEN_AFTER` steps before it gives up.
MOST_RECOVERIES = 3
FORGIVEN_AFTER = 1000


class Guard:
    """Looks at the losses every `CHECK_EVERY` steps, and goes back to the last good state if they diverge.

    A state is copied only when its own loss has been seen.
    """

    def __init__(self, problem, run, step, stepper):
        self.problem, self.run, self.stepper = problem, run, stepper
        self.copy = {name: tensor.clone() for name, tensor in problem.state().items()}
        self.copied = self.checked = self.counted_since = step
        # Not from the record: a run may be continued with another loss.
        self.usual = problem.loss(problem.output).item() if step else math.inf
        # The losses of a flat image in the target's mean colour and of a perfect copy: losses may be negative.
        mean = problem.target.mean(dim=tuple(range(2, problem.target.ndim)), keepdim=True)
        images = torch.zeros_like(problem.target) + mean, problem.target
        self.flat, self.perfect = (problem.loss_function(image, problem.target).item() for image in images)
        self.doubtful, self.recoveries = False, 0

    def check(self, step):
        """Look at the newest losses when it is time; return the step to go on from."""
        if step - self.checked < CHECK_EVERY and step < self.run.planned:
            return step
        losses = self.problem.records[0, self.checked + 1 : step + 1].cpu()
        self.checked = step
        if not torch.isfinite(losses).all():
            return self._recover(step, "became NaN or infinite")
        high = self._is_high(losses[-5:].min())
        if high and self.doubtful:
            return self._recover(step, "stayed high after a jump")
        # Adam's usual spikes are gone by the next look.
        self.doubtful = high
        if not high and not self._is_high(losses[-1]):
            self.usual, self.copied = losses.median().item(), step
            torch._foreach_copy_(list(self.copy.values()), list(self.problem.state().values()))
        return step

    def _is_high(self, loss):
        """Whether a loss is far above the usual one, and above half that of a flat image."""
        return bool(loss - self.perfect > max(4 * (self.usual - self.perfect), (self.flat - self.perfect) / 2))

    def _recover(self, step, what):
        if step - self.counted_since > FORGIVEN_AFTER:
            self.recoveries, self.counted_since = 0, step
        self.recoveries += 1
        self.run.diverged = self.recoveries > MOST_RECOVERIES
        if self.run.diverged:
            self.run.say(f"The loss {what} again: given up at step {self.copied}, the last good state is kept.")
        else:
            self.problem.use(self.problem.exact)
            exact = str(self.problem.exact)[6:]
            self.run.say(f"The loss {what} by step {step}: going on from step {self.copied} in {exact}.")
        return self.go_back()

    def go_back(self):
        """Restore the last good state and return its step. The noise that follows is new."""
        self.problem.restore(self.copy, self.copied)
        self.stepper.start_over()
        # Only the gradient is computed anew: it may be what went wrong.
        self.problem.differentiate()
        self.checked, self.doubtful = self.copied, False
        self.run.kept = {step: image for step, image in self.run.kept.items() if step <= self.copied}
        return self.copied

    def last_look(self, step, interrupted):
        """Say what the losses show at the end of a run; return the step of the final state."""
        losses = self.problem.records[0, : step + 1].cpu()
        if not torch.isfinite(losses[self.checked + 1 :]).all():
            step, self.run.diverged = self.go_back(), not interrupted
            self.run.say(f"The last losses are NaN or infinite: the run ends at step {step}, the last good state.")
        elif self.doubtful or self._is_high(losses[-1]):
            self.run.say("The last losses are high after a jump: the last output may be the worse for it.")
        elif step >= CHECK_EVERY and self._is_hopeless(losses[-CHECK_EVERY:], losses[0]):
            self.run.diverged = True
            self.run.say(
                f"The loss, {losses[-1]:.4g}, is above that of an image of one colour, {self.flat:.4g}, "
                "and does not fall: a smaller learning_rate may help."
            )
        return step

    def _is_hopeless(self, losses, first):
        """Whether losses are above a flat image's, and above the untrained network's or constant (saturated).

        By a twentieth: a network that has learnt nothing about pure noise yet is about as good as a flat image.
        """
        # Quartiles, since single outputs of a saturated network may differ.
        low, middle, high = losses.quantile(losses.new_tensor([0.25, 0.5, 0.75]))
        constant = high - low < middle.abs() / 1000
        worse = middle - self.perfect > 1.05 * (self.flat - self.perfect)
        return bool(worse and (middle > first or constant))
