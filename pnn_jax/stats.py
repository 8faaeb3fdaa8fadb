"""Intervals and tests for accuracies: one run, a difference between two sets of runs, and several differences at once.

`wilson_interval` is for one run: it describes the sampling of the test images. Everything else treats runs (seeds) as
the sample, because that is the question when two networks are compared. Values keep their unit: percent in, percentage
points out.

    arms = {'none': [91.2, 91.0, ...], 'mask': [91.5, 91.4, ...]}
    value = difference(arms['mask'], arms['none'])
    value.interval()                        # 95%, in points
    value.equivalence_p_value(margin=1.0)   # below .05: within one point of each other
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy  # its parts are loaded at first use, because scipy.stats takes a second to import

from pnn_jax.errors import InputError

Values = Sequence[float] | np.ndarray
Verdict = Literal['better', 'worse', 'equivalent', 'inconclusive']
MIN_RUNS = 5  # of each arm, for a verdict
ACCURACY = (0.0, 100.0)  # what an accuracy in percent can be
DRAWS_AT_ONCE = 500  # of the bootstrap, whose counts for all draws would fill the memory
SMALLEST_P_VALUE = 1e-300  # below it, p-values underflow and are not compared


def wilson_interval(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of correct / count.

    Args:
        correct: integer, from 0 to count.
        count: integer, at least 1.
        confidence: between 0 and 1.

    Returns:
        Lower and upper bound, as fractions.

    Raises:
        InputError: correct is not within 0..count, count is 0, or confidence is not between 0 and 1.
    """
    if not 0 <= correct <= count or count == 0:
        raise InputError(f'correct: {correct} of {count}; needs 0 <= correct <= count and count > 0')
    _check_confidence(confidence)
    interval = scipy.stats.binomtest(correct, count).proportion_ci(confidence, method='wilson')
    return float(interval.low), float(interval.high)


def t_interval(
    values: Values,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """Student's t interval of the mean of `values` [n], in their unit; (nan, nan) for fewer than two.

    Args:
        values: a sample, such as the accuracies of several runs.
        confidence: between 0 and 1.
        bounds: what the mean can be at all; the interval is cut there. Cutting removes only impossible values, so the
            coverage stays the same.
    """
    _check_confidence(confidence)
    sample = np.asarray(values, dtype=float)
    if sample.size < 2:
        return math.nan, math.nan
    error = float(scipy.stats.sem(sample))
    return _interval(float(sample.mean()), error, sample.size - 1, confidence, bounds)


class Spread(NamedTuple):
    """A standard deviation between runs, and the degrees of freedom of its estimate."""

    deviation: float
    degrees: float


def pooled_spread(arms: Sequence[Values]) -> Spread:
    """The common standard deviation of several arms (sets of runs), each about its own mean.

    Raises:
        InputError: no arm has two values.
    """
    degrees = sum(len(arm) - 1 for arm in arms if len(arm))
    if degrees < 1:
        raise InputError(f'arms of {[len(arm) for arm in arms]} values: at least one needs two')
    squares = sum(float(np.sum((np.asarray(arm, float) - np.mean(arm)) ** 2)) for arm in arms if len(arm))
    return Spread(math.sqrt(squares / degrees), degrees)


class Difference(NamedTuple):
    """Mean of the first arm minus mean of the second.

    Attributes:
        estimate: in the unit of the values.
        error: standard error of the estimate.
        degrees: degrees of freedom of the error.
    """

    estimate: float
    error: float
    degrees: float

    def interval(
        self, confidence: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
    ) -> tuple[float, float]:
        """The t interval of the difference, cut at what it can be."""
        _check_confidence(confidence)
        return _interval(self.estimate, self.error, self.degrees, confidence, bounds)

    def p_value(self) -> float:
        """Two-sided, of 'there is no difference'."""
        return min(1.0, 2 * min(self._p_below(0.0), self._p_above(0.0)))

    def equivalence_p_value(self, margin: float) -> float:
        """TOST (two one-sided tests), of 'the difference is `margin` or more, in either direction'.

        It is below .05 exactly where the 90% interval lies within -margin..margin (Schuirmann 1987).
        """
        _check_margin(margin)
        return max(self._p_above(-margin), self._p_below(margin))

    def noninferiority_p_value(self, margin: float) -> float:
        """One-sided, of 'the first arm is worse by `margin` or more'."""
        _check_margin(margin)
        return self._p_above(-margin)

    def inferiority_p_value(self, margin: float) -> float:
        """One-sided, of 'the first arm is worse by less than `margin`, or better'."""
        _check_margin(margin)
        return self._p_below(-margin)

    def _p_above(self, value: float) -> float:
        """One-sided p-value of 'the difference is at most `value`'."""
        if self.error == 0:  # runs without any spread; t would be 0 / 0 or infinite
            return 0.0 if self.estimate > value else 1.0
        return float(scipy.special.stdtr(self.degrees, (value - self.estimate) / self.error))

    def _p_below(self, value: float) -> float:
        """One-sided p-value of 'the difference is at least `value`'."""
        return Difference(-self.estimate, self.error, self.degrees)._p_above(-value)


def difference(
    first: Values,
    second: Values,
    *,
    spread: Spread | None = None,
    equal_variances: bool = True,
) -> Difference:
    """Difference of the means of two independent arms.

    Runs are not paired by seed: on this project's networks runs of one seed were no more alike than runs of different
    seeds, and pairing costs degrees of freedom.

    Args:
        first, second: one value a run.
        spread: from `pooled_spread` over more arms than these two. Default: these two pooled (Student's test).
        equal_variances: False for Welch's test, which gives each arm a spread of its own.

    Raises:
        InputError: an arm is empty, the spread cannot be estimated from the values, or both a spread and unequal
            variances are asked for.
    """
    if spread is not None and not equal_variances:
        raise InputError('equal_variances=False: must be True where a spread is given')
    one, other = np.asarray(first, float), np.asarray(second, float)
    if not one.size or not other.size:
        raise InputError(f'arms of {one.size} and {other.size} values: each needs one')
    estimate = float(one.mean() - other.mean())
    if spread is None and not equal_variances:
        if min(one.size, other.size) < 2:
            raise InputError(f'arms of {one.size} and {other.size} values: unequal variances need two in each')
        parts = np.array([one.var(ddof=1) / one.size, other.var(ddof=1) / other.size])
        if not parts.any():
            return Difference(estimate, 0.0, float(one.size + other.size - 2))
        degrees = parts.sum() ** 2 / np.sum(parts**2 / np.array([one.size - 1, other.size - 1]))
        return Difference(estimate, math.sqrt(parts.sum()), float(degrees))
    return contrast([one, other], [1, -1], spread=spread)


def contrast(arms: Sequence[Values], weights: Sequence[float], *, spread: Spread | None = None) -> Difference:
    """A weighted sum of the means of independent arms: with weights (1, -1, -1, 1), a difference of two differences.

    Args:
        arms: one value a run, for each arm.
        weights: of the arms.
        spread: from `pooled_spread` over more arms than these. Default: these pooled.

    Raises:
        InputError: an arm is empty, the arms are not as many as the weights, or no arm has two values and there is no
            spread.
    """
    sizes = np.array([len(arm) for arm in arms])
    if len(arms) != len(weights) or not sizes.all():
        raise InputError(
            f'arms of {sizes.tolist()} values for {len(weights)} weights: each weight needs an arm with one'
        )
    spread = spread or pooled_spread(arms)
    estimate = sum(weight * float(np.mean(arm)) for weight, arm in zip(weights, arms, strict=True))
    error = spread.deviation * math.sqrt(float(np.sum(np.square(weights) / sizes)))
    return Difference(estimate, error, spread.degrees)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of one family of tests, in the order given.

    Rejecting where the adjusted value is below .05 keeps the chance of any false rejection below .05 (Holm 1979).
    """
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = highest
    return adjusted


def verdict(
    estimate: float, p_value: float, equivalence_p_value: float, runs: int, level: float = 0.05
) -> Verdict | None:
    """What may be said of a difference between two arms.

    Args:
        estimate: the difference; its sign decides between better and worse.
        p_value: of 'there is no difference', adjusted where it is one of several.
        equivalence_p_value: from `Difference.equivalence_p_value`, adjusted likewise; 1 where there is no margin.
        runs: in the smaller arm.
        level: a p-value below it counts as evidence.

    Returns:
        None with fewer than `MIN_RUNS` runs. 'better' or 'worse' where there is evidence of a difference, however
        small. Otherwise 'equivalent' where there is evidence that the difference is below the margin. Otherwise
        'inconclusive'.
    """
    if runs < MIN_RUNS:
        return None
    if p_value < level:
        return 'better' if estimate > 0 else 'worse'
    return 'equivalent' if equivalence_p_value < level else 'inconclusive'


def crossed_bootstrap(
    arms: Sequence[np.ndarray],
    weights: Sequence[float] = (1, -1),
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a difference of accuracies, if both the runs and the test images had been others.

    The t interval of `Difference` is about further runs on the same images. Here every draw takes runs of each arm and
    images with replacement, independently of each other, and the same images for all arms (the pigeonhole bootstrap,
    Owen 2007). With few runs it is narrower than it should be, because resampling n runs shows only (n - 1) / n of
    their variance. So it stands beside the t interval and does not replace it.

    Args:
        arms: outcomes of each arm, bool [runs, images], of the same images in the same order.
        weights: of the arms; the default is the first arm minus the second.
        confidence: between 0 and 1.
        draws: at least 1.
        seed: of the draws.

    Returns:
        Lower and upper bound of the weighted sum of the arms' accuracies, in points.

    Raises:
        InputError: the outcomes are not bool, not of the same images, or empty; the arms are not as many as the
            weights; or there are no draws.
    """
    arms = [np.asarray(arm) for arm in arms]
    shapes = ', '.join(f'{arm.dtype}{list(arm.shape)}' for arm in arms)
    if not all(arm.dtype == np.bool_ and arm.ndim == 2 and arm.size for arm in arms):
        raise InputError(f'outcomes: {shapes}; bool arrays [runs, images] are needed')
    if len({arm.shape[1] for arm in arms}) != 1 or len(arms) != len(weights):
        raise InputError(
            f'outcomes: {shapes}; the same images, and one arm for each of {len(weights)} weights, are needed'
        )
    _check_confidence(confidence)
    if draws < 1:
        raise InputError(f'draws: {draws}; at least 1 is needed')
    rng = np.random.default_rng(seed)
    accuracies = _resampled_accuracies(np.concatenate(arms), draws, rng)
    total = np.zeros(draws)
    for weight, of_arm in zip(
        weights, np.split(accuracies, np.cumsum([len(arm) for arm in arms])[:-1], axis=1), strict=True
    ):
        runs = rng.integers(of_arm.shape[1], size=of_arm.shape)
        total += weight * np.take_along_axis(of_arm, runs, axis=1).mean(axis=1)
    low, high = np.quantile(total, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_accuracies(outcomes: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Accuracies in percent, [draws, runs], of outcomes [runs, images] on images drawn with replacement."""
    runs, images = outcomes.shape
    transposed = outcomes.T.astype(np.float32)  # which holds counts, and sums of them, exactly
    accuracies = np.empty((draws, runs))
    for start in range(0, draws, DRAWS_AT_ONCE):
        chunk = min(DRAWS_AT_ONCE, draws - start)
        counts = [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(chunk)]
        accuracies[start : start + chunk] = np.array(counts, np.float32) @ transposed
    return 100 / images * accuracies


def disagreement(first: np.ndarray, second: np.ndarray) -> float:
    """Percent of the examples on which exactly one of two models is right.

    Args:
        first, second: bool [examples], on the same examples in the same order.

    Raises:
        InputError: the two are not bool arrays of one length.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.dtype != np.bool_ or second.dtype != np.bool_ or first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            f'outcomes: {first.dtype}{list(first.shape)} and {second.dtype}{list(second.shape)}; two bool arrays '
            '[examples] of one length are needed'
        )
    return float(100 * np.mean(first != second))


def format_p_value(p_value: float) -> str:
    """'0.031', '2e-13', or '< 1e-300': a p-value is never exactly 0."""
    return f'{p_value:.2g}' if p_value >= SMALLEST_P_VALUE else f'< {SMALLEST_P_VALUE:g}'


def _interval(
    estimate: float, error: float, degrees: float, confidence: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    half_width = float(scipy.special.stdtrit(degrees, (1 + confidence) / 2)) * error
    return max(estimate - half_width, bounds[0]), min(estimate + half_width, bounds[1])


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f'confidence: {confidence} is not between 0 and 1')


def _check_margin(margin: float) -> None:
    if not 0 < margin < math.inf:
        raise InputError(f'margin: {margin}; must be above 0')
