"""Trains or evaluates a network as a config says. The same command resumes a run that was stopped.

pnn-train --config=noise_masks --workdir=runs/noise_masks      or: python -m pnn_jax.main

--config is a file, or the name of a config that comes with the package. Every field of it is a flag:
--config.model.num_masks=8

pnn-train --mode=eval --workdir=runs/noise_masks counts exactly what a finished run gets right. Its config is that of
the run, unless --config names another one, with other data for example.

Exit codes: 0 done; 1 the run failed (one line says why); 2 wrong usage, config or input; 75 stopped early on request
(SIGTERM, SIGINT or --time_budget) with its state saved: the same command resumes the run. --mode=eval saves nothing.
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from pnn_jax.errors import InputError, RunError, StoppedEarly, one_line, os_reason
from pnn_jax.extras import imports_of_command
from pnn_jax.paths import local_path

with imports_of_command('pnn-train'):
    from absl import app, flags
    from ml_collections import config_flags

    from pnn_jax.config_flag import config_name, define_config_flag, parse_error, shipped_configs
    from pnn_jax.runtime import (
        CPU_XLA_FLAGS,
        RESUMES,
        STOPPED_EARLY,
        protect_standard_streams,
        quieten_logs,
        restart_with_huge_pages,
        stop_conditions,
    )

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for the files of the run; default: runs/<name of the config>.')
LOCK = flags.DEFINE_bool(
    'lock', True, 'Keep other processes out of the workdir; --nolock for file systems without locks.'
)
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'Train (or resume), or evaluate a checkpoint exactly.')
CHECKPOINT = flags.DEFINE_enum('checkpoint', 'latest', ['latest', 'best'], 'Which checkpoint --mode=eval evaluates.')
TIME_BUDGET = flags.DEFINE_float(
    'time_budget',
    None,
    'Seconds after which a run saves its state and exits with 75; the same command resumes it. --mode=eval just exits.',
)
COMPILATION_CACHE = flags.DEFINE_string(
    'compilation_cache',
    None,
    "Folder that keeps compiled programs between runs, or 'off'; default: $JAX_COMPILATION_CACHE_DIR or "
    '~/.cache/pnn_jax/programs.',
)
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, for several hosts without a scheduler that jax knows.'
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes there are.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: number of this process, from 0.')
MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'Run on several hosts, which jax finds through the environment (TPU pods, Slurm).'
)


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with one line and exit code 2 for what users get wrong."""
    protect_standard_streams()
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that cannot be loaded raises only when it is used
        check_flags()
    except Exception as error:  # noqa: BLE001  (a config file is a program, which can raise anything)
        fail(str(parse_error(error)), 2)
    if len(rest) > 1:
        fail(f'unexpected argument {rest[1]!r}: every option is --name=value', 2)
    return rest


def check_flags() -> None:
    """Raises InputError where a flag's value is not allowed, or flags do not go together."""
    if CONFIG.value is None and not (MODE.value == 'eval' and WORKDIR.value):
        raise InputError(
            f'--config is required: a file, or the name of a config of the package ({", ".join(shipped_configs())})'
        )
    if COORDINATOR.value is None and (NUM_PROCESSES.value is not None or PROCESS_ID.value is not None):
        raise InputError('--num_processes and --process_id need --coordinator=HOST:PORT')
    if COORDINATOR.value == '':
        raise InputError('--coordinator is empty: must be HOST:PORT of process 0, or left out')
    budget = TIME_BUDGET.value
    if budget is not None and not (math.isfinite(budget) and budget >= 0):
        raise InputError(f'--time_budget={budget:g}: must be a number of seconds, 0 or more')
    if WORKDIR.value == '':
        raise InputError('--workdir is empty: must be a folder, or left out for runs/<name of the config>')
    for name in ('workdir', 'compilation_cache'):
        if value := flags.FLAGS[name].value:
            local_path(value, f'--{name}')


def fail(message: str, code: int, leave: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """Prints one line for each problem and exits by `leave`."""
    sys.stdout.flush()  # so that this comes last, also where both streams go to one file
    for line in message.splitlines():
        print(f'error: {line}', file=sys.stderr)
    leave(code)


def start_jax() -> None:
    """Sets what must be set before jax first touches a device."""
    from pnn_jax import hosts
    from pnn_jax.program_cache import use_program_cache

    use_program_cache(COMPILATION_CACHE.value)
    if COORDINATOR.value:
        hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    elif MULTIHOST.value:
        hosts.join()


@contextlib.contextmanager
def exit_codes(again: str) -> Iterator[None]:
    """Turns what a run raises into one line and an exit code. `again` says what the same command would do."""
    import jax

    from pnn_jax import hosts

    try:
        yield
    except InputError as error:
        fail(str(error), 2, hosts.leave)
    except RunError as error:
        fail(str(error), 1, hosts.leave)
    except OSError as error:  # of files that nothing else reports: a disk or mount that fails, permissions
        fail(f'{f"{error.filename}: " if error.filename else ""}{os_reason(error)}', 1, hosts.leave)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' in str(error):
            advice = 'a smaller config.batch_size, config.eval_batch_size or config.seeds_at_once needs less'
            fail(f'out of memory; {advice} ({one_line(error, 200)})', 1, hosts.leave)
        if jax.process_count() == 1 or 'INTERNAL' in str(error):
            raise
        message = f'another host stopped or cannot be reached; on every host, {again}'
        fail(f'{message} ({one_line(error, 200)})', 1, hosts.leave)
    except StoppedEarly as reason:
        print(f'stopped: {reason}; {again}', file=sys.stderr)
        sys.exit(STOPPED_EARLY)


def note_ineffective_overrides(config) -> None:
    """Names the fields that were set and have no effect; sweeps set fields for several networks and optimizers."""
    from pnn_jax.validate import ineffective_overrides

    overridden = list(config_flags.get_override_values(flags.FLAGS['config']))
    for line in ineffective_overrides(config, overridden):
        print(f'note: {line}', file=sys.stderr)


def main(argv: list[str]) -> None:
    """Trains or evaluates as the flags say, and prints the result."""
    del argv
    again = RESUMES if MODE.value == 'train' else 'the same command begins again'
    should_stop = stop_conditions(TIME_BUDGET.value, again)
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)
    config = CONFIG.value
    name = config_name() if config is not None else WORKDIR.value or ''
    workdir = os.fspath(local_path(WORKDIR.value or os.path.join('runs', name), '--workdir'))
    print(f'{name}: starting', flush=True)
    # Imported here, because jax reads XLA_FLAGS when it is imported.
    from pnn_jax.evaluate_run import evaluate_checkpoint
    from pnn_jax.run.console import say
    from pnn_jax.run.load import read_run_config
    from pnn_jax.run.result import describe, describe_classes, describe_run_result
    from pnn_jax.train import train_and_evaluate
    from pnn_jax.validate import validate_config

    quieten_logs()
    with exit_codes(again):
        start_jax()
        if MODE.value == 'eval':
            config = read_run_config(workdir) if config is None else config
            result = evaluate_checkpoint(config, workdir, which=CHECKPOINT.value, should_stop=should_stop)
            say(describe_classes(result))
            say(f'{CHECKPOINT.value} checkpoint, step {result["step"]}: {describe(result)}')
            return
        validate_config(config)
        note_ineffective_overrides(config)
        result = train_and_evaluate(config, workdir, should_stop=should_stop, lock=LOCK.value)
        say(describe_run_result(result, workdir))


def command() -> NoReturn:
    """The console command `pnn-train`: this process becomes `python -m pnn_jax.main`.

    -P keeps the current folder out of the imports, as for any console command. A folder that happens to hold a
    `jax.py` is then no problem.
    """
    os.execv(sys.executable, [sys.executable, '-P', '-m', 'pnn_jax.main', *sys.argv[1:]])


if __name__ == '__main__':
    restart_with_huge_pages('pnn_jax.main')
    app.run(main, flags_parser=parse)
