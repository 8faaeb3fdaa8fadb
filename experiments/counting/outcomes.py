"""The per-example outcomes that a run leaves in its workdir."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pnn_jax.errors import InputError, one_line, os_reason


class Outcomes(NamedTuple):
    """Which test examples a run classified correctly after each epoch.

    Attributes:
        correct: bool [epochs, examples], in dataset order.
        labels: int32 [examples].
        test_digest: digest of the data set.
    """

    correct: np.ndarray
    labels: np.ndarray
    test_digest: str


def read_outcomes(workdir: Path) -> Outcomes:
    """Reads `workdir`/outcomes.npz.

    Raises:
        InputError: the file is missing or damaged, or does not belong to the metrics.jsonl beside it.
    """
    path = workdir / 'outcomes.npz'
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            outcomes = Outcomes(arrays['correct'], arrays['labels'], str(arrays['test_digest']))
    except FileNotFoundError:
        raise InputError(
            f'{path}: not found; name the workdir of a run that has evaluated at least one epoch'
        ) from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{path}: damaged or not an outcomes file ({one_line(error)})') from None
    correct, labels = outcomes.correct, outcomes.labels
    if correct.dtype != np.bool_ or correct.ndim != 2 or correct.size == 0 or correct.shape[1:] != labels.shape:
        shapes = f'correct {correct.dtype}{list(correct.shape)}, labels {list(labels.shape)}'
        raise InputError(f'{path}: {shapes}; bool [epochs, examples] and [examples] are needed')
    _check_counts(correct, path, workdir / 'metrics.jsonl')
    return outcomes


def _check_counts(correct: np.ndarray, path: Path, metrics: Path) -> None:
    """Compares the number of correct examples of each epoch with the log of the run, where there is one."""
    if not metrics.exists():
        return
    try:
        lines = metrics.read_text().splitlines()[: len(correct)]
        logged = [(line['test_correct'], line['test_count']) for line in map(json.loads, lines)]
    except OSError as error:
        raise InputError(f'{metrics}: cannot be read ({os_reason(error)})') from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{metrics}: cut short or not a log of epochs') from None
    if logged != [(int(epoch.sum()), epoch.size) for epoch in correct]:
        raise InputError(f'{path}: its counts of correct examples are not those of {metrics.name}')


def shuffled(correct: np.ndarray, seed: int = 0) -> np.ndarray:
    """The outcomes [epochs, examples] with the examples in a fixed random order.

    The smoothed accuracy depends almost only on the last few batches. Where a data set is stored class by class, these
    would all be of one class; CIFAR-10 itself is stored in random order.
    """
    return correct[:, np.random.default_rng(seed).permutation(correct.shape[1])]


def is_sorted_by_class(labels: np.ndarray) -> bool:
    return bool((np.diff(labels) >= 0).all() and labels[0] != labels[-1])
