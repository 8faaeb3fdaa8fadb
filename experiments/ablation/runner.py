"""Trains the runs of a grid one after another, in this process."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import ml_collections

from experiments.ablation.records import Record, make_record
from pnn_jax.errors import DivergedError, InputError, StoppedEarly, one_line

if TYPE_CHECKING:
    from pnn_jax.trainer import Trainer


class Task(NamedTuple):
    """A run that has no record yet.

    Attributes:
        arm, seed: of the run.
        registration: sha256 of the grid's file.
        config: of the run, complete.
        workdir: where it trains. If a run was interrupted there, it is resumed. It stays when the run is done.
        record: the file to write when it is done.
        mixed_code: go on with, or take the result of, what other code has begun in the workdir.
    """

    arm: str
    seed: int
    registration: str
    config: ml_collections.ConfigDict
    workdir: Path
    record: Path
    mixed_code: bool = False

    @property
    def name(self) -> str:
        return f'{self.arm}_seed{self.seed}'


class Outcome(NamedTuple):
    """How a run ended: correct test examples after the last epoch, or one line that says why it failed.

    Attributes:
        diverged: why it diverged, in one line; such a run has a record all the same.
    """

    name: str
    correct: int = 0
    count: int = 0
    seconds: float = 0.0
    failure: str = ''
    diverged: str = ''


class Listener(Protocol):
    """Is told about every run."""

    def begin(self, name: str) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


def run_here(tasks: Iterable[Task], dataset, should_stop: Callable[[], str], listener: Listener) -> None:
    """Trains all tasks in order. A run that fails does not stop the others.

    Raises:
        StoppedEarly: `should_stop` gave a reason. The run in progress has been saved.
    """
    runner = Runner(dataset, should_stop)
    for task in tasks:
        if reason := should_stop():
            raise StoppedEarly(reason)
        listener.begin(task.name)
        listener.end(runner.train(task))


class Runner:
    """Trains runs in this process. Runs of one arm share their compiled programs.

    Args:
        dataset: of the grid.
        should_stop: returns a reason to stop, or ''.
    """

    def __init__(self, dataset, should_stop: Callable[[], str]):
        self.dataset, self.should_stop = dataset, should_stop
        self._trainers: dict[str, Trainer] = {}

    def train(self, task: Task) -> Outcome:
        """Trains one run to its end, or resumes it, and writes its record.

        Any failure is returned, not raised, and its traceback is in `error.txt` in the workdir.

        Raises:
            StoppedEarly: `should_stop` gave a reason. The run has been saved.
        """
        began = time.monotonic()
        error_file = task.workdir / 'error.txt'
        try:
            # The run logs to its workdir; the screen belongs to the table of the grid.
            with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
                record = self._record_of(task)
            record.write(task.record)
        except StoppedEarly:
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, the other runs of the grid can still be trained)
            self._trainers.pop(task.arm, None)
            with contextlib.suppress(OSError):
                task.workdir.mkdir(parents=True, exist_ok=True)
                error_file.write_text(traceback.format_exc())
            return Outcome(task.name, failure=one_line(error))
        with contextlib.suppress(OSError):
            error_file.unlink(missing_ok=True)
        last = record.correct[-1]
        seconds, diverged = time.monotonic() - began, record.summary.get('diverged', '')
        return Outcome(task.name, int(last.sum()), last.size, seconds, diverged=diverged)

    def _record_of(self, task: Task) -> Record:
        """Trains a run. One that diverges has a record too: without it, its arm would look better than it is."""
        from experiments.ablation.diverged import diverged_record
        from experiments.ablation.final import measure_final
        from pnn_jax.train import train_and_evaluate

        if not task.mixed_code:
            check_begun_by_this_code(task.workdir)
        trainer = self._trainer_of(task)
        try:
            train_and_evaluate(task.config, task.workdir, should_stop=self.should_stop, trainer=trainer)
        except DivergedError as error:
            return diverged_record(task, trainer, self.dataset.test.labels, error)
        measured = measure_final(task.workdir, self.dataset, trainer)
        return make_record(task.arm, task.seed, task.registration, task.config, task.workdir, measured)

    def _trainer_of(self, task: Task) -> Trainer:
        from pnn_jax.train import create_trainer

        if task.arm not in self._trainers:
            self._trainers[task.arm] = create_trainer(task.config, self.dataset)
        return self._trainers[task.arm]


def check_begun_by_this_code(workdir: Path) -> None:
    """Refuses a workdir in which other code, versions or devices have trained: no report would take its record.

    Raises:
        InputError: says what to do.
    """
    from pnn_jax.run.checkpoints import Checkpointer
    from pnn_jax.run.result import circumstances
    from pnn_jax.run.workdir import read_json

    here = circumstances()
    path = workdir / 'result.json'
    if path.exists():  # only its code must be the same: it was trained in one piece, or is of no known code
        result = read_json(path)
        same = not result.get('resumed_from') and result['code']['sha256'] == here['code']
    else:
        with Checkpointer(workdir / 'checkpoints', read_only=True) as checkpointer:
            meta = checkpointer.latest_meta()
        same = meta is None or meta.get('computed_by') == [here]
    if not same:
        raise InputError(
            f'{workdir}: was trained by other code, versions or devices, so that its record would be refused; move it '
            'away to train it again, or accept it with --allow_mixed_code'
        )
