"""Does a grid that Slurm runs, stops and kills end with exactly the results of an undisturbed one?

python -m experiments.schedulers.slurm_trial [--kills=6] [--out=runs/slurm]

Needs root and Debian's slurm-wlm and munge. Trains the grid `smoke` once without Slurm. Then it starts a Slurm of one
node (`slurm_cluster.sh`), submits `grid.sbatch` as an array job with a time limit of a few minutes, and disturbs the
tasks at random moments: their processes get SIGKILL, their node fails, or a more urgent job takes their place. A task
that was killed is requeued by hand, as a user would do; all others are requeued by Slurm or by `grid.sbatch` itself. At
the end, every record is compared with the undisturbed one, and Slurm is taken down. Prints Markdown. Exit code 1 if
anything differs. With --minutes=2 --kills=0, the signal before the time limit is the only disturbance, on a machine so
slow that a task takes longer than a minute.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.ablation.records import Record, read_record
from experiments.command import Parser, empty_folder, exit_code, whole_number
from pnn_jax.errors import InputError, RunError

HERE = Path(__file__).parent
GRID, ARMS = 'smoke', 'no_noise,trained_masks'
PARTS = 2
TIMINGS = ('seconds', 'images_per_second')
POLL_SECONDS = 0.5
# Slurm lets a requeued task wait for two minutes, so that its node can end what is left of it. This is enough here.
RESTART_SECONDS = 20
DEADLINE_SECONDS = 3600
HOPELESS_STATES = ('CANCELLED', 'OUT_OF_MEMORY', 'BOOT_FAIL', 'DEADLINE')
NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol', 'srun')


def call(*command: str | os.PathLike, **environment: str) -> str:
    """Runs a command and returns what it printed.

    Raises:
        RunError: the command failed.
    """
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | environment, cwd=HERE.parents[1]
    )
    if done.returncode != 0:
        raise RunError(f'{" ".join(map(str, command))}: exit code {done.returncode}: {done.stderr.strip()[-500:]}')
    return done.stdout


class Task(NamedTuple):
    """A task of an array job, as Slurm sees it.

    Attributes:
        name: 'ARRAY_PART'.
        job: the id of the task's own job. Where Slurm takes names, use the name: the id of the last task is that of the
            whole array too.
        part: its number in the array.
        state: 'PENDING', 'RUNNING', 'COMPLETED', 'FAILED', ...
        restarts: how often it was started again.
        exit_code: of the batch script.
    """

    name: str
    job: str
    part: int
    state: str
    restarts: int
    exit_code: int


def read_tasks(array: str) -> list[Task]:
    """All tasks of an array job, by number."""
    tasks = []
    for line in call('scontrol', '--oneliner', 'show', 'job', array).splitlines():
        fields = dict(re.findall(r'(\w+)=(\S*)', line))
        if fields.get('ArrayTaskId', '').isdecimal():  # a range stands for tasks that were never started
            code = int(fields['ExitCode'].split(':')[0])
            part, restarts = int(fields['ArrayTaskId']), int(fields['Restarts'])
            tasks.append(Task(f'{array}_{part}', fields['JobId'], part, fields['JobState'], restarts, code))
    return sorted(tasks, key=lambda task: task.part)


# --- disturbances: each takes a running task, and says what it did ----------------------------------------------------


def kill_processes(task: Task) -> str:
    for line in call('scontrol', 'listpids', task.job).splitlines()[1:]:
        process, _, step, *_ = line.split()
        if step != 'batch':  # the shell of grid.sbatch
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
    return 'SIGKILL to its processes'


def fail_node(task: Task) -> str:
    del task  # all tasks run on the one node
    node = os.uname().nodename.split('.')[0]
    call('scontrol', 'update', f'nodename={node}', 'state=down', 'reason=trial')
    began = time.monotonic()
    while _node_has_tasks() and time.monotonic() - began < 120:
        time.sleep(POLL_SECONDS)  # a node that has failed comes back empty
    call('scontrol', 'update', f'nodename={node}', 'state=resume')
    return f'its node fails and comes back after {time.monotonic() - began:.0f} s'


def _node_has_tasks() -> bool:
    return subprocess.run(['scontrol', 'listpids'], capture_output=True).returncode == 0


def preempt(task: Task) -> str:
    call('scontrol', 'requeue', task.name)
    return 'preempted'


DISTURBANCES = (kill_processes, fail_node, preempt)


class Trial:
    """One array job that is watched and disturbed until all of its tasks are done."""

    def __init__(self, array: str, kills: int, pause: float, rng: random.Random):
        self.array, self.kills, self.pause, self.rng = array, kills, pause, rng
        self.began = time.monotonic()
        self.events: list[tuple[float, int, str]] = []
        self.known: dict[int, Task] = {}
        self.changed: dict[int, float] = {}  # when the state of a task was seen to change
        self.next_kill = self.began + rng.uniform(0, 2 * pause)

    def note(self, part: int, what: str) -> None:
        self.events.append((time.monotonic() - self.began, part, what))
        print(f'{self.events[-1][0]:6.1f} s  part {part}: {what}', flush=True)

    def run(self) -> None:
        """Watches until every task is done.

        Raises:
            RunError: a task failed although nobody killed it, or the deadline has passed.
        """
        while len(self.known) < PARTS or any(task.state != 'COMPLETED' for task in self.known.values()):
            if time.monotonic() - self.began > DEADLINE_SECONDS:
                raise RunError(f'after {DEADLINE_SECONDS} s: {list(self.known.values())}')
            for task in read_tasks(self.array):
                self.watch(task)
            self.disturb()
            time.sleep(POLL_SECONDS)

    def watch(self, task: Task) -> None:
        """Notes what has changed, and requeues a task that was killed."""
        before = self.known.get(task.part)
        if before is None or (task.state, task.restarts) != (before.state, before.restarts):
            self.note(task.part, f'{task.state.lower()}, start {task.restarts + 1}')
            self.changed[task.part] = time.monotonic()
        self.known[task.part] = task
        if task.state in HOPELESS_STATES:
            raise RunError(f'part {task.part} is {task.state}')
        if task.state == 'FAILED' and task.exit_code != 137:  # 128 + SIGKILL
            raise RunError(f'part {task.part} failed with exit code {task.exit_code}')
        if task.state in ('FAILED', 'TIMEOUT'):  # killed; saving took longer than Slurm's notice
            call('scontrol', 'requeue', task.name)
            self.note(task.part, 'requeued by hand')
        if task.state == 'PENDING' and time.monotonic() - self.changed[task.part] > RESTART_SECONDS:
            with contextlib.suppress(RunError):  # it has just been started
                call('scontrol', 'update', f'jobid={task.name}', 'starttime=now')

    def disturb(self) -> None:
        """When the time has come: picks a running task and a way to disturb it."""
        running = [task for task in self.known.values() if task.state == 'RUNNING']
        if self.kills and running and time.monotonic() > self.next_kill:
            task, disturbance = self.rng.choice(running), DISTURBANCES[self.kills % len(DISTURBANCES)]
            self.note(task.part, disturbance(task))
            self.kills -= 1
            self.next_kill = time.monotonic() + self.rng.uniform(0, 2 * self.pause)


def reproducible(record: Record) -> dict[str, Any]:
    """Everything in a record but its timings and the commit; the digest of the code stays."""
    without_timings = lambda values: {name: value for name, value in values.items() if name not in TIMINGS}
    return record._asdict() | {
        'summary': without_timings(record.summary) | {'code': record.code},
        'history': [without_timings(line) for line in record.history],
        'correct': (np.packbits(record.correct).tobytes(), record.correct.shape),
    }


def comparison(undisturbed: Path, disturbed: Path) -> tuple[list[str], bool]:
    """The lines of a table, one for each run, and whether all runs are equal."""
    lines = [
        '| run | correct, epoch by epoch | the same under Slurm | all outcomes, bit for bit |',
        '|---|---|---|---|',
    ]
    equal = True
    for path in sorted(undisturbed.glob('*.json')):
        expected, found = read_record(path), read_record(disturbed / path.name)
        same = reproducible(expected) == reproducible(found)
        equal &= same
        counts = [', '.join(str(int(epoch.sum())) for epoch in record.correct) for record in (expected, found)]
        lines.append(f'| `{path.stem}` | {counts[0]} | {counts[1]} | {"same" if same else "DIFFERENT"} |')
    return lines, equal


def submit(shared: Path, minutes: int, time_budget: float | None) -> str:
    """Submits the array job and returns its id."""
    command = ['sbatch', '--parsable', f'--array=0-{PARTS - 1}', f'--time={minutes}', '--signal=TERM@60']
    logs = shared / 'part-%a.log'
    arguments = [str(shared), str(PARTS), f'--grid={GRID}', f'--arms={ARMS}']
    if time_budget is not None:
        arguments.append(f'--time_budget={time_budget:g}')
    return call(*command, f'--output={logs}', HERE / 'grid.sbatch', *arguments, PYTHON=sys.executable).strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser('experiments.schedulers.slurm_trial', __doc__)
    parser.add_argument('--kills', type=whole_number(0), default=6, help='how often a task is disturbed')
    parser.add_argument('--pause', type=float, default=30, help='seconds between two disturbances, on average')
    parser.add_argument('--minutes', type=whole_number(2), default=4, help='time limit of a task')
    parser.add_argument('--time_budget', type=float, help='seconds after which a task saves and stops by itself')
    parser.add_argument('--seed', type=int, default=0, help='decides the moments')
    parser.add_path(
        '--out', default='runs/slurm', help='folder for everything; keeps the undisturbed grid for the next trial'
    )
    options = parser.parse_args(argv)
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise InputError(f'{missing[0]} is not installed; on Debian: apt-get install slurm-wlm munge')
    undisturbed, cluster = options.out / 'undisturbed', options.out / 'slurm'
    shared = empty_folder(options.out / 'shared', '--out')
    folders = [f'--output={undisturbed}/runs', f'--results={undisturbed}/results']
    call(sys.executable, '-m', 'experiments.ablation', f'--grid={GRID}', f'--arms={ARMS}', *folders)

    os.environ['SLURM_CONF'] = str(cluster / 'slurm.conf')
    try:
        call(HERE / 'slurm_cluster.sh', 'up', cluster)
        print(call('sbatch', '--version').strip(), flush=True)
        array = submit(shared, options.minutes, options.time_budget)
        trial = Trial(array, options.kills, options.pause, random.Random(options.seed))
        trial.run()
    finally:
        call(HERE / 'slurm_cluster.sh', 'down', cluster)

    lines, equal = comparison(undisturbed / 'results' / GRID, shared / 'results' / GRID)
    stopped = Counter(re.findall('stopped: ([^;]+)', ''.join(log.read_text() for log in shared.glob('*.log'))))
    print('\nStopped on request, with its state saved: ' + ', '.join(f'{why} ({n}x)' for why, n in stopped.items()))
    print('\n| second | part | what happened |\n|---|---|---|')
    print('\n'.join(f'| {when:.1f} | {part} | {what} |' for when, part, what in trial.events))
    print('\n' + '\n'.join(lines))
    return 0 if equal else 1


if __name__ == '__main__':
    sys.exit(exit_code(main))
