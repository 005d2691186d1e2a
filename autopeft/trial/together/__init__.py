"""Candidates trained together: one forward and backward pass of the frozen base for all of them.

Not to be mixed up with `trial/packing.py`, by which short texts share a row. Here the rows of a step are those of
candidate 0, then those of candidate 1, and so on; `sites` lets each adapter work on its own rows, `streams` lets each
candidate draw the random numbers that it would draw alone, and `train` gives each its own optimiser and its own end.
"""

from autopeft.trial.together.groups import Groups

__all__ = ["Groups"]
