"""What a run of the grid leaves for the report: one JSON file with its config, counts, history and every outcome."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np

from pnn_jax.errors import InputError, RunError
from pnn_jax.run.workdir import FREE_FIELDS, FREE_SECTIONS, flat_fields


class Record(NamedTuple):
    """A finished run.

    Attributes:
        row: name in the grid.
        seed: of the run.
        config: every field that has influence on the result, flat: 'model.num_filters' -> 128.
        summary: the run's result.json.
        history: a dictionary for each epoch, as in metrics.jsonl.
        correct: bool [epochs, test examples], in dataset order.
    """

    row: str
    seed: int
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    correct: np.ndarray

    @property
    def accuracy(self) -> float:
        """Exact accuracy of the last epoch, a fraction."""
        return self.summary['final_test_accuracy']

    @property
    def test_digest(self) -> str:
        """Of the data set."""
        return self.summary['dataset']['digest']

    @property
    def masks(self) -> int:
        return self.summary['parameters']['masks']

    @property
    def weights(self) -> int:
        """Learned parameters, masks excepted."""
        trained_masks = self.masks if self.config['model.trainable_masks'] else 0
        return self.summary['parameters']['trained'] - trained_masks

    def write(self, path: pathlib.Path) -> None:
        """Writes the file as a whole.

        Raises:
            RunError: it cannot be written.
        """
        content = self._asdict()
        packed = zlib.compress(np.packbits(self.correct), 9)
        content['correct'] = {'shape': list(self.correct.shape), 'packed': base64.b64encode(packed).decode()}
        text = json.dumps(content, indent=1)
        text = json.dumps({'sha256': hashlib.sha256(text.encode()).hexdigest()} | content, indent=1) + '\n'
        temporary = path.with_suffix('.tmp')
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        except OSError as error:
            raise RunError(f'{path}: cannot be written ({error.strerror})') from None


def record_path(results: pathlib.Path, row: str, seed: int) -> pathlib.Path:
    return results / f'{row}_seed{seed}.json'


def make_record(row: str, seed: int, config, workdir: pathlib.Path) -> Record:
    """The record of the finished run in `workdir`."""
    summary = json.loads((workdir / 'result.json').read_text())
    del summary['command']  # names folders of the machine
    history = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    with np.load(workdir / 'outcomes.npz', allow_pickle=False) as arrays:
        correct = arrays['correct']
    return Record(row, seed, settings(config), summary, history, correct)


def read_record(path: pathlib.Path, config=None) -> Record:
    """Reads a record and checks that it is whole and, where a config is given, that it is of that config.

    Raises:
        InputError: it is missing, cut short, changed by hand, or of another config (the fields are named).
    """
    try:
        content = json.loads(path.read_text())
        digest = content.pop('sha256')
        intact = digest == hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
        shape = content['correct']['shape']
        packed = zlib.decompress(base64.b64decode(content['correct']['packed']))
        correct = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1])
        record = Record(**{**content, 'correct': correct.reshape(shape).astype(bool)})
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}') from None
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise InputError(f'{path}: cut short or not a result of the grid ({error})') from None
    if not intact:
        raise InputError(f'{path}: its content is not what was written (the sha256 differs)')
    if config is not None and (differing := differences(record.config, settings(config))):
        raise InputError(f'{path}: of another grid, move it away; fields that differ: {", ".join(differing)}')
    return record


def settings(config) -> dict[str, Any]:
    """The fields of a config that have influence on what is computed, flat, in the types of JSON."""
    return {
        name: value
        for name, value in flat_fields(config).items()
        if name not in FREE_FIELDS and not name.startswith(FREE_SECTIONS)
    }


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """'field: value -> value' for every field in which two settings differ."""
    return [
        f'{name}: {first.get(name)!r} -> {second.get(name)!r}'
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
