"""Everything that is to be measured on a GPU or TPU, in calls of ten minutes.

python -m experiments.accelerator --plan                              what each call would do; runs nothing
python -m experiments.accelerator --output=DIR                        the first call, and every further one
python -m experiments.accelerator --output=DIR --data_path=DATA       at the end, train a grid too

A call runs the stages that have not succeeded yet, one after another, and stops before its time is over. Each stage
writes DIR/<stage>.log, and most of them DIR/<stage>.json; DIR/stages.json says which are done, and on which device. A
stage that fails does not stop the others; the next call tries it again.

Needs an accelerator, PyTorch for the comparison (pip install -e '.[verify]'), and a checkout for the golden numbers.

Exit codes: 0 all stages are done; 1 some failed, and nothing else is left; 2 wrong input; 75 call again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.accelerator.stages import Stage, calls, stages
from experiments.command import Parser, exit_code, make_folder, whole_number, write_file
from pnn_jax.errors import InputError, StoppedEarly

GRACE = 30  # seconds that a stage gets to save and end; they are part of a call's time
UNFINISHED = 'not done in the time of a call'


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    found = stages(options.output, options.golden, options.grid, options.data_path)
    if options.plan:
        print_plan(found, options.time_budget / 60)
        return 0
    device = accelerator()
    make_folder(options.output, '--output')
    return run_stages(found, options.output, device, time.monotonic() + options.time_budget)


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.accelerator', __doc__)
    parser.add_argument('--plan', action='store_true', help='print what each call would do')
    parser.add_path('--output', default='runs/accelerator', help='folder for logs and results')
    parser.add_argument('--time_budget', type=whole_number(300), default=570, help='seconds that a call may take')
    parser.add_path('--golden', default='tests/data', help='golden file of PyTorch, or a folder of them')
    parser.add_argument('--grid', default='audit', help='the grid to train at the end')
    parser.add_path('--data_path', help='its data; without it no grid is trained')
    return parser.parse_args(argv)


def print_plan(found: Sequence[Stage], minutes: float) -> None:
    for number, planned in enumerate(calls(found, minutes), start=1):
        print(f'call {number}:')
        for stage in planned:
            print(f'  {stage.name:18} {stage.minutes:3g} min  {stage.what}')


def accelerator() -> str:
    """The kind of the accelerator, asked in a process that ends, because memory of a GPU is taken by the first to ask.

    Raises:
        InputError: there is none.
    """
    code = 'import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep=":")'
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    platform, _, kind = answer.stdout.strip().partition(':')
    if answer.returncode or platform == 'cpu':
        raise InputError('jax finds no GPU or TPU here; --plan shows what would run')
    return kind


def run_stages(found: Sequence[Stage], folder: Path, device: str, end: float) -> int:
    """Runs the stages that have not succeeded, those that failed before last, until time.monotonic() is near `end`.

    Returns:
        The exit code.

    Raises:
        InputError: the folder's stages.json cannot be read, or is of another device.
        StoppedEarly: stages are left for another call.
    """
    file = folder / 'stages.json'
    progress = read_progress(file, device)
    left = [stage for stage in found if stage.name not in progress.seconds]
    first = True  # a stage that had a whole call and did not finish has failed
    for stage in sorted(left, key=lambda stage: stage.name in progress.failed):
        seconds = end - time.monotonic() - GRACE
        if seconds < 60 * stage.minutes:
            raise StoppedEarly(f'{stage.name} needs another call')
        print(f'{stage.name}: {stage.what}', flush=True)
        began = time.monotonic()
        failure = run(stage, folder / f'{stage.name}.log', seconds)
        if failure == UNFINISHED and (stage.resumes or not first):
            raise StoppedEarly(f'{stage.name} needs another call')
        first = False
        if failure:
            print(f'  failed: {failure}')
            progress.failed[stage.name] = failure
        else:
            progress.failed.pop(stage.name, None)
            progress.seconds[stage.name] = round(time.monotonic() - began, 1)
        write_file(file, json.dumps(dataclasses.asdict(progress), indent=1) + '\n')
    if progress.failed:
        print(f'failed: {", ".join(progress.failed)}', file=sys.stderr)
    return 1 if progress.failed else 0


@dataclasses.dataclass
class Progress:
    """What stages.json holds.

    Attributes:
        device: the kind of the accelerator.
        seconds: stage that succeeded -> how long it took.
        failed: stage that failed -> why.
    """

    device: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def read_progress(file: Path, device: str) -> Progress:
    """The progress that a file holds, or that of a first call.

    Raises:
        InputError: the file cannot be read, or is of another device.
    """
    try:
        progress = Progress(**json.loads(file.read_text()))
    except FileNotFoundError:
        return Progress(device)
    except (OSError, ValueError, TypeError):
        raise InputError(f'{file}: is not a file of this command') from None
    if progress.device != device:
        raise InputError(f'{file}: was measured on {progress.device}, and this is {device}; use another --output')
    return progress


def run(stage: Stage, log: Path, seconds: float) -> str:
    """Runs a stage for at most `seconds`; returns why it failed, or ''."""
    with log.open('w') as file:
        process = subprocess.Popen(
            stage.command, stdout=file, stderr=subprocess.STDOUT, env=environment(stage.environment)
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return UNFINISHED
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
                process.kill()
    return f'exit code {code}: {last_line(log)}' if code else ''


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """PyTorch and JAX share the device, so neither may take all of its memory at its start."""
    return os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'} | changes


def last_line(log: Path) -> str:
    lines = log.read_text(errors='replace').split('\n')
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), 'no output')


if __name__ == '__main__':
    sys.exit(exit_code(main))
