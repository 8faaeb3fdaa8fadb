"""The record of a finished run: one JSON file with its config, result, history and every single outcome.

The report is made from records alone. A record holds the sha256 of its grid's file, and the digest of the code that
computed it (`result.json`, key 'code'), so that results of different grids or code are not compared by accident.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.ablation.registration import Grid
from experiments.command import write_file
from pnn_jax.errors import InputError, RunError, one_line, os_reason
from pnn_jax.run.result import evaluated_split
from pnn_jax.run.workdir import ADDED_FIELDS, FREE_FIELDS, FREE_SECTIONS, flat_fields

UNKNOWN_CODE = 'unknown'


class Record(NamedTuple):
    """A finished run.

    Attributes:
        arm: name of the arm.
        seed: of the weights; with the arm it names the run.
        registration: sha256 (hex) of the grid's file.
        config: every field that affects the result, flat: 'model.num_filters' -> 128.
        summary: the content of the run's result.json, and what `measure_final` returns.
        history: the lines of metrics.jsonl, one per epoch.
        correct: bool [evaluations, test examples], in dataset order: the test set after every epoch, or after the last
            one alone where epochs are evaluated on validation examples.
    """

    arm: str
    seed: int
    registration: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    correct: np.ndarray

    @property
    def name(self) -> str:
        return f'{self.arm}_seed{self.seed}'

    @property
    def accuracy(self) -> float:
        """Exact accuracy after the last epoch, as a fraction."""
        return self.summary['final_test_accuracy']

    @property
    def data_digest(self) -> str:
        """Digest of the data set."""
        return self.summary['dataset']['digest']

    @property
    def code(self) -> str:
        """Digest of the code that computed the run.

        `UNKNOWN_CODE` for records from before there was one, and for runs that other code, other versions of libraries
        or another kind of device began.
        """
        if self.summary.get('resumed_from'):
            return UNKNOWN_CODE
        return (self.summary.get('code') or {}).get('sha256') or UNKNOWN_CODE

    @property
    def masks(self) -> int:
        """Number of mask values."""
        return self.summary['parameters']['masks']

    @property
    def weights(self) -> int:
        """Number of trained values without masks."""
        trained_masks = self.masks if self.config['model.trainable_masks'] else 0
        return self.summary['parameters']['trained'] - trained_masks

    def write(self, path: Path) -> None:
        """Writes the file as a whole.

        Raises:
            RunError: it cannot be written.
        """
        content = self._asdict()
        packed = zlib.compress(np.packbits(self.correct), 9)
        content['correct'] = {'shape': list(self.correct.shape), 'packed': base64.b64encode(packed).decode()}
        write_file(path, json.dumps({'sha256': _digest(content)} | content, indent=1) + '\n')


def record_path(results: Path, run: str) -> Path:
    """The file of a run, by the name of the run."""
    return results / f'{run}.json'


def make_record(arm: str, seed: int, registration: str, config, workdir: Path, measured: Mapping[str, Any]) -> Record:
    """The record of the finished run in `workdir`.

    Args:
        registration: sha256 of the grid's file.
        config: of the run.
        measured: of the final network; see `measure_final`.

    Raises:
        RunError: the files of the run are missing or damaged.
    """
    try:
        summary = json.loads((workdir / 'result.json').read_text())
        history = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
        outcomes = 'test_outcomes.npz' if evaluated_split(history[-1]) == 'validation' else 'outcomes.npz'
        # Opened here, because numpy leaves a damaged file open.
        with open(workdir / outcomes, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            correct = np.atleast_2d(arrays['correct'])
    except OSError as error:
        raise RunError(f'{error.filename or workdir}: cannot be read ({os_reason(error)})') from None
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(
            f'{workdir}: result.json, metrics.jsonl or outcomes.npz is damaged ({one_line(error)})'
        ) from None
    summary.pop('command', None)  # contains folder names of the machine
    return Record(arm, seed, registration, settings(config), summary | measured, history, correct)


def read_record(path: Path) -> Record:
    """Reads a record and checks that it is complete and unchanged.

    Raises:
        InputError: the record is missing, cut short or edited.
    """
    try:
        content = json.loads(path.read_text())
        intact = content.pop('sha256') == _digest(content)
        shape = content['correct']['shape']
        packed = zlib.decompress(base64.b64decode(content['correct']['packed']))
        correct = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1])
        if 'row' in content:  # from before grids were files, when an arm was a row
            content |= {'arm': content.pop('row'), 'registration': ''}
        record = Record(**{**content, 'correct': correct.reshape(shape).astype(bool)})
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)})') from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, zlib.error) as error:
        raise InputError(f'{path}: cut short or not a record of the grid ({one_line(error)})') from None
    if not intact:
        raise InputError(f'{path}: its content is not what was written (the sha256 differs)')
    return record


def check_registration(records: Iterable[Record], grid: Grid) -> None:
    """Refuses records of another text of a registration. Other grids may change; there the configs alone must agree.

    Raises:
        InputError: names the digests, and a record.
    """
    others = [record for record in records if record.registration != grid.sha256]
    if grid.registration and others:
        raise InputError(
            f'{grid.name}: is a registration, which must not change after its runs began: its sha256 is '
            f'{grid.sha256[:12]}, and that of {_listed([record.name for record in others])} is '
            f'{others[0].registration[:12] or "unknown"}; restore the file, or move the records away'
        )


def check_code(records: Iterable[Record], expected: str = '') -> None:
    """Refuses records of different code, and those whose code is not known.

    Only the code that computes counts (`pnn_jax/` and `configs/`): a commit that changes documentation, tests or
    experiments leaves its digest as it is.

    Args:
        expected: digest that all records must have; '' if they must only agree with each other.

    Raises:
        InputError: names the digests, and a record of each.
    """
    names: dict[str, list[str]] = {}
    for record in records:
        names.setdefault(record.code, []).append(record.name)
    if UNKNOWN_CODE not in names and names.keys() <= {expected or next(iter(names), '')}:
        return
    found = '; '.join(f'{code[:12]}: {_listed(of_code)}' for code, of_code in names.items())
    now = f' and the code here is {expected[:12]}' if expected else ''
    raise InputError(
        f'records were computed by different or unknown code ({found}){now}; move old records and their workdirs away, '
        'or accept all of them with --allow_mixed_code'
    )


def settings(config) -> dict[str, Any]:
    """The fields of a config that affect what is computed, flat, in the types of JSON."""
    return _binding(flat_fields(config))


def _binding(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in fields.items() if name not in FREE_FIELDS and not name.startswith(FREE_SECTIONS)
    }


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """'field: value -> value' for every field in which the config of a record is not the wanted one.

    A field that is newer than the record has the value that `ADDED_FIELDS` says older runs were computed with.
    """
    recorded = _binding(ADDED_FIELDS | recorded)  # fields may have become free since
    return [
        f'{name}: {recorded.get(name)!r} -> {wanted.get(name)!r}'
        for name in sorted(recorded.keys() | wanted.keys())
        if recorded.get(name) != wanted.get(name)
    ]


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()


def _listed(names: Sequence[str], most: int = 3) -> str:
    further = len(names) - most
    return ', '.join(names[:most]) + (f' and {further} more' if further > 0 else '')
