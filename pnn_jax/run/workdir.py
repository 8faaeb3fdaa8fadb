"""The files of a run other than its checkpoints, and the lock that gives the folder to one process at a time.

    config.json     every field of the run; compared when the run is resumed
    metrics.jsonl   one line per epoch
    outcomes.npz    correct [epochs, examples] bool, labels [examples], test_digest (of the data set); the examples are
                    those of the test set, or the validation examples where the run has any
    test_outcomes.npz   only with validation examples: correct [test examples] bool and labels, of the final network
    result.json     written when the run is done
    checkpoints/    see checkpoints.py
    lock            held while a process works here; the system frees it when the process ends, however it ends

The files say what was done, never what was asked for. Opening a workdir writes nothing: an attempt that is refused, or
that stops before it did anything, leaves every file as it was. `begin` is called just before the first checkpoint of an
attempt; from then on the files describe that attempt.

Every file but metrics.jsonl is replaced as a whole, so that none is ever half written. metrics.jsonl is appended to;
a last line that a killed process left unfinished does not count.
"""

import contextlib
import errno
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

from pnn_jax.data import dataset
from pnn_jax.errors import InputError, RunError, os_reason
from pnn_jax.hosts import from_process_0
from pnn_jax.models.registry import OPTIONS
from pnn_jax.paths import local_path, replace_file
from pnn_jax.run.checkpoints import has_checkpoints

# What may change when a run is resumed: none of it changes what is computed, except for rounding (seeds_at_once).
FREE_FIELDS = ('eval_batch_size', 'data.path', 'data.cache_dir', 'seeds_at_once')
FREE_SECTIONS = ('checkpoint.', 'log.')

# What decides the outputs of a network on given images.
OUTPUT_FIELDS = ('model.', 'data.mean', 'data.std', 'data.image_size', 'data.resize', 'data.pad')

# Fields that did not exist when older runs began, with the values that those runs were computed with.
ADDED_FIELDS = {
    'seeds_at_once': 1,
    **{f'data.{name}': value for name, value in dataset.ADDED_FIELDS.items()},
    **{f'model.{name}': field.default for name, field in OPTIONS.items()},
    'schedule.name': 'milestones',
    'schedule.warmup_epochs': 0.0,
}

# What flock answers on file systems without locks, such as some network mounts.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class Workdir:
    """An opened workdir. Every process of a run makes the same calls and sees the same contents; one writes them.

    Attributes:
      path: absolute path.
      checkpoints_dir: for `Checkpointer`.
      history: the metrics of every finished epoch, in order.
      outcomes: bool [epochs, examples] in dataset order, row i for `history[i]`. The examples are those that the epochs
        are evaluated on: the test set, or the validation examples where there are any.
      data_digest: of the data set behind `history`, '' where there is no epoch.
    """

    def __init__(self, path: Path, config: ml_collections.ConfigDict, primary: bool, parent: 'Workdir | None' = None):
        self.path, self._config, self._primary, self._parent = path, config, primary, parent
        self.checkpoints_dir = path / 'checkpoints'
        self.history: list[dict] = []
        self.outcomes = np.zeros((0, 0), np.bool_)
        self.data_digest = ''
        self._lock: int | None = None
        self._made_lock, self._locked = False, False
        self._made_folders: list[Path] = []  # from the workdir upwards
        self._begun = False
        self._result: dict | None = None
        self._labels: np.ndarray | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        config: ml_collections.ConfigDict,
        *,
        primary: bool = True,
        lock: bool = True,
        parent: 'Workdir | None' = None,
    ) -> 'Workdir':
        """Opens the folder of a run to be resumed, or makes an empty one for a new run. Writes no file but the lock.

        Args:
          path: the folder; made if need be.
          config: the run's configuration.
          primary: whether this process is the one, of those of the run, that reads and writes the files.
          lock: hold a lock while the workdir is open. False is for file systems that have none; then nothing keeps a
            second process out.
          parent: the workdir of several seeds that this is a folder of; it begins when this one does.

        Raises:
          InputError: the folder cannot be made, read or written to, another process works in it, or it holds a run
            with another configuration (each differing field is named).
          RunError: its files are damaged.
        """
        workdir = cls(local_path(path, '--workdir'), config, primary, parent)

        def read():
            workdir._make_and_lock(lock)
            try:
                workdir._compare_config()
                workdir._read()
            except OSError as error:
                workdir.close()
                raise InputError(
                    f'--workdir={workdir.path}: {error.filename} cannot be read ({os_reason(error)})'
                ) from error
            except BaseException:
                workdir.close()
                raise
            return workdir.history, workdir.outcomes, workdir._labels, workdir.data_digest, workdir._result

        history, outcomes, labels, data_digest, result = from_process_0(read)
        workdir.history, workdir.outcomes, workdir._result = history, outcomes, result
        workdir._labels, workdir.data_digest = labels, data_digest
        return workdir

    def __enter__(self) -> 'Workdir':
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process work here. Removes the folders that were made for an attempt that did nothing."""
        if self._lock is None:
            return
        if self._locked:
            os.ftruncate(self._lock, 0)
        if self._made_lock and not self._begun:
            with contextlib.suppress(OSError):
                (self.path / 'lock').unlink()
        if not self._begun:
            with contextlib.suppress(OSError):  # something else was put there
                for folder in self._made_folders:
                    folder.rmdir()
        os.close(self._lock)
        self._lock = None

    def begin(self) -> None:
        """Makes the files describe this attempt. Call it when there is something to save, before it is saved.

        Raises:
          RunError: a file cannot be written.
        """
        if self._begun or not self._primary:
            return
        if self._parent is not None:
            self._parent.begin()
        _replace(self.path / 'config.json', _as_json(self._config).encode())
        self._begun = True
        if self._result is not None and self._result.get('num_seeds', 1) != self._config.num_seeds:
            self._remove_result()  # the mean of other seeds
        self._write_lines()  # without an unfinished line, or the epochs that `truncate` dropped

    def check_data(self, digest: str) -> None:
        """Raises InputError where the finished epochs are of a data set with another digest."""
        if self.history and digest != self.data_digest:
            raise other_data(self.path, self.data_digest, digest)

    def set_examples(self, labels: np.ndarray, data_digest: str) -> None:
        """Says which examples the outcomes belong to. Call it before each `append_epoch`; it also checks the data.

        Args:
          labels: int [examples], dataset order.
          data_digest: digest of the data set.

        Raises:
          InputError: the epochs done so far were evaluated on other data.
        """
        self.check_data(data_digest)
        self._labels, self.data_digest = np.asarray(labels, np.int32), data_digest
        if not self.history:
            self.outcomes = np.zeros((0, len(labels)), np.bool_)

    def append_epoch(self, metrics: dict, outcomes: np.ndarray) -> None:
        """Adds an epoch. A result.json that described fewer epochs is deleted, also that of all seeds.

        Args:
          metrics: what JSON can hold; its `epoch` counts from 1.
          outcomes: bool [examples]: which were classified correctly, in dataset order.

        Raises:
          RunError: the disk is full.
        """
        if self._labels is None or outcomes.shape != self._labels.shape or metrics['epoch'] != len(self.history) + 1:
            raise ValueError(
                f'epoch {metrics["epoch"]} with {outcomes.shape} outcomes after {len(self.history)} epochs'
            )
        self.begin()
        line = json.dumps(metrics)
        self.outcomes = np.concatenate([self.outcomes, np.asarray(outcomes, np.bool_)[None]])
        self.history.append(json.loads(line))
        self._result = None
        if not self._primary:
            return
        self._write_outcomes()  # before the line: whenever that is complete, so are the outcomes
        try:
            self._remove_result()
            with open(self.path / 'metrics.jsonl', 'a') as file:
                file.write(line + '\n')
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f'{self.path / "metrics.jsonl"} not written: {os_reason(error)}') from error

    def truncate(self, num_epochs: int) -> None:
        """Drops the epochs after the first `num_epochs`, which a resumed run repeats. The files follow in `begin`.

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

    def _write_lines(self) -> None:
        """Makes metrics.jsonl hold `history`, and removes a result of more epochs than that."""
        lines = ''.join(json.dumps(metrics) + '\n' for metrics in self.history).encode()
        path = self.path / 'metrics.jsonl'
        if path.exists() and path.read_bytes() != lines:
            self._remove_result()
            _replace(path, lines)

    def _remove_result(self) -> None:
        """Deletes result.json, and that of all seeds, which is made of those of each."""
        (self.path / 'result.json').unlink(missing_ok=True)
        self._result = None
        if self._parent is not None:
            self._parent._remove_result()

    def write_test_outcomes(self, correct: np.ndarray, labels: np.ndarray) -> None:
        """Writes test_outcomes.npz: which of the test examples the final network classifies correctly.

        Args:
          correct: bool [test examples], dataset order.
          labels: int [test examples].
        """
        if self._primary:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, correct=correct, labels=labels, test_digest=self.data_digest)
            _replace(self.path / 'test_outcomes.npz', buffer.getvalue())

    def write_result(self, result: dict) -> dict:
        """Writes result.json, from what JSON can hold; returns what will be read from it."""
        text = json.dumps(result, indent=2) + '\n'
        self._result = json.loads(text)
        if self._primary:
            self.begin()
            _replace(self.path / 'result.json', text.encode())
        return json.loads(text)

    def result(self) -> dict | None:
        """The content of result.json; None while the run is not done."""
        return self._result

    def _read(self) -> None:
        """Fills the attributes from the files."""
        path = self.path / 'result.json'
        self._result = read_json(path) if path.exists() else None
        path = self.path / 'metrics.jsonl'
        if not path.exists():
            return
        lines = _finished_lines(path)
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
            with open(path, 'rb') as file, np.load(file, allow_pickle=False) as stored:
                outcomes, self._labels = stored['correct'], stored['labels']
                self.data_digest = str(stored['test_digest'])
            if outcomes.dtype != np.bool_ or outcomes.shape[1:] != self._labels.shape or len(outcomes) < len(lines):
                raise ValueError(f'{outcomes.dtype}{list(outcomes.shape)} for {len(lines)} epochs')
        except Exception as error:  # numpy and zipfile raise many kinds on damaged files
            raise RunError(f'{path} is damaged: {error}') from error
        self.outcomes = outcomes[: len(lines)]

    def _write_outcomes(self) -> None:
        buffer = io.BytesIO()
        assert self._labels is not None  # `set_examples` comes before the first epoch
        np.savez_compressed(buffer, correct=self.outcomes, labels=self._labels, test_digest=self.data_digest)
        _replace(self.path / 'outcomes.npz', buffer.getvalue())

    def _make_and_lock(self, lock: bool) -> None:
        """Makes the folder where there is none, and takes its lock."""
        try:
            self._made_folders = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._made_lock = not (self.path / 'lock').exists()
            self._lock = os.open(self.path / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f'--workdir={self.path}: cannot be used ({os_reason(error)}); name a folder that can be written to'
            ) from error
        if not lock:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._lock, 200).decode(errors='replace').strip()
            descriptor, self._lock = self._lock, None
            os.close(descriptor)
            raise _refused_lock(self.path, owner, error) from error
        if not self._holds_lock_file():
            os.close(self._lock)
            self._make_and_lock(lock)
            return
        self._locked = True
        with contextlib.suppress(OSError):  # on a full disk; the lock holds without the name of its owner
            os.ftruncate(self._lock, 0)  # a process that was killed left its name
            os.pwrite(self._lock, f'process {os.getpid()} on {socket.gethostname()}'.encode(), 0)

    def _holds_lock_file(self) -> bool:
        """Whether the locked file is the one in the folder. A process that did nothing may just have removed it."""
        assert self._lock is not None
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(self.path / 'lock'))
        except FileNotFoundError:
            return False

    def _compare_config(self) -> None:
        """Raises InputError where the folder holds work of another configuration."""
        file = self.path / 'config.json'
        if not file.exists():
            for name in ('metrics.jsonl', 'result.json', 'checkpoints'):
                if (self.path / name).exists():
                    raise InputError(
                        f'--workdir={self.path}: has {name} but no config.json, so it is not known which run it is'
                    )
            return
        old = read_config(self.path)
        seeds = [path for path in self.path.glob('seed_*') if has_checkpoints(path / 'checkpoints')]
        if not (has_checkpoints(self.checkpoints_dir) or seeds or _finished_lines(self.path / 'metrics.jsonl')):
            return
        differing = [line for name, had, wanted, line in differences(old, self._config) if _binds(name, had, wanted)]
        epochs = len(_finished_lines(self.path / 'metrics.jsonl'))
        if self._config.num_epochs < epochs:
            differing.append(f'num_epochs: {epochs} are done -> {self._config.num_epochs}')
        elif flat_fields(old).get('schedule.name') == 'cosine' and self._config.num_epochs != old.num_epochs:
            # Such a schedule ends with the run, so another length would change the learning rate of every step.
            differing.append(f'num_epochs: {old.num_epochs} -> {self._config.num_epochs} (the schedule depends on it)')
        if differing:
            raise InputError(
                f'--workdir={self.path}: holds another run; name another folder, or resume that run with its own '
                f'configuration. These fields differ: {", ".join(differing)}'
            )


def other_data(path: Path, trained_on: str, now: str) -> InputError:
    """The error for a run that was trained on a data set with another digest than the one that is given now."""
    return InputError(
        f'--workdir={path}: its run was trained on other data than config.data gives (digest {trained_on[:12]} then, '
        f'{now[:12]} now); resume it with the same data, or name another folder'
    )


def _refused_lock(path: Path, owner: str, error: OSError) -> InputError:
    if error.errno == errno.EWOULDBLOCK:
        by = f' ({owner})' if owner else ''
        return InputError(f'--workdir={path}: in use by another process{by}; wait for it or name another folder')
    if error.errno in _NO_LOCKS:
        return InputError(
            f'--workdir={path}: its file system has no file locks ({os_reason(error)}); name a folder on a local '
            'disk, or add --nolock and make sure that no second process works in this one'
        )
    return InputError(f'--workdir={path}: cannot be locked ({os_reason(error)}); name a folder that belongs to you')


def _finished_lines(path: Path) -> list[bytes]:
    """The lines of metrics.jsonl; what follows the last newline is unfinished."""
    return path.read_bytes().split(b'\n')[:-1] if path.exists() else []


def read_config(path: str | os.PathLike) -> ml_collections.ConfigDict:
    """The configuration of the run in the folder `path`, locked, with fields that are newer than the run filled in.

    Raises:
      RunError: config.json is damaged.
    """
    config = ml_collections.ConfigDict(read_json(Path(path) / 'config.json'))
    for name, value in ADDED_FIELDS.items():
        section, _, field = name.rpartition('.')
        part = config.get(section) if section else config
        if part is not None and field not in part:
            part[field] = value
    return config.lock()


def check_same_network(path: str | os.PathLike, config: ml_collections.ConfigDict) -> None:
    """Raises InputError where a config differs from that of the run in `path` in what decides the network's outputs.

    Only process 0 looks.
    """

    def check():
        differing = [
            line for name, _, _, line in differences(read_config(path), config) if name.startswith(OUTPUT_FIELDS)
        ]
        if differing:
            raise InputError(
                f'--workdir={path}: holds a run of another network; fields that differ: {", ".join(differing)}'
            )

    from_process_0(check)


def flat_fields(config: ml_collections.ConfigDict | dict) -> dict[str, Any]:
    """Every field by its whole name, 'model.num_filters' -> 128, in the types of JSON."""
    tree = config if isinstance(config, dict) else json.loads(config.to_json_best_effort())
    return dict(_fields(tree))


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[tuple[str, Any, Any, str]]:
    """(name, old value, new value, 'name: old -> new') of every field in which two configs differ."""
    had, wanted = ADDED_FIELDS | flat_fields(old), ADDED_FIELDS | flat_fields(new)
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


def _binds(name: str, old: Any, new: Any) -> bool:
    """Whether a run cannot be resumed with this field changed."""
    if name == 'num_epochs':  # compared with the epochs that are done
        return False
    if name == 'num_seeds':  # seeds are independent of each other, but a single one has another layout of files
        return 1 in (old, new)
    return name not in FREE_FIELDS and not name.startswith(FREE_SECTIONS)


def _fields(tree: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _fields(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _as_json(config: ml_collections.ConfigDict) -> str:
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2) + '\n'


def read_json(path: Path) -> dict:
    """The object in a JSON file of a run. Raises RunError where it cannot be read or is damaged."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError('not an object')
        return content
    except OSError as error:
        raise RunError(f'{path} cannot be read: {os_reason(error)}') from error
    except ValueError as error:
        raise RunError(f'{path} is damaged: {error}') from error


def _replace(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise RunError(f'{path} not written: {os_reason(error)}') from error
