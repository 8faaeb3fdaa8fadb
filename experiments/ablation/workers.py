"""Trains several runs at once, each in a process of one thread on a core of its own.

Small networks do not get faster with a second thread, so N processes of one thread train N times as many runs.

The parent gives a run to each worker and waits for its outcome. Both ends of the connection notice when the other
process is gone, so that no file or lock has to be cleaned up:

- a worker that dies (killed, out of memory) fails the run that it was training; the next call resumes that run;
- workers end as soon as the parent dies. What is on disk is complete at any time.
- to stop, the parent sends SIGTERM to each worker, which saves its run and ends.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from experiments.ablation import shared_data
from experiments.ablation.runner import Listener, Outcome, Runner, Task
from experiments.command import STOPPED_EARLY
from experiments.processes import start_process
from pnn_jax.data import Dataset
from pnn_jax.errors import StoppedEarly
from pnn_jax.program_cache import use_program_cache
from pnn_jax.runtime import CPU_XLA_FLAGS, HUGE_PAGES, SafeStream, quieten_logs, stop_conditions

POLL_SECONDS = 0.2  # how often the parent asks whether to stop
STOP_SECONDS = 10  # how long a worker without a run may take to end


class Stopped(NamedTuple):
    """What a worker answers when it was asked to stop; its run is saved."""

    reason: str


class Worker:
    """A worker process, seen from the parent. It trains one run at a time."""

    def __init__(self, number: int, jobs: int, stored: Dataset, folder: Path):
        """Starts the process.

        Args:
            number: of the worker, from 0; decides its cores.
            jobs: how many workers there are.
            stored: from `shared_data.store`.
            folder: of the grid, for the worker's log.
        """
        self.process, self.connection = start_process(
            serve, cores_of(number, jobs), stored, folder / f'worker{number}.log', environment=environment()
        )
        self.number = number
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # where the process is gone, `outcome` says so
            self.connection.send(task)

    def outcome(self) -> Outcome | Stopped:
        """How the run ended, once the connection is ready."""
        name, self.task = self.task.name, None
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return _death(name, self.process.exitcode)

    def stop(self) -> None:
        """Asks the worker to save its run and end."""
        self.process.terminate()

    def close(self) -> None:
        """Ends a worker that has no run."""
        self.connection.close()
        self.process.join(STOP_SECONDS)
        self.process.kill()


def _death(name: str, code: int) -> Outcome | Stopped:
    if code == STOPPED_EARLY:
        return Stopped('the worker was asked to stop before it had begun')
    how = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'
    hint = ' (out of memory?)' if code == -signal.SIGKILL else ''
    return Outcome(name, failure=f'its process {how}{hint}; run the same command again to resume it')


def run_in_workers(
    tasks: Iterable[Task],
    jobs: int,
    start: Callable[[int], Worker],
    should_stop: Callable[[], str],
    listener: Listener,
) -> None:
    """Trains all tasks, `jobs` at a time. A run that fails does not stop the others.

    Args:
        start: makes the worker with a number from 0 to jobs - 1.

    Raises:
        StoppedEarly: `should_stop` gave a reason. The runs in progress have been saved.
    """
    waiting = collections.deque(tasks)
    workers: dict[int, Worker] = {}
    reason = ''
    try:
        while True:
            busy = {worker.connection: worker for worker in workers.values() if worker.task}
            if not reason and (reason := should_stop()):
                waiting.clear()
                for worker in busy.values():
                    worker.stop()
            for number in range(jobs):
                worker = workers.get(number)
                if waiting and (worker is None or worker.task is None):
                    worker = workers[number] = worker or start(number)
                    task = waiting.popleft()
                    worker.give(task)
                    listener.begin(task.name)
                    busy[worker.connection] = worker
            if not busy:
                break
            for ready in connections.wait(list(busy), timeout=POLL_SECONDS):
                _take(busy[ready], workers, bool(reason), listener)
    finally:
        for worker in workers.values():
            worker.close()
    if reason:
        raise StoppedEarly(reason)


def _take(worker: Worker, workers: dict[int, Worker], stopping: bool, listener: Listener) -> None:
    """Passes the outcome of a worker's run on; a worker that is gone leaves its place to a new one."""
    name = worker.task.name
    outcome = worker.outcome()
    if isinstance(outcome, Stopped):
        workers.pop(worker.number).close()
        if stopping:
            return
        outcome = Outcome(
            name, failure=f'stopped from outside ({outcome.reason}); run the same command again to resume'
        )
    elif not worker.process.is_alive():
        workers.pop(worker.number).close()
    listener.end(outcome)


def cores_of(number: int, jobs: int) -> list[int]:
    """The cores of one of `jobs` workers, of those that this process may use; [] where the system cannot pin."""
    if not hasattr(os, 'sched_getaffinity'):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores) :: jobs]


def environment() -> dict[str, str]:
    """Variables of a worker, which libraries read when they are loaded: one thread, huge pages."""
    one_thread = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
    libraries = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    return {
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", CPU_XLA_FLAGS)} {one_thread}',
        'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', HUGE_PAGES),
        **dict.fromkeys(libraries, '1'),
    }


def serve(connection: Connection, cores: list[int], stored: Dataset, log: Path) -> None:
    """What a worker process does: trains the runs that it is given until the connection is closed."""
    os.setsid()  # Ctrl-C in the terminal reaches the parent alone, which then asks every worker to stop, once
    if cores:
        os.sched_setaffinity(0, cores)
    _redirect_output(log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    should_stop = stop_conditions(None)
    quieten_logs()
    use_program_cache()
    runner = Runner(shared_data.load(stored), should_stop)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        print(f'process {os.getpid()}: {task.name}', file=sys.stderr, flush=True)  # in the log, before what follows it
        try:
            answer = runner.train(task)
        except StoppedEarly as reason:
            connection.send(Stopped(str(reason)))
            return
        connection.send(answer)


def _redirect_output(log: Path) -> None:
    """Sends standard error to a file and drops standard output: the screen belongs to the parent."""
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            with open(log, 'a') as file:
                os.dup2(file.fileno(), 2)
        except OSError:
            os.dup2(nowhere.fileno(), 2)
    sys.stderr = SafeStream(sys.stderr, owned=True)  # a full disk behind the log must not end the worker


def _end_with_parent() -> None:
    connections.wait([multiprocessing.parent_process().sentinel])
    os._exit(STOPPED_EARLY)
