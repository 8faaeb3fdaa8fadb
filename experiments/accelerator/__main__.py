"""Everything that is to be measured on a GPU or TPU, in calls of ten minutes.

python -m experiments.accelerator --plan                              what each call would do; runs nothing
python -m experiments.accelerator --output=DIR                        the first call, and every further one
python -m experiments.accelerator --output=DIR --data_path=DATA       at the end, train a grid too
python -m experiments.accelerator --output=DIR --stages=golden,row7_train     these stages alone

A call runs the stages that have not succeeded yet and still fit, one after another, and stops before its time is over.
Each stage adds to DIR/<stage>.log, and most of them write DIR/<stage>.json. DIR/stages.json says which are done, and
holds what they measured and the end of their logs. It is the only file to keep: with it in DIR, a call on another
machine of the same kind goes on. A stage that fails does not stop the others; the next call tries it again.

Needs an accelerator, PyTorch for the comparison (pip install -e '.[verify]'), and a checkout for the golden numbers.

Exit codes: 0 all stages are done; 1 some failed, and nothing else is left; 2 wrong input; 75 call again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.accelerator.stages import Stage, calls, stages
from experiments.command import Parser, exit_code, make_folder, some_of, whole_number, write_file
from pnn_jax.errors import InputError, StoppedEarly

GRACE = 30  # seconds that a stage gets to save and end; they are part of a call's time
UNFINISHED = 'not done in the time of a call'
LINES_KEPT = 100  # of every log, in stages.json
# XLA's Triton emitter has aborted before (docs/accelerators.md). A stage in which we die of a signal is run without it.
WITHOUT_TRITON = '--xla_gpu_enable_triton_gemm=false'
ABORTED = re.compile(r'^exit code -|\bours, [^;]* exit code -')  # the stage, or our process of a comparison


def main(argv: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    options = parse(argv)

    def of_device(*, torch: bool) -> list[Stage]:
        found = stages(options.output, options.golden, options.grid, options.data_path, torch=torch)
        return choose(found, options.stages)

    planned = of_device(torch=True)
    if options.plan:
        print_plan(planned, (options.time_budget - GRACE) / 60)
        return 0
    device = accelerator()
    make_folder(options.output, '--output')
    found = of_device(torch=device.platform != 'tpu')
    return run_stages(found, options.output, device, began + options.time_budget)


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.accelerator', __doc__)
    parser.add_argument('--plan', action='store_true', help='print what each call would do')
    parser.add_path('--output', default='runs/accelerator', help='folder for logs and results')
    parser.add_argument('--time_budget', type=whole_number(60), default=540, help='seconds that a call may take')
    parser.add_path('--golden', default='tests/data', help='golden file of PyTorch, or a folder of them')
    parser.add_argument('--grid', default='audit', help='the grid to train at the end')
    parser.add_path('--data_path', help='its data; without it no grid is trained')
    parser.add_argument('--stages', default='', help='only these, with commas between; default: all')
    return parser.parse_args(argv)


def choose(found: Sequence[Stage], names: str) -> list[Stage]:
    """The stages with these names, in their own order; all of them for ''.

    Raises:
        InputError: there is no stage of that name.
    """
    try:
        chosen = some_of([stage.name for stage in found])(names)
    except argparse.ArgumentTypeError as error:
        raise InputError(f'--stages: {error}') from None
    return [stage for stage in found if stage.name in chosen or not chosen]


def print_plan(found: Sequence[Stage], minutes: float) -> None:
    for number, planned in enumerate(calls(found, minutes), start=1):
        print(f'call {number}:')
        for stage in planned:
            print(f'  {stage.name:20} {stage.minutes:3g} min  {stage.what}')


class Device(NamedTuple):
    """An accelerator.

    Attributes:
        platform: 'cuda', 'rocm' or 'tpu', as JAX_PLATFORMS names it.
        kind: in words.
    """

    platform: str
    kind: str


def accelerator() -> Device:
    """The accelerator, asked in a process that ends, because memory of a GPU is taken by the first to ask.

    Raises:
        InputError: there is none, or something that the stages need is missing or fails.
    """
    try:
        command = [sys.executable, '-m', 'experiments.accelerator.probe']
        answer = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        raise InputError('jax does not answer within three minutes') from None
    if answer.returncode:
        raise InputError(f'jax or a library fails here: {last_line(answer.stderr).removeprefix("error: ")}')
    platform, _, kind = answer.stdout.strip().split('\n')[-1].partition(':')
    if platform == 'cpu':
        raise InputError('jax finds no GPU or TPU here; --plan shows what would run')
    return Device(platform, kind)


def run_stages(found: Sequence[Stage], folder: Path, device: Device, end: float) -> int:
    """Runs the stages that have not succeeded, those that failed before last, until time.monotonic() is near `end`.

    Returns:
        The exit code.

    Raises:
        InputError: the folder's stages.json cannot be read, or is of another device.
        StoppedEarly: stages are left for another call.
    """
    file = folder / 'stages.json'
    progress = read_progress(file, device.kind)
    left = [stage for stage in found if stage.name not in progress.seconds]
    waiting = sorted(left, key=lambda stage: stage.name in progress.failed)
    first = True  # a stage that had a whole call and did not finish has failed
    while waiting:
        seconds = end - time.monotonic() - GRACE
        fitting = [stage for stage in waiting if 60 * stage.minutes <= seconds]
        if not fitting and not first:
            raise StoppedEarly(f'{waiting[0].name} needs another call')
        stage = (fitting or waiting)[0]  # a call that is too short for any of them tries one all the same
        waiting.remove(stage)
        print(f'{stage.name}: {stage.what}', flush=True)
        began = time.monotonic()
        log = folder / f'{stage.name}.log'
        failure = run(stage, log, environment(stage.environment, folder, device.platform), seconds)
        if failure == UNFINISHED and (stage.resumes or not first):
            raise StoppedEarly(f'{stage.name} needs another call')
        first = False
        if failure:
            print(f'  failed: {failure}')
            progress.failed[stage.name] = failure
        else:
            progress.failed.pop(stage.name, None)
            progress.seconds[stage.name] = round(time.monotonic() - began, 1)
        progress.logs[stage.name] = log.read_text(errors='replace').splitlines()[-LINES_KEPT:]
        with contextlib.suppress(OSError, ValueError):  # not every stage writes one; one that was killed wrote half
            progress.results[stage.name] = json.loads((folder / f'{stage.name}.json').read_text())
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
        results: stage -> what it measured: the content of its JSON file.
        logs: stage -> the last lines of its log.
    """

    device: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    logs: dict[str, list[str]] = dataclasses.field(default_factory=dict)


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


def run(stage: Stage, log: Path, variables: dict[str, str], seconds: float) -> str:
    """Runs a stage for at most `seconds`; returns why it failed, or ''."""
    end = time.monotonic() + seconds
    failure = _run(stage, log, variables, seconds)
    if ABORTED.search(failure):
        flags = f'{variables.get("XLA_FLAGS", "")} {WITHOUT_TRITON}'.strip()
        note = f'{failure}; again with XLA_FLAGS={flags}'
        print(f'  {note}', flush=True)
        with log.open('a') as file:  # what is measured now is to be read with this
            file.write(f'{note}\n')
        failure = _run(stage, log, variables | {'XLA_FLAGS': flags}, end - time.monotonic())
    return failure


def _run(stage: Stage, log: Path, variables: dict[str, str], seconds: float) -> str:
    with log.open('a') as file:
        process = subprocess.Popen(stage.command, stdout=file, stderr=subprocess.STDOUT, env=variables)
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
    return f'exit code {code}: {last_line(log.read_text(errors="replace"))}' if code else ''


def environment(changes: Mapping[str, str], folder: Path, platform: str) -> dict[str, str]:
    """The variables of a stage.

    PyTorch and JAX share the device, so neither may take all of its memory at its start. A GPU that fails must not be
    replaced by the CPU. One device is compared with one. What a stage compiled is there when it is tried again.
    """
    variables = os.environ | {
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        'JAX_PLATFORMS': f'{platform},cpu',
        'JAX_COMPILATION_CACHE_DIR': str((folder / 'programs').absolute()),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    if platform == 'cuda':
        variables['CUDA_VISIBLE_DEVICES'] = os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]
    return variables | changes


def last_line(text: str) -> str:
    """The last line that is not empty, cut to a length that can be read."""
    return next((line.strip()[:300] for line in reversed(text.split('\n')) if line.strip()), 'no output')


if __name__ == '__main__':
    sys.exit(exit_code(main))
