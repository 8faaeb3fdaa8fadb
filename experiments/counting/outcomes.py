"""Which test images a run classified correctly after each epoch, from its workdir or from its record."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.ablation.records import Record, read_record
from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.run.result import evaluated_split


class Outcomes(NamedTuple):
    """The outcomes of a run.

    Attributes:
        name: of the run.
        correct: bool [epochs, examples], in the order in which the data set is stored.
        labels: int32 [examples]; None where they are not known.
        split: 'test' or 'validation', which examples they are.
    """

    name: str
    correct: np.ndarray
    labels: np.ndarray | None
    split: str = 'test'


def read_outcomes(path: Path) -> Outcomes:
    """The outcomes of the run in a workdir, or of a record (a .json file).

    Raises:
        InputError: the file is missing or damaged, or does not belong to the metrics.jsonl beside it.
    """
    if path.suffix == '.json':
        record = read_record(path)
        return Outcomes(record.name, record.correct, labels_of(record))
    file = path / 'outcomes.npz'
    correct, labels = _read_arrays(file)
    split = _check_counts(correct, file, path / 'metrics.jsonl')
    return Outcomes(path.name, correct, labels, split)


def labels_of(record: Record) -> np.ndarray | None:
    """The labels of the test images of a record, where the data set stores its images class by class; else None."""
    if record.config['data.source'] != 'folder':
        return None
    counts = [of_class['count'] for of_class in record.summary['per_class'].values()]
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            correct, labels = arrays['correct'], arrays['labels']
    except FileNotFoundError:
        raise InputError(
            f'{path}: not found; name the workdir of a run that has evaluated at least one epoch, or a record (.json)'
        ) from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{path}: damaged or not an outcomes file ({one_line(error)})') from None
    if correct.dtype != np.bool_ or correct.ndim != 2 or correct.size == 0 or correct.shape[1:] != labels.shape:
        shapes = f'correct {correct.dtype}{list(correct.shape)}, labels {list(labels.shape)}'
        raise InputError(f'{path}: {shapes}; bool [epochs, examples] and [examples] are needed')
    return correct, labels


def _check_counts(correct: np.ndarray, path: Path, metrics: Path) -> str:
    """Compares the number of correct examples of each epoch with the log of the run, where there is one.

    Returns:
        The split that the log names.
    """
    if not metrics.exists():
        return 'test'
    try:
        lines = [json.loads(line) for line in metrics.read_text().splitlines()[: len(correct)]]
        logged = [_logged(line) for line in lines]
    except OSError as error:
        raise InputError(f'{metrics}: cannot be read ({os_reason(error)})') from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{metrics}: cut short or not a log of epochs') from None
    if logged != [(int(epoch.sum()), epoch.size) for epoch in correct]:
        raise InputError(f'{path}: its counts of correct examples are not those of {metrics.name}')
    return evaluated_split(lines[0])


def _logged(line: dict) -> tuple[int, int]:
    """(correct, count) of an epoch, of the test images or of the validation images that it was evaluated on."""
    split = evaluated_split(line)
    return line[f'{split}_correct'], line[f'{split}_count']
