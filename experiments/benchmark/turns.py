"""Processes that measure one side each and take turns, so that other load on the machine affects both sides alike."""

from __future__ import annotations

import dataclasses
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from experiments.benchmark.cases import Case
from experiments.benchmark.sides import make_side
from experiments.processes import start_process
from pnn_jax.errors import RunError
from pnn_jax.runtime import CPU_XLA_FLAGS, HUGE_PAGES

SECONDS_PER_TURN = 1.0
# The threads of OpenMP, which PyTorch uses, keep a core busy for 0.2 s after their last work.
SECONDS_BETWEEN_TURNS = 0.4

# What `pnn_jax.main` sets unless its user has; and jax must leave memory of a GPU to PyTorch.
ENTRY_POINT = {
    'XLA_FLAGS': CPU_XLA_FLAGS,
    'GLIBC_TUNABLES': HUGE_PAGES,
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
}


def gpus(count: int) -> str:
    """CUDA_VISIBLE_DEVICES for the first `count` GPUs of those that the user lets us see."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    return ','.join(map(str, range(count)) if visible is None else visible.split(',')[:count])


@dataclasses.dataclass
class Measurement:
    """What one side needed.

    Attributes:
        machine: in words.
        images: per step.
        first_step_seconds: from the start of the process to the end of the first step, with imports and compilation.
        seconds, cpu_seconds: per step, medians over turns.
        peak_memory_mb: of the process; on accelerators what the framework allocated there.
    """

    machine: str
    images: int
    first_step_seconds: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


def serve(connection: Connection, name: str, case: Case) -> None:
    """What a measuring process does: builds its side, then takes turns of as many steps as it is told; 0 ends it."""
    began = time.perf_counter()
    side = make_side(name, case)
    side.step()
    if name != 'ours' and 'jax' in sys.modules:  # something imports it, and it would count as PyTorch's memory
        raise RunError(f'{name}: its process has imported jax')
    connection.send((side.machine, side.images, time.perf_counter() - began))
    while steps := connection.recv():
        time.sleep(SECONDS_BETWEEN_TURNS)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            side.step()
        connection.send(((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps))
    on_accelerator = side.accelerator_peak()
    scale = 1 if sys.platform == 'darwin' else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    connection.send((resident if on_accelerator is None else on_accelerator) / 2**20)


class Process:
    """A process that measures one side of a case, seen from the parent."""

    def __init__(self, name: str, case: Case):
        self.what = f'{name}, {case}'
        # Variables that the user has set stay as they are. PyTorch runs as it is installed.
        variables = {key: value for key, value in ENTRY_POINT.items() if name == 'ours' and key not in os.environ}
        variables['CUDA_VISIBLE_DEVICES'] = gpus(case.devices or 1)  # one is compared with one
        self.process, self.connection = start_process(serve, name, case, environment=variables)
        self.measurement = Measurement(*self.receive())
        self.turns: list[tuple[float, float]] = []

    def receive(self):
        try:
            return self.connection.recv()
        except EOFError as error:
            self.process.join()
            raise RunError(f'{self.what}: its process ended with exit code {self.process.exitcode}') from error

    def turn(self, steps: int) -> float:
        """Runs `steps` steps; returns the seconds of one."""
        self.connection.send(steps)
        self.turns.append(self.receive())
        return self.turns[-1][0]

    def finish(self) -> Measurement:
        self.connection.send(0)
        result = self.measurement
        result.seconds, result.cpu_seconds = map(statistics.median, zip(*self.turns, strict=True))
        result.peak_memory_mb = self.receive()
        self.process.join()
        return result


def measure(names: Sequence[str], case: Case, turns: int) -> tuple[dict[str, Measurement], list[str]]:
    """Measures all sides of a case in turn. One that fails does not stop the others.

    The first turn of each is not counted: it warms up, and its time says how many steps a turn should have.

    Returns:
        (name -> measurement, a line for each side that failed).
    """
    failures: list[str] = []
    processes: dict[str, Process] = {}

    def attempt(name: str, action: Callable, *arguments):
        """The value of the action; None, and no process of that name any more, where it failed."""
        try:
            return action(*arguments)
        except RunError as error:
            failures.append(str(error))
            processes.pop(name, None)
            return None

    for name in names:
        if process := attempt(name, Process, name, case):
            processes[name] = process
    steps = {}
    for name, process in list(processes.items()):
        if seconds := attempt(name, process.turn, 1):
            steps[name] = max(1, int(SECONDS_PER_TURN / seconds))
            process.turns.clear()
    for _ in range(turns):
        for name, process in list(processes.items()):
            attempt(name, process.turn, steps[name])
    found = {name: attempt(name, process.finish) for name, process in list(processes.items())}
    return {name: one for name, one in found.items() if one is not None}, failures
