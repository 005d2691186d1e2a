"""What comes of a training, read off what is known before its end: its own partial results, or an earlier run's.

Both are straight lines that are learned from the trials that have results; what these lie off the line is the doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autopeft.search.surrogate import Array, compressed

_PAIRS = 5
"""Finished trials that it takes to say what a partial result comes to."""


def expected_from_earlier(guess: Array, target: Array, earlier: Array) -> tuple[Array, Array]:
    """Say what trials of earlier runs lead one to expect here: a straight line from what their run makes of them.

    It is learned from the candidates that have results here. What these lie off it is the doubt of what an earlier run
    says. Its trials may all err alike, so they are a power prior (Ibrahim and Chen, 2000): their likelihood counts with
    the share of the variance here that the line explains, by which the variance of their noise is divided. A run that
    explains nothing says nothing.

    Args:
        guess: ``(n_done, n_runs)``: what earlier runs make of what has results.
        target: ``(n_done,)``: what it came to.
        earlier: ``(n_earlier, n_runs)``: what runs make of their own trials, else NaN.

    Returns:
        Expectation and deviation, ``(n_earlier,)`` each; NaN where results are too few, or nothing is explained.
    """
    expected, deviation = np.full(len(earlier), np.nan), np.full(len(earlier), np.nan)
    if len(target) < _PAIRS or not np.ptp(target):
        return expected, deviation
    for here, there in zip(guess.T, earlier.T, strict=True):
        told = np.isfinite(there)
        (intercept, slope), off = _line(here, target)
        if (explained := 1 - off**2 / float(target.var(ddof=1))) > 0:
            expected[told] = intercept + slope * there[told]
            deviation[told] = off / explained**0.5
    return expected, deviation


def _line(x: Array, y: Array) -> tuple[Array, float]:
    """Fit a straight line: intercept and slope, and the deviation of what lies off it."""
    columns = np.stack([np.ones(len(x)), x], axis=1)
    line, *_ = np.linalg.lstsq(columns, y, rcond=None)
    residuals = y - columns @ line
    return np.asarray(line), float(residuals @ residuals / (len(x) - 2)) ** 0.5


def expected_from_partial(
    known: Sequence[Mapping[int, float]], target: Array, partial: Sequence[Mapping[int, float]]
) -> tuple[Array, Array]:
    """Say what partial results lead one to expect at the end: a straight line through those that went on to it.

    Each trial's latest step is read, with the line of the finished trials at that step; what they lie off it is how far
    the expectation can be trusted.

    Args:
        known: ``(n_done,)``: step -> held-out loss of finished trials.
        target: ``(n_done,)``: what they came to.
        partial: ``(n_unfinished,)``: step -> held-out loss of those that are not finished; empty where there is none.

    Returns:
        Expectation and deviation, ``(n_unfinished,)`` each; NaN where too few trials have gone on from that step.
    """
    expected, deviation = np.full(len(partial), np.nan), np.full(len(partial), np.nan)
    for step in sorted({max(curve) for curve in partial if curve}):
        pairs = [(curve[step], end) for curve, end in zip(known, target, strict=True) if step in curve]
        at = [i for i, curve in enumerate(partial) if curve and max(curve) == step]
        values = np.array([*(loss for loss, _ in pairs), *(partial[i][step] for i in at)])
        if len(pairs) < _PAIRS or not np.isfinite(values).all():
            continue
        early, ends = _compressed(values, len(pairs)), np.array([end for _, end in pairs])
        (intercept, slope), deviation[at] = _line(early[: len(pairs)], ends)
        # Nobody is expected to become better or worse than anybody was.
        expected[at] = np.clip(intercept + slope * early[len(pairs) :], ends.min(), ends.max())
    return expected, deviation


def _compressed(losses: Array, n_known: int) -> Array:
    """Compress what is far worse than the middle of those that are known; a diverged one would turn the line."""
    best = float(losses[:n_known].min())
    return compressed(losses, best=best, worth=float(np.median(losses[:n_known])) - best)
