"""The files of a run other than its checkpoints, and the lock that gives the directory to one process at a time.

    config.json     every field of the run, compared when it is continued
    metrics.jsonl   a line per epoch
    outcomes.npz    correct [epochs, test examples] bool, labels [test examples], test_digest
    result.json     written when the run is done
    checkpoints/    see checkpoints.py
    lock            held while a process works here; the system frees it when the process ends, however it ends

Every file but metrics.jsonl is replaced as a whole, so that none is ever half written; metrics.jsonl is appended to,
and a last line that a killed process left unfinished does not count.
"""

import fcntl
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from pnn_jax.data.dataset import ADDED_FIELDS
from pnn_jax.errors import InputError, RunError
from pnn_jax.hosts import from_process_0

# What a run may change when it is continued: none of it changes what is computed.
FREE_FIELDS = ('eval_batch_size', 'data.path', 'data.cache_dir')
FREE_SECTIONS = ('checkpoint.', 'log.')

# What decides the outputs of a network on given images.
OUTPUT_FIELDS = ('model.', 'data.mean', 'data.std', 'data.image_size', 'data.resize', 'data.pad')


class Workdir:
    """An opened workdir. Every process of a run makes the same calls and sees the same contents; one writes them.

    Attributes:
      path: absolute path.
      checkpoints_dir: for `Checkpointer`.
      history: the metrics of every epoch done, in order.
      outcomes: bool [epochs, test examples] in dataset order, row i for `history[i]`.
    """

    def __init__(self, path: Path, primary: bool):
        self.path, self._primary = path, primary
        self.checkpoints_dir = path / 'checkpoints'
        self.history: list[dict] = []
        self.outcomes = np.zeros((0, 0), np.bool_)
        self._lock: int | None = None
        self._result: dict | None = None
        self._labels: np.ndarray | None = None
        self._test_digest = ''

    @classmethod
    def open(cls, path: str | os.PathLike, config: ml_collections.ConfigDict, *, primary: bool = True) -> 'Workdir':
        """Makes the directory for a new run, or opens that of the run to be continued.

        Args:
          path: the directory; made if need be.
          config: the run's configuration.
          primary: whether this process is the one, of those of the run, that reads and writes the files.

        Raises:
          InputError: the directory cannot be made or written to, another process works in it, or it holds a run with
            another configuration (each differing field is named). Nothing has been changed then.
          RunError: its files are damaged.
        """
        workdir = cls(Path(os.path.abspath(path)), primary)

        def read():
            workdir._lock = _lock(workdir.path)
            try:
                _compare_or_write_config(workdir.path, config)
                workdir._read()
                workdir.truncate(len(workdir.history))  # removes an unfinished line
            except BaseException:
                workdir.close()
                raise
            return workdir.history, workdir.outcomes, workdir._labels, workdir._test_digest, workdir._result

        history, outcomes, labels, test_digest, result = from_process_0(read)
        workdir.history, workdir.outcomes, workdir._result = history, outcomes, result
        workdir._labels, workdir._test_digest = labels, test_digest
        return workdir

    def __enter__(self) -> 'Workdir':
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process work here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def use_test_set(self, labels: np.ndarray, test_digest: str) -> None:
        """Says which test set the outcomes belong to; call it once, before the first `append_epoch`.

        Args:
          labels: int [test examples], dataset order.
          test_digest: digest of the data set.

        Raises:
          InputError: the epochs done so far were evaluated on other data.
        """
        if self.history and test_digest != self._test_digest:
            raise InputError(
                f'data: the run in {self.path} was trained on other data (its digest was {self._test_digest[:12]}, '
                f'now it is {test_digest[:12]}); continue it with the same data, or choose another workdir'
            )
        self._labels, self._test_digest = np.asarray(labels, np.int32), test_digest
        if not self.history:
            self.outcomes = np.zeros((0, len(labels)), np.bool_)

    def append_epoch(self, metrics: dict, outcomes: np.ndarray) -> None:
        """Adds an epoch. A result.json that described fewer epochs is deleted.

        Args:
          metrics: what JSON can hold; its `epoch` counts from 1.
          outcomes: bool [test examples]: which were classified correctly, in dataset order.

        Raises:
          RunError: the disk is full.
        """
        if self._labels is None or outcomes.shape != self._labels.shape or metrics['epoch'] != len(self.history) + 1:
            raise ValueError(
                f'epoch {metrics["epoch"]} with {outcomes.shape} outcomes after {len(self.history)} epochs'
            )
        line = json.dumps(metrics)
        self.outcomes = np.concatenate([self.outcomes, np.asarray(outcomes, np.bool_)[None]])
        self.history.append(json.loads(line))
        self._result = None
        if not self._primary:
            return
        self._write_outcomes()  # before the line: whenever that is complete, so are the outcomes
        try:
            (self.path / 'result.json').unlink(missing_ok=True)
            with open(self.path / 'metrics.jsonl', 'a') as file:
                file.write(line + '\n')
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f'{self.path / "metrics.jsonl"} not written: {error.strerror}') from error

    def truncate(self, num_epochs: int) -> None:
        """Forgets the epochs after the first `num_epochs`, which a continued run does again.

        Raises:
          RunError: there are fewer epochs, so that lines were lost.
        """
        if len(self.history) < num_epochs:
            raise RunError(
                f'{self.path / "metrics.jsonl"} has {len(self.history)} complete epochs, but the checkpoint is of '
                f'epoch {num_epochs}: lines were lost'
            )
        if len(self.history) > num_epochs:
            self.history, self.outcomes = self.history[:num_epochs], self.outcomes[:num_epochs]
            self._result = None
        if not self._primary:
            return
        lines = ''.join(json.dumps(metrics) + '\n' for metrics in self.history).encode()
        path = self.path / 'metrics.jsonl'
        if path.exists() and path.read_bytes() != lines:  # forgotten epochs, or an unfinished line
            (self.path / 'result.json').unlink(missing_ok=True)
            _replace(path, lines)

    def write_result(self, result: dict) -> None:
        """Writes result.json, from what JSON can hold."""
        text = json.dumps(result, indent=2) + '\n'
        self._result = json.loads(text)
        if self._primary:
            _replace(self.path / 'result.json', text.encode())

    def result(self) -> dict | None:
        """The content of result.json; None while the run is not done."""
        return self._result

    def _read(self) -> None:
        """Fills the attributes from the files."""
        path = self.path / 'result.json'
        self._result = _read_json(path) if path.exists() else None
        path = self.path / 'metrics.jsonl'
        if not path.exists():
            return
        lines = path.read_bytes().split(b'\n')[:-1]  # what follows the last newline is unfinished
        try:
            self.history = [json.loads(line) for line in lines]
            if [metrics['epoch'] for metrics in self.history] != list(range(1, len(lines) + 1)):
                raise ValueError('its epochs are not 1, 2, 3, ...')
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f'{path} is damaged: {error}') from error
        if not self.history:
            return
        path = self.path / 'outcomes.npz'
        try:
            with np.load(path, allow_pickle=False) as stored:
                outcomes, self._labels = stored['correct'], stored['labels']
                self._test_digest = str(stored['test_digest'])
            if outcomes.dtype != np.bool_ or outcomes.shape[1:] != self._labels.shape or len(outcomes) < len(lines):
                raise ValueError(f'{outcomes.dtype}{list(outcomes.shape)} for {len(lines)} epochs')
        except Exception as error:  # numpy and zipfile raise many kinds on damaged files
            raise RunError(f'{path} is damaged: {error}') from error
        self.outcomes = outcomes[: len(lines)]

    def _write_outcomes(self) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, correct=self.outcomes, labels=self._labels, test_digest=self._test_digest)
        _replace(self.path / 'outcomes.npz', buffer.getvalue())


def _lock(path: Path) -> int:
    """Makes the directory and locks it. Returns the file descriptor that holds the lock."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f'workdir: {path} cannot be used: {error.strerror}; name a directory that can be written to'
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 200).decode(errors='replace').strip()
        os.close(lock)
        raise InputError(
            f'workdir: {path} is in use by another process ({owner}); wait for it or name another directory'
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f'process {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
    return lock


def _compare_or_write_config(path: Path, config: ml_collections.ConfigDict) -> None:
    file = path / 'config.json'
    new = json.loads(config.to_json_best_effort())
    text = (json.dumps(new, indent=2) + '\n').encode()
    if not file.exists():
        for name in ('metrics.jsonl', 'result.json', 'checkpoints'):
            if (path / name).exists():
                raise InputError(f'workdir: {path} has {name} but no config.json, so it is not known what run it is of')
        _replace(file, text)
        return
    old = _read_json(file)
    differing = [line for name, had, wanted, line in _differences(old, new) if not _may_change(name, had, wanted)]
    if differing:
        raise InputError(
            f'workdir: {path} holds another run; name another directory, or continue that run with its own '
            f'configuration. These fields differ: {", ".join(differing)}'
        )
    if old != new:
        _replace(file, text)


def check_same_network(path: str | os.PathLike, config: ml_collections.ConfigDict) -> None:
    """Raises InputError where a config differs from that of the run in `path` in what decides the network's outputs.

    Only process 0 looks.
    """

    def check():
        old = _read_json(Path(path) / 'config.json')
        new = json.loads(config.to_json_best_effort())
        differing = [line for name, _, _, line in _differences(old, new) if name.startswith(OUTPUT_FIELDS)]
        if differing:
            raise InputError(
                f'workdir: {path} holds a run of another network; fields that differ: {", ".join(differing)}'
            )

    from_process_0(check)


def flat_fields(config: ml_collections.ConfigDict | dict) -> dict[str, Any]:
    """Every field by its whole name, 'model.num_filters' -> 128, in the types of JSON."""
    tree = config if isinstance(config, dict) else json.loads(config.to_json_best_effort())
    return dict(_fields(tree))


def _differences(old: dict, new: dict) -> list[tuple[str, Any, Any, str]]:
    """(name, old value, new value, 'name: old -> new') of every field in which two configs differ."""
    added = {f'data.{name}': default for name, default in ADDED_FIELDS.items()}
    had, wanted = added | flat_fields(old), added | flat_fields(new)
    return [
        (
            name,
            had.get(name),
            wanted.get(name),
            f'{name}: {had.get(name, "absent")!r} -> {wanted.get(name, "absent")!r}',
        )
        for name in sorted(had.keys() | wanted.keys())
        if had.get(name) != wanted.get(name)
    ]


def _may_change(name: str, old: Any, new: Any) -> bool:
    if name == 'num_epochs':
        return old is not None and new is not None and new >= old
    if name == 'num_seeds':  # a single seed has another layout of files
        return old is not None and new is not None and new >= old > 1
    return name in FREE_FIELDS or name.startswith(FREE_SECTIONS)


def _fields(tree: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _fields(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError('not an object')
        return content
    except (OSError, ValueError) as error:
        raise RunError(f'{path} is damaged: {error}') from error


def _replace(path: Path, data: bytes) -> None:
    """Writes a file so that at any instant the old or the new content is there, also after a power failure."""
    temporary = path.with_name(path.name + '.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f'{path} not written: {error.strerror}') from error
