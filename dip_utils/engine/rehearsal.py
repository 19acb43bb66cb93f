"""Before a fit starts everything is checked; network, operator, loss and regularizer are tried out."""

import contextlib
import copy
import threading

import torch
from torch import nn

from ..network import SkipNetwork
from .checks import check_image, check_integer, check_range, check_same_shape, check_several, first_line
from .hold_out import in_a_row
from .machine import say, seeded
from .memory import by, check_memory, dry_pass, is_out_of_memory, memory_needed

#: The ids of all parameters that are in a fit.
_IN_A_FIT = set()
_LOCK = threading.Lock()


@contextlib.contextmanager
def reserved(network):
    """Raise unless this is a network that no other fit is training; meanwhile none can."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: got {type(network).__name__}; wants a SkipNetwork or another torch.nn.Module")
    own = {id(parameter) for parameter in network.parameters()}
    with _LOCK:
        if not own.isdisjoint(_IN_A_FIT):
            raise ValueError("network: got one that another fit is training; wants one of its own")
        _IN_A_FIT.update(own)
    try:
        yield
    finally:
        _IN_A_FIT.difference_update(own)


def checked_images(z, target, reference):
    """Copies of input, target and reference as `fit` takes them, or an error."""
    z, target = _copied("z", z), _copied("target", target)
    if reference is not None:
        reference = _copied("reference", reference)
        check_range("reference", reference)
    return z, target, reference


def _copied(name, image):
    """A checked copy: what the user changes meanwhile, and how the image lies in memory, must not matter."""
    return check_image(name, image, bounded=False, signal=True).clone(memory_format=torch.contiguous_format)


def checked_steps(keep, first, last):
    """The steps to keep as a set, or an error."""
    keep = check_several("keep", keep, f"some steps, for example (0, {last})")
    for step in keep:
        check_integer("keep", step, 0)
        if not first <= step <= last:
            raise ValueError(f"keep: got {step}; wants steps from {first} to {last}")
    return set(keep)


def rehearse(network, images, settings, start):
    """Raise unless the network turns z into an image comparable with the target, and there is enough memory.

    Returns the shape of that image, without the batch.
    """
    z, target, reference = images
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("network: got one without trainable parameters; wants at least one that requires a gradient")
    if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
        raise ValueError("network: got one with lazy layers, still without weights; wants one that was called once")
    if any(parameter.is_complex() for parameter in network.parameters()):
        raise TypeError("network: got one with complex parameters; wants real ones")
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise ValueError("network: got one built in torch.inference_mode, not trainable; wants one built outside")
    shape = _rehearse_network(network, z, settings)
    if reference is not None and tuple(reference.shape) != shape:
        raise ValueError(f"reference: got shape {tuple(reference.shape)}; wants {shape}, what the network makes of z")
    _rehearse_loss(shape, target, settings)
    if start is not None:
        _check_start(start, network, images, shape, settings)
    return shape


def _rehearse_loss(shape, target, settings):
    """Raise unless operator, loss and regularizer return what a fit needs."""
    operator, loss, regularizer = settings.placed()
    # White: the result of the operator shows which values a target can have.
    output = torch.ones(1, *shape, device=settings.device, dtype=settings.exact, requires_grad=True)
    made, maker = output, "the network makes of z"

    def differentiate(name, value):
        # A regularizer may be of the weights alone.
        options = dict(retain_graph=True, allow_unused=name == "regularizer")
        _attempt(name, lambda x: torch.autograd.grad(value.sum(), x, **options), output)

    if operator is not None:
        made = _attempt("operator", operator, output)
        if not isinstance(made, torch.Tensor) or made.is_complex():
            got = made.dtype if isinstance(made, torch.Tensor) else type(made).__name__
            raise TypeError(f"operator: got one that returns {got}; wants one that returns a tensor of real numbers")
        if made.ndim != target.ndim + 1 or len(made) != 1:
            wants = "(1, c, h, w)" if target.ndim == 3 else "(1, c, t)"
            raise ValueError(f"operator: got one that returns {tuple(made.shape)}; wants one that returns {wants}")
        if not made.requires_grad:
            raise TypeError("operator: got one whose result has no gradient; wants a differentiable function")
        differentiate("operator", made)
        made, maker = made.to(settings.exact), "the operator makes of the network's output"
    if tuple(made.shape) != (1, *target.shape):
        raise ValueError(f"target: got shape {tuple(target.shape)}; wants {tuple(made.shape[1:])}, what {maker}")
    check_range("target", target, made.detach().abs().max().item())
    target = target[None].to(made)
    numbers = [("loss", loss, (made, target))]
    if regularizer is not None:
        numbers.append(("regularizer", regularizer, (output,)))
    for name, function, arguments in numbers:
        value = _attempt(name, function, *arguments)
        if not (isinstance(value, torch.Tensor) and value.ndim == 0 and value.requires_grad):
            raise TypeError(f"{name}: got one that returns no number with a gradient; wants a tensor of no dimensions")
        differentiate(name, value)
    if settings.stop is not None:
        _check_mean(loss, target, settings.stop)


def _check_mean(loss, target, stop):
    """Raise unless a loss is a mean over pixels, which hold-out needs."""
    pixels, generator = target[0, 0].numel(), seeded(0, "rehearsal")
    # Raises if there is nothing to choose from.
    stop.choose(pixels)
    output = torch.rand(target.shape, generator=generator, dtype=torch.float32, device="cpu")
    output = output.to(target).requires_grad_()
    order = torch.randperm(pixels, generator=generator, device="cpu").to(target.device)
    hidden, seen = order[: -(-pixels // 3)], order[-(-pixels // 3) :]
    mixed = output.flatten(2).index_copy(2, hidden, target.flatten(2)[..., hidden]).view_as(target)
    name, perfect = "loss with HoldOut, of pixels in a row", in_a_row(target, hidden)
    of_copy = _attempt(name, loss, perfect, perfect)
    of_seen = _attempt(name, loss, in_a_row(output, seen), in_a_row(target, seen))
    if not of_copy.isfinite():
        raise ValueError("loss: got one that is not finite for a perfect copy; with HoldOut wants one that is")
    whole, parts = loss(mixed, target), of_copy.lerp(of_seen, len(seen) / pixels)
    if not torch.isclose(whole, parts, rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"loss: got {whole:.4g} of an image, {parts:.4g} as the mean of its parts; "
            "with HoldOut wants a mean over pixels"
        )


def _check_start(start, network, images, shape, settings):
    """Raise unless the fit can continue this run."""
    for name, image in zip(("z", "target", "reference"), images, strict=True):
        earlier = getattr(start, name)
        if image is None or earlier is None:
            continue
        check_same_shape(name, image, f"the {name} of start", earlier)
        if not torch.equal(image, earlier):
            raise ValueError(f"start: got a run on another {name}; wants one on this {name}")
    tensors = (*network.named_parameters(), *network.named_buffers())
    wanted = {f"network.{name}": tensor.shape for name, tensor in tensors}
    wanted |= {f"mean.{name}": tensor.shape for name, tensor in tensors if tensor.requires_grad}
    had = {name: tensor.shape for name, tensor in start.state.items() if name.startswith(("network.", "mean."))}
    if wanted != had or tuple(start.output.shape) != shape:
        raise ValueError("start: got a run of another network; wants one of a network built like this one")
    if settings.stop is not None and start.held_out is None:
        raise ValueError("stop: got a HoldOut, but the run in start has fitted the pixels that it would leave out")


def _rehearse_network(network, z, settings):
    """The shape of what the network makes of z; raise if the network fails or the memory will not suffice."""
    try:
        output, kept = dry_pass(network, z.shape, settings.precision)
    except (RuntimeError, TypeError):
        # It needs values, or uses a tensor that is neither parameter nor buffer: try it for real.
        trial = placed("network", network, settings.device, settings.precision)
        output, kept = _attempt("network", trial, z[None].to(settings.device, settings.precision)), None
    size = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if not isinstance(output, torch.Tensor) or output.ndim != z.ndim + 1 or len(output) != 1:
        raise ValueError(f"network: got one that makes {size} of z; wants one image, (1, C, H, W)")
    if not output.requires_grad:
        raise TypeError("network: got one whose output has no gradient; wants one that computes with its parameters")
    if kept is None:
        say("How much memory this network needs cannot be foreseen: going on without the check.")
    else:
        needed = memory_needed(network, z.shape, kept, output, accelerated=isinstance(network, SkipNetwork))
        check_memory(network, z.shape[1:], needed, settings.device)
    return tuple(output.shape[1:])


def evaluate_untrained(problem):
    """The first evaluation of a problem; raise if the network fails, or if something is not finite."""
    # The rehearsal gave a network's buffers the dtype of its activations, too.
    _attempt("network", lambda _: problem.evaluate(), problem.z.to(problem.precision))
    loss, drawn = problem.records[0, 0], problem.output.isfinite().all()
    if drawn and not loss.isfinite():
        raise ValueError(f"loss: got {loss:g} at step 0; wants loss and operator to make finite numbers of an image")
    # In fewer bits the guard may mend it.
    exact = problem.precision == problem.exact
    if not drawn and exact:
        raise ValueError("network: got one that makes NaN or infinite values of z; wants finite ones")
    if drawn and problem.regularizer is not None:
        output = problem.output.clone().requires_grad_()
        value = problem.regularizer(output)
        (slope,) = torch.autograd.grad(value, output, allow_unused=True, materialize_grads=True)
        if not (value.isfinite() and (slope.isfinite().all() or not exact)):
            slope = slope.abs().max()
            raise ValueError(f"regularizer: got {value:g} with a gradient of {slope:g} at step 0; wants both finite")


def move(module, device, dtype):
    """Move a module's tensors to a device and a dtype, complex ones to a complex dtype of no fewer bits."""

    def moved(tensor):
        if tensor.is_complex():
            return tensor.to(device, torch.promote_types(dtype, torch.complex64))
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    # `Module.to` would take the real part of complex ones.
    return module._apply(moved)


def placed(name, function, device, dtype):
    """A copy of a module with its tensors on the device of the fit; a plain function as it is."""
    if not isinstance(function, nn.Module):
        return function
    try:
        return move(copy.deepcopy(function), device, dtype)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise TypeError(
            f"{name}: got a module that cannot be copied: {error}; wants one that can, or a plain function"
        ) from error


def _attempt(name, function, *arguments):
    """Call one of the user's functions as the fit will; if it fails, say on what."""
    try:
        return function(*arguments)
    except TypeError as error:
        raise TypeError(f"{name}: got one that fails: {first_line(error)}") from error
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        x, reason = arguments[0], first_line(error)
        raise ValueError(
            f"{name}: got one that fails on a tensor of {by(x.shape)}, {str(x.dtype)[6:]}, on {x.device}: {reason}; "
            "wants one that computes there (the tensors that it uses have to be on that device and of that dtype; "
            "those of an nn.Module are moved there)"
        ) from error
