"""The historical ways of counting accuracy, each computed from the same per-example outcomes.

`outcomes` is always a bool array [..., epochs, examples] or [examples]: which test examples were classified correctly,
in dataset order. The order matters, because the historical estimators average over batches. Accuracies are in percent,
as the PyTorch programs printed them.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # its parts are loaded at first use, because scipy.stats takes a second to import

from pnn_jax.errors import InputError

SMOOTHING = 0.7  # juefeix/pnn.pytorch plugins/monitor.py: new = 0.7 * old + 0.3 * accuracy of the batch


def exact_accuracy(outcomes: np.ndarray) -> np.ndarray:
    """Percent of examples that are correct, [..., examples] -> [...].

    Everywhere else in this project `accuracy` means this value, but as a fraction.

    Raises:
        InputError: `outcomes` is not a bool array, or has no example.
    """
    return 100.0 * _checked(outcomes).mean(axis=-1)


def smoothed_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """The original program's value after each epoch: an exponential moving average over evaluation batches.

    Each full batch changes the average to 0.7 * average + 0.3 * accuracy of the batch, so only the last few batches
    have any weight. The partial last batch is skipped (juefeix/pnn.pytorch train.py:220). The average starts at 0 and
    is carried over from epoch to epoch, because the monitor's `reset()` changes nothing (plugins/monitor.py:19-22).

    Args:
        outcomes: [..., epochs, examples], or [examples] for a single epoch.
        batch_size: of the evaluation; at least one full batch is needed.

    Returns:
        The average at the end of each epoch in percent, [..., epochs]; a scalar for a single epoch.

    Raises:
        InputError: no batch is full, or `outcomes` is not a bool array.
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
    """What the original program reports for a run: the maximum over epochs of `smoothed_accuracy`."""
    return smoothed_accuracy(outcomes, batch_size).max(axis=-1)


def mean_batch_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """The audit's mean over batches of 100 * correct / batch_size, [..., examples] -> [...].

    The partial last batch is divided by the full batch size too (michaelklachko/pnn.pytorch main.py:232). A perfect
    model on 10,000 examples therefore gets 99.52 at batch size 64.

    Raises:
        InputError: `outcomes` is not a bool array, or the batch size is below 1.
    """
    return (100.0 * _batch_correct(outcomes, batch_size) / batch_size).mean(axis=-1)


def floored_batch_accuracy(outcomes: np.ndarray, batch_size: int) -> np.ndarray:
    """`mean_batch_accuracy` with the integer division of early PyTorch: 15 of 16 give 93, not 93.75.

    The accuracy of each batch was an integer tensor. The mean over batches was taken in floating point. Shapes and
    errors as `mean_batch_accuracy`.
    """
    return (100 * _batch_correct(outcomes, batch_size) // batch_size).mean(axis=-1)


# name -> function(outcomes [..., epochs, examples], batch_size) -> percent [..., epochs]
ESTIMATORS = {
    'exact_accuracy': lambda outcomes, batch_size: exact_accuracy(outcomes),
    'smoothed_accuracy': smoothed_accuracy,
    'mean_batch_accuracy': mean_batch_accuracy,
    'floored_batch_accuracy': floored_batch_accuracy,
}


def flooring_bias(accuracy: float, batch_size: int) -> float:
    """Expected `floored_batch_accuracy` minus the true accuracy (percent), for independent examples."""
    correct = np.arange(batch_size + 1)
    probability = scipy.stats.binom.pmf(correct, batch_size, accuracy / 100)
    return float(np.sum(probability * (100 * correct // batch_size)) - accuracy)


def undo_flooring(reported: float, batch_size: int) -> float:
    """The accuracy (percent) whose expected `floored_batch_accuracy` is `reported`. An inference, not a measurement."""
    excess = lambda accuracy: accuracy + flooring_bias(accuracy, batch_size) - reported
    return float(scipy.optimize.brentq(excess, 0.0, 100.0))


def simulate_outcomes(
    rng: np.random.Generator, accuracy: float, epochs: int, examples: int, correlation: float
) -> np.ndarray:
    """Draws the outcomes, bool [epochs, examples], of a run whose true accuracy (percent) never changes.

    Example i is correct in epoch e if sqrt(correlation) * u[i] + sqrt(1 - correlation) * v[e, i] is below the quantile
    of `accuracy`, with u and v standard normal. `correlation` is thus the correlation of an example's latent score
    between two epochs.
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
    """What each way of counting reports in simulated runs: its maximum over the epochs so far, in percent.

    Returns:
        Estimator name -> [runs, epochs]: what a run would report if it stopped after that epoch. The expected bias of
        an estimator is the mean over runs minus `accuracy`. For `smoothed_accuracy`, `examples = 40 * batch_size` is
        enough: the last 40 batches have all but 1e-6 of the weight.
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
