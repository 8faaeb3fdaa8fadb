"""How the debate counted accuracy: every historical estimator, from the same per-example outcomes.

`outcomes` is everywhere a bool array [..., epochs, examples] or [examples] that says which test examples were
classified correctly, in dataset order: the order matters, because the historical estimators look at batches.
Accuracies are in percent, as the PyTorch programs printed them; `wilson_interval` returns fractions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are first used: a run needs none of the slow ones

from pnn_jax.errors import InputError

SMOOTHING = 0.7  # juefeix/pnn.pytorch plugins/monitor.py: new = 0.7 * old + 0.3 * accuracy of the batch


def exact_accuracy(outcomes: np.ndarray) -> np.ndarray:
    """100 * correct / examples, [..., examples] -> [...]: what this project means by accuracy."""
    return 100.0 * _checked(outcomes).mean(axis=-1)


def smoothed_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """The original's value after each epoch: a running mean that forgets all but the last few batches.

    Every full batch moves the value by 0.3 of the way to its own accuracy; the partial last batch is skipped
    (juefeix/pnn.pytorch train.py:220); each epoch goes on from the value before it, because the monitor's
    `reset()` changes nothing (plugins/monitor.py:19-22). The value starts at 0.

    Args:
      outcomes: [..., epochs, examples], or [examples] for a single epoch.
      batch_size: of the evaluation; at least one full batch is needed.

    Returns:
      The running value at the end of each epoch, [..., epochs]; a scalar for a single epoch.
    """
    outcomes = _checked(outcomes, batch_size)
    batches = outcomes.shape[-1] // batch_size
    if batches == 0:
        raise InputError(f'batch_size: {batch_size} leaves no full batch of {outcomes.shape[-1]} examples')
    history = outcomes[None] if outcomes.ndim == 1 else outcomes
    full = history[..., : batches * batch_size].reshape(*history.shape[:-1], batches, batch_size)
    batch_accuracy = 100.0 * full.mean(axis=-1)  # [..., epochs, batches]
    stream = batch_accuracy.reshape(*history.shape[:-2], -1)
    running = scipy.signal.lfilter([1 - SMOOTHING], [1, -SMOOTHING], stream, axis=-1)
    at_epoch_end = running[..., batches - 1 :: batches]
    return at_epoch_end[0] if outcomes.ndim == 1 else at_epoch_end


def reported_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """The figure that the original reports for a run: the maximum over epochs of `smoothed_accuracy`."""
    return smoothed_accuracy(outcomes, batch_size).max(axis=-1)


def mean_batch_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """The audit's mean over batches of 100 * correct / batch_size, [..., examples] -> [...].

    The partial last batch is divided by the full size too (michaelklachko/pnn.pytorch main.py:232), so that a
    perfect model on 10,000 examples gets 99.52 at batch size 64.
    """
    return (100.0 * _batch_correct(outcomes, batch_size) / batch_size).mean(axis=-1)


def floored_batch_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """`mean_batch_accuracy` in the truncating integer arithmetic of early PyTorch: 15 of 16 give 93.

    The accuracy of each batch was an integer tensor; the mean over batches was taken in floating point.
    """
    return (100 * _batch_correct(outcomes, batch_size) // batch_size).mean(axis=-1)


# name -> function(outcomes [..., epochs, examples], batch_size) -> percent [..., epochs]
ESTIMATORS = {
    'exact_accuracy': lambda outcomes, batch_size: exact_accuracy(outcomes),
    'smoothed_accuracy': smoothed_accuracy,
    'mean_batch_accuracy': mean_batch_accuracy,
    'floored_batch_accuracy': floored_batch_accuracy,
}


def wilson_interval(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of correct / count, as fractions.

    Raises:
      InputError: correct is not within 0..count, count is 0, or confidence is not between 0 and 1.
    """
    if not 0 <= correct <= count or count == 0:
        raise InputError(f'correct: {correct} of {count}; needs 0 <= correct <= count and count > 0')
    if not 0 < confidence < 1:
        raise InputError(f'confidence: {confidence} is not between 0 and 1')
    z = scipy.special.ndtri((1 + confidence) / 2)
    fraction = correct / count
    centre = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    half_width = z / (1 + z**2 / count) * math.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return float(max(centre - half_width, 0.0)), float(min(centre + half_width, 1.0))


def t_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of `values` [n], in their unit; (nan, nan) for fewer than two."""
    values = np.asarray(values, dtype=float)
    if values.size < 2:
        return math.nan, math.nan
    half_width = scipy.stats.t.ppf((1 + confidence) / 2, values.size - 1) * scipy.stats.sem(values)
    return float(values.mean() - half_width), float(values.mean() + half_width)


class McNemar(NamedTuple):
    """Two models on the same examples: how many only one of them gets right, and how surprising that is."""

    only_first: int
    only_second: int
    difference: float  # accuracy of the first minus accuracy of the second, in percent
    interval: tuple[float, float]  # 95% interval of the difference, in percent (Wald, paired)
    p_value: float  # exact, two-sided


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test of the outcomes [examples] of two models on the same examples.

    Raises:
      InputError: the two were not tested on the same number of examples.
    """
    first, second = _checked(first), _checked(second)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f'outcomes: shapes {first.shape} and {second.shape}; the same [examples] is needed')
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    discordant = only_first + only_second
    p_value = scipy.stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    difference = (only_first - only_second) / first.size
    half_width = scipy.special.ndtri(0.975) * math.sqrt((discordant / first.size - difference**2) / first.size)
    interval = (100 * (difference - half_width), 100 * (difference + half_width))
    return McNemar(only_first, only_second, 100 * difference, interval, float(p_value))


def flooring_bias(accuracy: float, batch_size: int) -> float:
    """Expected `floored_batch_accuracy` minus the true accuracy (percent), for independent examples."""
    correct = np.arange(batch_size + 1)
    probability = scipy.stats.binom.pmf(correct, batch_size, accuracy / 100)
    return float(np.sum(probability * (100 * correct // batch_size)) - accuracy)


def undo_flooring(reported: float, batch_size: int) -> float:
    """The accuracy (percent) whose expected `floored_batch_accuracy` is `reported`: an inference."""
    excess = lambda accuracy: accuracy + flooring_bias(accuracy, batch_size) - reported
    return float(scipy.optimize.brentq(excess, 0.0, 100.0))


def simulate_outcomes(
    rng: np.random.Generator, accuracy: float, epochs: int, examples: int, correlation: float
) -> np.ndarray:
    """Draws the outcomes, bool [epochs, examples], of a run whose true accuracy (percent) never changes.

    Example i is correct in epoch e where sqrt(correlation) * u[i] + sqrt(1 - correlation) * v[e, i], with u
    and v standard normal, is below the quantile of `accuracy`: `correlation` is that of an example's latent
    score between two epochs.
    """
    threshold = scipy.special.ndtri(accuracy / 100)
    difficulty = rng.standard_normal(examples)
    if correlation == 1:
        return np.broadcast_to(difficulty < threshold, (epochs, examples))
    chance = scipy.special.ndtr((threshold - math.sqrt(correlation) * difficulty) / math.sqrt(1 - correlation))
    return rng.random((epochs, examples), dtype=np.float32) < chance


def simulate_reports(
    accuracy: float,
    batch_size: int,
    epochs: int,
    correlation: float,
    *,
    runs: int = 300,
    examples: int = 10_000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What each way of counting reports (its maximum over the epochs so far, percent) in simulated runs.

    Returns:
      Estimator name -> [runs, epochs]: the figure that a run would report had it stopped after that epoch. The
      expected bias of an estimator is the mean over runs minus `accuracy`. The last 40 batches carry all but 1e-6
      of the weight of `smoothed_accuracy`, so `examples = 40 * batch_size` is enough for it.
    """
    rng = np.random.default_rng(seed)
    reports = {name: np.empty((runs, epochs)) for name in ESTIMATORS}
    for run in range(runs):
        outcomes = simulate_outcomes(rng, accuracy, epochs, examples, correlation)
        for name, estimator in ESTIMATORS.items():
            reports[name][run] = np.maximum.accumulate(estimator(outcomes, batch_size))
    return reports


def _checked(outcomes: np.ndarray, batch_size: int = 1) -> np.ndarray:
    outcomes = np.asarray(outcomes)
    if outcomes.dtype != np.bool_ or outcomes.ndim == 0 or outcomes.size == 0:
        raise InputError(f'outcomes: {outcomes.dtype}{list(outcomes.shape)}; a bool array [..., examples] is needed')
    if batch_size < 1:
        raise InputError(f'batch_size: {batch_size}; at least 1 is needed')
    return outcomes


def _batch_correct(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """Correct examples of each batch, the partial last one included, [..., examples] -> [..., batches]."""
    outcomes = _checked(outcomes, batch_size)
    starts = np.arange(0, outcomes.shape[-1], batch_size)
    return np.add.reduceat(outcomes.astype(np.int64), starts, axis=-1)
