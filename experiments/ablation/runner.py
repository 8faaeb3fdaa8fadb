"""Trains the runs of a grid one after another, in this process."""

from __future__ import annotations

import contextlib
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_collections

from experiments.ablation.records import make_record
from pnn_jax.errors import StoppedEarly, one_line


class Task(NamedTuple):
    """A run that has no record yet.

    Attributes:
        arm, seed: of the run.
        registration: sha256 of the grid's file.
        config: of the run, complete.
        workdir: where it trains. If a run was interrupted there, it is resumed. It stays when the run is done.
        record: the file to write when it is done.
    """

    arm: str
    seed: int
    registration: str
    config: ml_collections.ConfigDict
    workdir: Path
    record: Path

    @property
    def name(self) -> str:
        return f'{self.arm}_seed{self.seed}'


class Outcome(NamedTuple):
    """How a run ended: correct test examples after the last epoch, or one line that says why it failed."""

    name: str
    correct: int = 0
    count: int = 0
    seconds: float = 0.0
    failure: str = ''


class Listener(Protocol):
    """Is told about every run."""

    def begin(self, name: str) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


def run_here(tasks: Iterable[Task], dataset, should_stop: Callable[[], str], listener: Listener) -> None:
    """Trains all tasks in order. A run that fails does not stop the others.

    Raises:
        StoppedEarly: `should_stop` gave a reason. The run in progress has been saved.
    """
    for task in tasks:
        if reason := should_stop():
            raise StoppedEarly(reason)
        listener.begin(task.name)
        listener.end(train(task, dataset, should_stop))


def train(task: Task, dataset, should_stop: Callable[[], str]) -> Outcome:
    """Trains one run to its end, or resumes it, and writes its record.

    Any failure is returned, not raised, and its traceback is in `error.txt` in the workdir.

    Raises:
        StoppedEarly: `should_stop` gave a reason. The run has been saved.
    """
    import jax

    from experiments.ablation.final import measure_final
    from pnn_jax.train import train_and_evaluate

    began = time.monotonic()
    error_file = task.workdir / 'error.txt'
    try:
        # The run logs to its workdir; the screen belongs to the table of the grid.
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
            train_and_evaluate(task.config, str(task.workdir), should_stop=should_stop, dataset=dataset)
        measured = measure_final(task.workdir, dataset)
        record = make_record(task.arm, task.seed, task.registration, task.config, task.workdir, measured)
        record.write(task.record)
    except StoppedEarly:
        raise
    except Exception as error:  # noqa: BLE001  (whatever it is, the other runs of the grid can still be trained)
        with contextlib.suppress(OSError):
            task.workdir.mkdir(parents=True, exist_ok=True)
            error_file.write_text(traceback.format_exc())
        return Outcome(task.name, failure=one_line(error))
    finally:
        # The next arm compiles other programs, and those of this one would only take memory.
        jax.clear_caches()
        gc.collect()
    with contextlib.suppress(OSError):
        error_file.unlink(missing_ok=True)
    last = record.correct[-1]
    return Outcome(task.name, int(last.sum()), last.size, time.monotonic() - began)
