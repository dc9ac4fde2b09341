"""Confidence intervals of evaluation scores, and paired comparisons of two methods.

Mean scores get Student's t interval rather than a bootstrap: on ScienceWorld-like scores (a peak at
100, a tail at 0) with 5 to 10 items it covers 92-93 % where the percentile bootstrap covers 88 %,
and it needs no random numbers. Success rates get Wilson's interval, which is also valid at 0 of n
and n of n.

An interval covers the choice of items from the same panel, for this one trained policy. It does not
cover the training seed: that needs several runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
SCORE_RANGE = (0.0, 100.0)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float | None
    """None without items."""
    low: float | None
    """None without items, and for the mean of a single score."""
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over items that both methods played, with its 95 % confidence interval."""

    mean: float | None
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided p-value of the sign-flip permutation test; None below two pairs."""
    n: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of scores (0 to 100) with Student's t interval, clipped to the scale of scores.

    Equal scores give an interval of width zero, since the t interval knows only the observed
    spread. Raises ValueError for a score outside the scale.
    """
    scores = _finite(values)
    lowest, highest = SCORE_RANGE
    if scores.size and (scores.min() < lowest or scores.max() > highest):
        outside = scores[(scores < lowest) | (scores > highest)][0]
        raise ValueError(f"a score must lie in {lowest:g} to {highest:g}, got {outside:g}")
    mean, low, high = _t_interval(scores)
    return Interval(
        mean=mean,
        low=None if low is None else max(low, lowest),
        high=None if high is None else min(high, highest),
        n=scores.size,
    )


def proportion_interval(successes: int, n: int) -> Interval:
    """Success rate (0 to 1) with Wilson's score interval (Wilson 1927).

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return Interval(mean=None, low=None, high=None, n=0)
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high), n)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Mean of `a - b` with Student's t interval of the differences and a permutation p-value.

    `a[i]` and `b[i]` are the scores of two methods on the same item. The permutation test is exact
    for up to 13 pairs; for more it draws 9,999 sign flips with a fixed seed, so that equal input
    gives equal output. Interval and p-value come from different tests and may disagree near
    p = 0.05. Raises ValueError for unequal lengths and for scores that are not finite.
    """
    first, second = _finite(a), _finite(b)
    if first.size != second.size:
        raise ValueError(f"paired scores need equal lengths, got {first.size} and {second.size}")
    mean, low, high = _t_interval(first - second)
    p_value = None
    if first.size > 1:
        test = stats.permutation_test(
            (first, second),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=9999,
            rng=0,
        )
        p_value = float(test.pvalue)
    return PairedDifference(mean, low, high, p_value, first.size)


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(array).all():
        raise ValueError("a score is not a finite number")
    return array


def _t_interval(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    if values.size == 0:
        return None, None, None
    mean = float(np.mean(values))
    if values.size == 1:
        return mean, None, None
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, values.size - 1) * stats.sem(values))
    return mean, mean - half, mean + half
