"""One step of a fit, and what makes it fast and safe.

`step` is the mathematics of one step, all that a reader of the method needs here,
with `hold_out` for the pixels left out of the loss; `graph` replays it on CUDA;
`kernels` swaps faster forms into the network's layers, those of `cpu` and `card`;
`threads` chooses how many threads take a step on the CPU; `guard` notices divergence;
`watch` lets a run be watched and stopped; `rehearsal` tries everything before a fit
starts; `memory` estimates whether it fits; `saving` writes a run to a file; `machine`
is the device, the precision, the budget and the seeds; `checks` words the errors;
`decoding` reads odd image files.

The lab's own files use `checks` and `machine`; `fitting` uses the rest, `images`
the decoding. What is here may change as long as `fit` computes the same.
"""
