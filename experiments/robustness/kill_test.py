"""Does a run that was killed at any moment end with exactly the same result as an undisturbed one?

python -m experiments.robustness.kill_test [--trials=25] [--out=runs/kill_test]

Trains once without interruption. Each trial then trains the same in a new workdir, is killed with SIGKILL at a random
moment of one of five phases (start-up, steps, writing a checkpoint, evaluation, recording an epoch), and is resumed.
Everything that both runs left is compared bit by bit: parameters, statistics, optimizer state, masks, outcomes, and
metrics.jsonl without its timings. Prints a table. Exit code 1 if anything differs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app
from rich.console import Console
from rich.table import Table

from experiments.command import Parser, empty_folder, exit_code, whole_number
from pnn_jax.errors import RunError

CONFIG = 'configs/quickstart.py'
CHANGES = {
    'num_epochs': 3,
    'batch_size': 64,
    'data.image_size': 8,
    'data.augment': 'crop_flip',
    'model.num_filters': 4,
    'model.num_masks': 2,
    'model.dropout_rate': 0.2,
    'checkpoint.every_steps': 5,
    'log.tensorboard': False,
    'log.plots': False,
}
TIMINGS = ('images_per_second', 'seconds')


class Phase(NamedTuple):
    """A part of a run.

    Attributes:
        function: the function that it begins with, 'module:name'; '' for the start of the process.
        times: how often it happens in a run.
        seconds: about how long it takes.
    """

    function: str
    times: int
    seconds: float


PHASES = {
    'start-up': Phase('', 1, 4.0),
    'steps': Phase('pnn_jax.data.feeds:DeviceFeed.batches', 3, 0.5),
    'checkpoint': Phase('pnn_jax.run.checkpoints:Checkpointer._write_step', 15, 0.05),
    'evaluation': Phase('pnn_jax.trainer:Trainer.evaluate', 3, 0.1),
    'recording': Phase('pnn_jax.run.workdir:Workdir.append_epoch', 3, 0.005),
}


class Kill(NamedTuple):
    """Which signal to send, and when: `delay` seconds after a phase begins for the `count`-th time."""

    phase: str
    count: int
    delay: float
    signal: int = int(signal.SIGKILL)


def draw(phase: str, rng: random.Random) -> Kill:
    return Kill(phase, rng.randint(1, PHASES[phase].times), rng.uniform(0, PHASES[phase].seconds))


def command(workdir: Path, changes: Mapping[str, Any] = CHANGES) -> list[str]:
    """The arguments of `pnn_jax.main`."""
    return [
        f'--config={CONFIG}',
        *(f'--config.{name}={value}' for name, value in changes.items()),
        f'--workdir={workdir}',
    ]


def launch(arguments: Sequence[str], cache: Path, kill: Kill | None = None) -> subprocess.Popen:
    """Starts `python -m pnn_jax.main`.

    Args:
        arguments: of the command line.
        cache: folder of compiled programs that all runs share.
        kill: the signal that the process sends itself, unless it ends first.
    """
    start = ['-m', 'pnn_jax.main']
    if kill is not None:
        start = ['-c', 'from experiments.robustness.kill_test import run_to_be_killed as run; run()', *map(str, kill)]
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    return subprocess.Popen(
        [sys.executable, *start, *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_to_be_killed() -> None:
    """In the process to be killed: `python -m pnn_jax.main` that sends itself a signal."""
    phase, count, delay, number = sys.argv[1:5]
    sys.argv = ['pnn_jax/main.py', *sys.argv[5:]]

    from pnn_jax import main, runtime

    os.environ.setdefault('XLA_FLAGS', runtime.CPU_XLA_FLAGS)  # as main does before it imports jax
    arm(Kill(phase, int(count), float(delay), int(number)))
    app.run(main.main, flags_parser=main.parse)


def arm(kill: Kill) -> None:
    """Makes this process send itself the signal of `kill`, from a thread of its own."""
    begins = threading.Semaphore(0)
    threading.Thread(target=_send, args=(kill, begins), daemon=True).start()
    if PHASES[kill.phase].function:
        _announce(PHASES[kill.phase].function, begins)
    else:
        begins.release()


def _send(kill: Kill, begins: threading.Semaphore) -> None:
    for _ in range(kill.count):
        begins.acquire()
    time.sleep(kill.delay)
    os.kill(os.getpid(), kill.signal)


def _announce(function: str, begins: threading.Semaphore) -> None:
    """Releases `begins` at every call of the function."""
    module, _, path = function.partition(':')
    *owners, name = path.split('.')
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = getattr(owner, name)

    @functools.wraps(original)
    def announced(*args, **kwargs):
        begins.release()
        return original(*args, **kwargs)

    setattr(owner, name, announced)


def finish(workdir: Path, cache: Path) -> str:
    """Runs the command to its end, whatever is in the workdir already; returns what it printed."""
    process = launch(command(workdir), cache)
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RunError(f'the run in {workdir} ended with exit code {process.returncode}: {output[-2000:]}')
    return output


def digests(workdir: Path) -> dict[str, str]:
    """The sha256 of everything that a finished run left, by kind."""
    from pnn_jax.run.checkpoints import Checkpointer

    with Checkpointer(workdir / 'checkpoints', read_only=True) as checkpointer:
        masks, *steps = checkpointer.inspect()
    for checkpoint in (masks, *steps):
        if checkpoint.damage:
            raise RunError(f'{workdir}: {checkpoint.name} is damaged: {checkpoint.damage}')
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
    with np.load(workdir / 'outcomes.npz') as stored:
        outcomes = b''.join(stored[name].tobytes() for name in ('correct', 'labels', 'test_digest'))
    return {
        'checkpoints': ', '.join(f'{step.step} ({step.accuracy}): {step.state_sha256}' for step in steps),
        'masks': masks.state_sha256,
        'outcomes': hashlib.sha256(outcomes).hexdigest(),
        'metrics': hashlib.sha256(json.dumps(lines).encode()).hexdigest(),
    }


def describe(workdir: Path) -> str:
    """What a killed run left, in words."""
    checkpoints = list((workdir / 'checkpoints').glob('0*'))
    unfinished = sum('tmp' in path.name for path in checkpoints)
    lines = workdir / 'metrics.jsonl'
    epochs = lines.read_bytes().count(b'\n') if lines.exists() else 0
    return f'{epochs} epochs, {len(checkpoints) - unfinished} checkpoints, {unfinished} unfinished'


def kill_once(phase: str, workdir: Path, cache: Path, rng: random.Random) -> Kill:
    """Starts a run in a new workdir and kills it at a random moment of a phase."""
    while True:
        shutil.rmtree(workdir, ignore_errors=True)
        kill = draw(phase, rng)
        process = launch(command(workdir), cache, kill)
        output, _ = process.communicate()
        if process.returncode == -signal.SIGKILL:
            return kill
        if process.returncode:
            raise RunError(f'{workdir}: the run ended by itself with exit code {process.returncode}: {output[-2000:]}')
        # The run ended before its moment came. This is no trial, so another moment is drawn.


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser('experiments.robustness.kill_test', __doc__)
    parser.add_argument('--trials', type=whole_number(), default=25)
    parser.add_path('--out', default='runs/kill_test', help='folder for the runs; one of an earlier test is emptied')
    parser.add_argument('--seed', type=int, default=0, help='decides the moments')
    options = parser.parse_args(argv)
    out = empty_folder(options.out, '--out')
    rng, cache = random.Random(options.seed), out / 'cache'

    finish(out / 'uninterrupted', cache)
    expected = digests(out / 'uninterrupted')
    table = Table('trial', 'killed in', 'moment', 'left behind', *expected)
    equal = 0
    for trial in range(options.trials):
        phase = list(PHASES)[trial % len(PHASES)]
        workdir = out / f'trial_{trial + 1:02d}'
        kill = kill_once(phase, workdir, cache, rng)
        left = describe(workdir)
        finish(workdir, cache)
        found = digests(workdir)
        same = {name: 'same' if found[name] == expected[name] else 'DIFFERENT' for name in expected}
        equal += found == expected
        moment = f'{phase} {kill.count} + {1000 * kill.delay:.0f} ms'
        table.add_row(str(trial + 1), phase, moment, left, *same.values())
        print(f'trial {trial + 1}: {moment}; {left}; {"same" if found == expected else "DIFFERENT"}', flush=True)
    Console(width=140).print(table)
    print(f'{equal} of {options.trials} killed runs ended exactly as the uninterrupted one: {expected}')
    return 0 if equal == options.trials else 1


if __name__ == '__main__':
    sys.exit(exit_code(main))
