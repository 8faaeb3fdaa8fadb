"""Checkpoints that are verified when read: the latest, the best and a few older ones, and the noise masks once.

Orbax writes and reads the files; this module adds what it leaves out. A sha256 digest over every byte of the state and
over its description is stored with each checkpoint and compared at restore. A checkpoint never overwrites another:
each save makes a new directory `<sequence>_step_<step>`, complete as soon as it bears that name, and older ones are
deleted only afterwards. Only process 0 touches the disk, and what it read is broadcast, so that hosts need no common
file system.

    checkpoints/000007_step_1250/state   a flat dictionary: name of the leaf -> array
    checkpoints/000007_step_1250/meta    {'record': {step, accuracy, meta, state_sha256}, 'sha256': of the record}
    checkpoints/masks/                   the same for the noise masks, which never change
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from pnn_jax.errors import InputError, RunError, one_line
from pnn_jax.hosts import from_process_0

STEP_DIRECTORY = re.compile(r'(\d{6,})_step_(\d+)')
TEMPORARY = '*.orbax-checkpoint-tmp*'


class Restored(NamedTuple):
    """A verified checkpoint: `state` has the structure and the shardings of the template, the rest is as saved."""

    state: Any
    meta: dict
    step: int
    accuracy: float | None


class Summary(NamedTuple):
    """What is known of a checkpoint without restoring it. `damage` is why it cannot be used; the rest is None then."""

    name: str
    step: int | None
    accuracy: float | None
    state_sha256: str | None
    damage: str | None


class Entry(NamedTuple):
    """One checkpoint directory. A higher sequence was saved later, whatever its step."""

    sequence: int
    step: int
    path: Path


class Damaged(Exception):
    """A checkpoint that cannot be read or is not what was written; says why."""


def tree_digest(tree: Any) -> str:
    """sha256, as hexadecimal digits, over the name, type, shape and bytes of every array of a tree."""
    return _digest(_named_arrays(tree))


def has_checkpoints(directory: Path) -> bool:
    """Whether a directory holds a checkpoint, damaged or not. Noise masks alone do not count."""
    return directory.is_dir() and any(STEP_DIRECTORY.fullmatch(path.name) for path in directory.iterdir())


class Checkpointer:
    """The checkpoints of one directory.

    Every process of a run makes the same calls. `save` returns as soon as the state is copied to the host; an error of
    the writing thread is raised by the next `save`, `wait` or `close`.

    Args:
      directory: where the checkpoints are; made by the first `save`. One process at a time may save (see workdir.py).
      keep: older checkpoints to keep besides the latest and the one of the highest accuracy.
      read_only: write nothing; for looking at a run that may be in progress.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 0, read_only: bool = False):
        self._directory = Path(os.path.abspath(directory))  # orbax fails late and unclearly on a relative path
        self._keep, self._read_only = keep, read_only
        self._damaged: dict[Path, str] = {}  # why it was skipped by `restore`
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix='checkpoint')
        self._pending: Future | None = None
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix='pnn_jax'
        )
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                meta=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
            ),
            multiprocessing_options=alone,
        )

    def __enter__(self) -> 'Checkpointer':
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: dict, *, accuracy: float | None) -> None:
        """Starts writing a checkpoint. The arrays may be donated or changed as soon as this returns.

        Args:
          step: number of updates done. Saving a step again supersedes the earlier checkpoint of that step.
          state: tree of arrays, replicated where there are several devices.
          meta: what JSON can hold; returned by `restore`.
          accuracy: fraction in [0, 1] that 'best' goes by; None or a value that is not finite is never best.

        Raises:
          RunError: the save before this one failed; the checkpoints before that are untouched.
        """
        self.wait()
        if jax.process_index() != 0:
            return
        arrays = {name: np.array(array) for name, array in _named_arrays(state).items()}
        if accuracy is not None:
            accuracy = float(accuracy) if math.isfinite(accuracy) else None
        record = {'step': int(step), 'accuracy': accuracy, 'meta': meta}
        self._pending = self._writer.submit(self._write_step, arrays, json.loads(json.dumps(record)))

    def restore(self, template: Any, *, which: str | int = 'latest') -> Restored | None:
        """Reads a checkpoint and verifies every byte of it.

        A damaged one is skipped with a warning in favour of the next in order: from new to old for 'latest', from high
        to low accuracy for 'best'.

        Args:
          template: a state of the structure, shapes, types and shardings to restore to, such as a fresh one. Its number
            of devices need not be that of the saving run.
          which: 'latest', 'best' or a step.

        Returns:
          None if there is no checkpoint at all.

        Raises:
          InputError: `which` is none of these, or there are checkpoints, but none of that step.
          RunError: all checkpoints that were asked for are damaged; or they do not fit the template, and so belong to
            another configuration.
        """
        if not (which in ('latest', 'best') or isinstance(which, int)):
            raise InputError(f"which: {which!r} is not 'latest', 'best' or a step")
        self.wait()
        found = from_process_0(lambda: self._read_first_good(which))
        if found is None:
            return None
        arrays, record = found
        state = _fill(template, arrays, f'the checkpoint of step {record["step"]} in {self._directory}')
        return Restored(state, record['meta'], record['step'], record['accuracy'])

    def read(self, which: str | int = 'latest') -> tuple[dict[str, np.ndarray], dict] | None:
        """The arrays of a verified checkpoint and of its noise masks, for callers without a template.

        Returns:
          Name of the leaf -> array, and the record (step, accuracy, meta); None if there is no checkpoint at all.

        Raises:
          InputError, RunError: as `restore`; RunError also where the masks are missing, damaged or others.
        """
        self.wait()
        return from_process_0(lambda: self._read_with_masks(which))

    def latest_meta(self) -> dict | None:
        """`meta` of the latest checkpoint whose description can be read, or None; the state is not looked at."""
        self.wait()

        def read():
            for entry in self._entries()[::-1]:
                with contextlib.suppress(Damaged):
                    return self._read_record(entry.path)['meta']
            return None

        return from_process_0(read)

    def check_masks(self, expected_digest: str) -> None:
        """Raises RunError where the saved noise masks are whole and not those with the digest `expected_digest`.

        Damaged masks can be drawn again by a run that needs them (`load_masks`).
        """
        path = self._directory / 'masks'

        def check():
            with contextlib.suppress(Damaged):
                digest = self._read(path)[1]['state_sha256']
                if digest != expected_digest:
                    raise RunError(f'{path} holds other noise masks than those of the checkpoints beside it')

        from_process_0(check)

    def _read_with_masks(self, which: str | int) -> tuple[dict[str, np.ndarray], dict] | None:
        if (found := self._read_first_good(which)) is None:
            return None
        arrays, record = found
        path, expected = self._directory / 'masks', record['meta']['fixed_digest']
        if expected == _digest({}):
            return found
        try:
            masks, masks_record = self._read(path)
        except Damaged as damage:
            raise RunError(f'noise masks in {path} cannot be used: {damage}') from None
        if masks_record['state_sha256'] != expected:
            raise RunError(f'noise masks in {path} are not those that the checkpoint was trained with')
        return arrays | masks, record

    def inspect(self) -> list[Summary]:
        """Reads and verifies every checkpoint, and the noise masks if there are any, from old to new."""
        self.wait()
        summaries = []
        masks = self._directory / 'masks'
        for path in [*([masks] if masks.exists() else []), *(entry.path for entry in self._entries())]:
            try:
                _, record = self._read(path)
                summaries.append(Summary(path.name, record['step'], record['accuracy'], record['state_sha256'], None))
            except Damaged as damage:
                summaries.append(Summary(path.name, None, None, None, str(damage)))
        return summaries

    def save_masks(self, masks: Any) -> None:
        """Writes the noise masks, unless they are there already. Waits until it is done.

        Raises:
          RunError: the directory holds other masks and checkpoints that were trained with them, or the disk is full.
        """
        arrays = _named_arrays(masks)
        if jax.process_index() != 0 or not arrays:
            return
        self.wait()
        path = self._directory / 'masks'
        if path.exists():
            try:
                _, record = self._read(path)
            except Damaged as damage:
                logging.warning('noise masks in %s: %s; written again', path, damage)
            else:
                if record['state_sha256'] == _digest(arrays):
                    return
                if self._entries():
                    raise RunError(
                        f'{path} holds other noise masks, and the checkpoints beside it were trained with them'
                    )
                logging.warning('noise masks in %s are of another run that left no checkpoint; written again', path)
            _delete(path)
        try:
            self._write(path, arrays, {'step': 0, 'accuracy': None, 'meta': {}})
        except Exception as error:
            raise RunError(f'noise masks not written to {path}: {_cause(error)}') from error

    def load_masks(self, template: Any, expected_digest: str) -> Any:
        """Returns the saved noise masks if their `tree_digest` is the expected one.

        Args:
          template: masks of the structure, shapes and shardings to restore to, such as freshly drawn ones. If the files
            are damaged and these are the expected masks, they take their place, on disk too, with a warning.
          expected_digest: that of the masks the checkpoint was trained with.

        Raises:
          RunError: the masks are missing, damaged or others.
        """
        path = self._directory / 'masks'
        drawn = tree_digest(template)
        if not jax.tree.leaves(template) and drawn == expected_digest:
            return template

        def read():
            try:
                arrays, record = self._read(path)
                if record['state_sha256'] == expected_digest:
                    return arrays, record
                reason = f'sha256 {record["state_sha256"][:12]}, but {expected_digest[:12]} was expected'
            except Damaged as damage:
                reason = str(damage)
            if drawn != expected_digest:
                raise RunError(f'noise masks in {path} cannot be used: {reason}')
            logging.warning('noise masks in %s: %s; drawn again, with the expected sha256', path, reason)
            if not self._read_only:
                _delete(path)
                self.save_masks(template)
            return None

        found = from_process_0(read)
        return template if found is None else _fill(template, found[0], f'the noise masks in {path}')

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises the error of a save that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits, then frees the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._orbax.close()

    def _entries(self) -> list[Entry]:
        """Checkpoints in the order they were saved."""
        found = []
        for path in self._directory.iterdir() if self._directory.is_dir() else ():
            if match := STEP_DIRECTORY.fullmatch(path.name):
                found.append(Entry(int(match[1]), int(match[2]), path))
        return sorted(found)

    def _write_step(self, arrays: dict[str, np.ndarray], record: dict) -> None:
        """Runs in the writing thread."""
        entries = self._entries()
        sequence = entries[-1].sequence + 1 if entries else 1
        try:
            self._write(self._directory / f'{sequence:06d}_step_{record["step"]}', arrays, record)
        except Exception as error:
            left = [entry for entry in entries if entry.path not in self._damaged]
            raise RunError(
                f'checkpoint of step {record["step"]} not written to {self._directory}: {_cause(error)}; '
                + (f'the one of step {left[-1].step} is untouched' if left else 'there is no earlier one')
            ) from error
        self._prune()

    def _write(self, path: Path, arrays: dict[str, np.ndarray], record: dict) -> None:
        for leftover in self._directory.glob(TEMPORARY):  # of a process that was killed while it saved
            _delete(leftover)
        record = {**record, 'state_sha256': _digest(arrays)}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._orbax.save(
                path,
                ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    meta=ocp.args.JsonSave({'record': record, 'sha256': _record_digest(record)}),
                ),
            )
        except BaseException:
            for leftover in self._directory.glob(TEMPORARY):  # on a full disk, every byte counts
                _delete(leftover)
            raise

    def _prune(self) -> None:
        """Deletes what is neither latest, best nor one of the `keep` older ones. A newer one has just been saved."""
        newest_of_step = {entry.step: entry for entry in self._entries() if entry.path not in self._damaged}
        live = sorted(newest_of_step.values())
        kept = set(live[-1 - self._keep :])
        scored = [(accuracy, entry) for entry in live if (accuracy := self._accuracy(entry)) is not None]
        if scored:
            kept.add(max(scored, key=lambda pair: (pair[0], -pair[1].sequence))[1])  # the first to reach it
        for entry in self._entries():
            if entry not in kept:
                if entry.path in self._damaged:
                    logging.warning(
                        'deleting the damaged checkpoint %s: %s', entry.path.name, self._damaged[entry.path]
                    )
                doomed = entry.path.with_name(f'{entry.path.name}.orbax-checkpoint-tmp')
                entry.path.rename(doomed)  # half deleted, it would look damaged
                _delete(doomed)

    def _accuracy(self, entry: Entry) -> float | None:
        try:
            return self._read_record(entry.path)['accuracy']
        except Damaged as damage:
            if os.path.lexists(entry.path):  # else a run in progress has removed it
                self._damaged[entry.path] = str(damage)
            return None

    def _read_first_good(self, which: str | int) -> tuple[dict[str, np.ndarray], dict] | None:
        entries = self._entries()
        if not entries:
            return None
        order = entries[::-1]
        if which == 'best':
            pairs = [(self._accuracy(entry), entry) for entry in order]
            damaged = [entry for entry in order if entry.path in self._damaged]
            scored = [(accuracy, entry) for accuracy, entry in pairs if accuracy is not None]
            order = damaged + [entry for _, entry in sorted(scored, key=lambda pair: (-pair[0], pair[1].sequence))]
            if not order:
                if not all(os.path.lexists(entry.path) for entry in entries):  # as below
                    return self._read_first_good(which)
                raise RunError(f'no checkpoint in {self._directory} has a finite accuracy, so none of them is the best')
        elif which != 'latest':
            order = [entry for entry in order if entry.step == which]
            if not order:
                steps = ', '.join(str(step) for step in sorted({entry.step for entry in entries}))
                raise InputError(f'no checkpoint of step {which} in {self._directory}, only of {steps}')
        for entry in order:
            try:
                arrays, record = self._read(entry.path)
                if record['step'] != entry.step:
                    raise Damaged(f'it is of step {record["step"]}')
                return arrays, record
            except Damaged as damage:
                if not os.path.lexists(entry.path):  # a run in progress has saved another one and removed this
                    return self._read_first_good(which)
                self._damaged[entry.path] = str(damage)
                logging.warning('checkpoint %s is damaged and skipped: %s', entry.path, damage)
        reasons = '; '.join(f'{entry.path.name}: {self._damaged[entry.path]}' for entry in order)
        raise RunError(f'every checkpoint that could be used in {self._directory} is damaged ({reasons})')

    def _read_record(self, path: Path) -> dict:
        try:
            stored = self._orbax.restore(path, ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            record, expected = stored['record'], stored['sha256']
        except Exception as error:  # orbax raises many kinds on damaged files
            raise Damaged(f'meta cannot be read ({one_line(error)})') from error
        if _record_digest(record) != expected:
            raise Damaged('meta differs from its sha256')
        return record

    def _read(self, path: Path) -> tuple[dict[str, np.ndarray], dict]:
        record = self._read_record(path)
        try:
            arrays = self._orbax.restore(path, ocp.args.Composite(state=ocp.args.StandardRestore())).state
            digest = _digest(arrays)
        except Exception as error:
            raise Damaged(f'state cannot be read ({one_line(error)})') from error
        if digest != record['state_sha256']:
            raise Damaged('state differs from its sha256')
        return arrays, record


def _named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Name of each leaf -> its array on the host (keys of random numbers as their uint32 data)."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        if name in arrays:
            raise ValueError(f'two leaves are named {name}')
        arrays[name] = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return arrays


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _record_digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """Why a write failed. Orbax and tensorstore bury a full disk under pages of their own."""
    text = str(error)
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.strerror:
            return chain.strerror
        chain = chain.__cause__ or chain.__context__
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return f'{type(error).__name__}: {one_line(error)}'


def _fill(template: Any, arrays: dict[str, np.ndarray], what: str) -> Any:
    """Puts arrays in the places of the template's leaves, on the devices where these are."""
    fresh = _named_arrays(template)
    problems = [f'{name} is missing' for name in fresh.keys() - arrays.keys()]
    problems += [f'{name} is unknown' for name in arrays.keys() - fresh.keys()]
    for name in fresh.keys() & arrays.keys():
        had, want = arrays[name], fresh[name]
        if (had.shape, had.dtype) != (want.shape, want.dtype):
            problems.append(f'{name} is {had.dtype}{list(had.shape)} instead of {want.dtype}{list(want.shape)}')
    if problems:
        problems.sort()
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise RunError(f'{what} is of another configuration: {", ".join(problems[:3])}{more}')

    def place(leaf, array):
        if _is_key(leaf):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf), array), impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array):
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
        return array

    leaves, structure = jax.tree.flatten(template)
    placed = [place(leaf, arrays[name]) for leaf, name in zip(leaves, fresh, strict=True)]
    return jax.tree.unflatten(structure, placed)
