"""Compiles one program for one target, in a process of its own, and measures what the compiler made of it.

A compiler that aborts takes its process with it. Each program is therefore compiled by a child process, and its death
is a result like any other. The child is `python -m experiments.compile.measure`, which reads a request as JSON from
standard input and writes the measurements as JSON to a file.
"""

import collections
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from experiments.compile import schedule, targets

PROGRAMS = ('train', 'step', 'evaluate')

# HLO operations that exchange data between devices; the asynchronous ones are counted at their start.
COLLECTIVES = re.compile(r' (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(')


# What libraries log to standard error: a level, month and day, and a time.
LOG_LINE = re.compile(r'[IWE]\d{4} |WARNING: All log messages')


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
        target: a name in `targets.TARGETS`.
        devices: over how many of them the batch is sharded.
        program: of `PROGRAMS`: 'train' (as many steps as a run dispatches at once on an accelerator), 'step' (one
            step) or 'evaluate' (one batch).
        config: file or name of a config.
        batch_size: over all devices; 0 is that of the config.
        dtype: of the computation; '' is that of the config.
    """

    target: str
    program: str
    config: str
    devices: int = 1
    batch_size: int = 0
    dtype: str = ''


def measure(request: Request, timeout: float = 3600, schedules: bool = False) -> dict:
    """The measurements of one program: those of `describe`, or {'error': one line} where it does not compile."""
    return in_child('experiments.compile.measure', request.target, dataclasses.asdict(request), timeout, schedules)


def in_child(module: str, target: str, request: dict, timeout: float, schedules: bool = False) -> Any:
    """Runs `python -m module`, which calls `answer`, in the environment of the target's compiler.

    Args:
        schedules: the compiler of a TPU writes its schedules. Large programs then take it many times as long.

    Returns:
        What the child answers, or {'error': one line} where it dies or takes longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, schedule_folder = os.path.join(folder, 'answer.json'), ''
        environment = os.environ | targets.ENVIRONMENT
        if schedules and targets.TARGETS[target].platform == 'tpu':
            schedule_folder = os.path.join(folder, 'schedules')
            environment['LIBTPU_INIT_ARGS'] = schedule.dump_flags(schedule_folder)
        try:
            child = subprocess.run(
                [sys.executable, '-m', module, output, schedule_folder],
                input=json.dumps(request),
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return {'error': f'still compiling after {timeout:.0f} s'}
        if child.returncode:
            return {'error': reason(child)}
        with open(output) as file:
            return json.load(file)


def answer(work: Callable[[dict, str], Any]) -> None:
    """What a child of `in_child` calls: passes work(request, folder of schedules, '' for none) back to its parent."""
    output, schedule_folder = sys.argv[1:]
    result = work(json.load(sys.stdin), schedule_folder)
    with open(output, 'w') as file:
        json.dump(result, file)


def reason(child: subprocess.CompletedProcess) -> str:
    """Why a child failed, as one line: a failed check of the compiler, or the last line of a Python error."""
    lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
    checks = [line for line in lines if 'Check failed' in line or 'RESOURCE_EXHAUSTED' in line]
    errors = [line for line in lines if not LOG_LINE.match(line)]
    code = child.returncode
    ended = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit {code}'
    return ': '.join([ended, *(checks[:1] or errors[-1:])])[:320]


def describe(lowered, target: str, schedule_folder: str) -> dict:
    """Compiles a lowered program and measures it.

    Returns:
        compile_seconds; memory (bytes needed on one device) and its parts arguments, outputs, temporaries, with
        aliased outputs counted once; memory_there (bytes of the device); loops, kernels and collectives (by kind);
        with a schedule folder also bundles (each kernel counted once), static_milliseconds (those at the device's
        clock), and unknown_loops (loops in kernels whose trip count is not known, counted as one trip).
    """
    spec = targets.TARGETS[target]
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    text, memory = compiled.as_text(), compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    measured = {
        'compile_seconds': round(seconds, 1),
        'memory': arguments + outputs + temporaries,
        'memory_there': spec.memory,
        'arguments': arguments,
        'outputs': outputs,
        'temporaries': temporaries,
        **count(text),
    }
    if schedule_folder:
        bundles, unknown = schedule.total_bundles(schedule_folder)
        shutil.rmtree(schedule_folder)  # the next program of this process starts with an empty one
        milliseconds = round(1e3 * bundles / spec.clock_hz, 4)
        measured |= {'bundles': bundles, 'static_milliseconds': milliseconds, 'unknown_loops': unknown}
    return measured


def count(text: str) -> dict:
    """Loops, kernels and collectives in the text of a compiled program."""
    calls = re.compile(r' (fusion|custom-call|convolution|dot|sort|scatter|copy|rng-bit-generator)\(')
    inside_kernels = re.compile(r'^%?(fused_|wrapped_|gemm_fusion|triton_)\S* \(')
    kernels, counting = 0, True
    for line in text.splitlines():
        if line and not line.startswith((' ', '}')):  # the beginning of a computation
            counting = not inside_kernels.match(line)
        elif counting and calls.search(line):
            kernels += 1
    collectives = collections.Counter(COLLECTIVES.findall(text))
    return {'loops': len(re.findall(r' while\(', text)), 'kernels': kernels, 'collectives': dict(collectives)}


def main() -> None:
    from experiments.compile import programs  # imports jax, which reads the environment that the parent has set

    answer(lambda request, folder: describe(programs.lower(Request(**request)), request['target'], folder))


if __name__ == '__main__':
    main()
