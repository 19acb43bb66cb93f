"""What a reader sees of a fit: figures, tables, the live plot, the slider, panels.

`page` knows whether this is a notebook, and where a script's pictures go. `drawing`
is the look of all figures; `figures` and `tables` stand still, `live` moves during a
fit, `slider` works without a kernel, `panels` need one. All of it only looks at images
and runs: colours, sizes and words may be changed freely. What nbval compares must stay
as it is: the text/plain of each output, and how `show_table` writes numbers
(tests/nbval.cfg).
"""
