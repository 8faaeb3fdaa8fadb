"""python -m pnn_jax.main --config=configs/noise_masks.py --workdir=runs/noise_masks

Exit codes: 0 done; 1 the run failed (one line says why); 2 wrong usage, config or input; 75 stopped early on request
(SIGTERM, SIGINT or --time_budget) with its state saved: the same command goes on.
"""

import difflib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from pnn_jax.runtime import restart_with_huge_pages

# Measured on AVX-512 machines: halves the time of the gradients of einsums, leaves the rest alone.
CPU_XLA_FLAGS = '--xla_cpu_prefer_vector_width=512'

STOPPED_EARLY = 75  # EX_TEMPFAIL: the same command goes on

CONFIG = config_flags.DEFINE_config_file('config', None, 'File with the run; its fields are flags too.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for what the run leaves; default: runs/<name of the config>.')
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'Train (or go on), or evaluate a checkpoint exactly.')
CHECKPOINT = flags.DEFINE_enum('checkpoint', 'latest', ['latest', 'best'], 'Which checkpoint --mode=eval evaluates.')
TIME_BUDGET = flags.DEFINE_float('time_budget', None, 'Seconds after which to save, stop and exit with 75.', 0.0)
COMPILATION_CACHE = flags.DEFINE_string(
    'compilation_cache', None, 'Folder that keeps compiled programs between runs on this machine (off by default).'
)
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, for several hosts without a scheduler that jax knows.'
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes there are.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: which of them this is, from 0.')
MULTIHOST = flags.DEFINE_bool('multihost', False, 'Find the other hosts through the environment (TPU pods, Slurm).')


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with one line instead of a traceback for what users get wrong."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            fail('--config=configs/<name>.py is required', 2)
        CONFIG.value.to_dict()  # a file that cannot be loaded raises only when it is used
    except flags.Error as error:
        fail(_one_line(error), 2)
    except (AttributeError, KeyError) as error:
        fail(f'unknown config field: {_one_line(error)}', 2)
    except (OSError, ImportError, SyntaxError, TypeError, ValueError) as error:
        path = _config_path().split(':')[0]
        fail(f'--config={path}: {_one_line(error) if os.path.exists(path) else _no_such_file(path)}', 2)
    if COORDINATOR.value is None and (NUM_PROCESSES.value is not None or PROCESS_ID.value is not None):
        fail('--num_processes and --process_id need --coordinator=HOST:PORT', 2)
    if TIME_BUDGET.value is not None and math.isnan(TIME_BUDGET.value):
        fail('--time_budget=nan: must be a number of seconds, 0 or more', 2)
    if WORKDIR.value == '':
        fail('--workdir is empty: must be a folder, or left out for runs/<name of the config>', 2)
    if len(rest) > 1:
        fail(f'unexpected argument {rest[1]!r}: every option is --name=value', 2)
    return rest


def fail(message: str, code: int, leave: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """Prints one line for each problem and exits by `leave`."""
    for line in message.splitlines():
        print(f'error: {line}', file=sys.stderr)
    leave(code)


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).replace('\\n', ' ').replace("\\'", "'").strip('"').split())


def _config_path() -> str:
    """The value of --config as it was typed."""
    for index, argument in enumerate(sys.argv):
        name, equals, value = argument.partition('=')
        if name.lstrip('-') == 'config':
            return value if equals else ''.join(sys.argv[index + 1 : index + 2])
    return ''


def _no_such_file(path: str) -> str:
    folder, name = os.path.split(path)
    files = os.listdir(folder or '.') if os.path.isdir(folder or '.') else []
    near = difflib.get_close_matches(name, [file for file in files if file.endswith('.py')], n=1)
    return 'there is no such file' + (f' (did you mean {os.path.join(folder, near[0])}?)' if near else '')


def stop_conditions(time_budget: float | None) -> Callable[[], str]:
    """Installs handlers of SIGTERM and SIGINT; returns a function that gives the reason to stop, or ''.

    Once that function has been called, the first signal asks to save and stop, and a second one ends the process at
    once. Before, when there is nothing to save yet, the first one does: what is on disk is whole at any time.
    """
    began = time.monotonic()
    received: list[int] = []
    asked = False

    def receive(number: int, frame) -> None:
        received.append(number)
        if not asked or len(received) > 1:
            print(f'stopped: received {signal.Signals(number).name}; the same command goes on', file=sys.stderr)
            os._exit(STOPPED_EARLY)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, receive)

    def should_stop() -> str:
        nonlocal asked
        asked = True
        if received:
            return f'received {signal.Signals(received[0]).name}'
        if time_budget is not None and time.monotonic() - began > time_budget:
            return f'the time budget of {time_budget:g} s is spent'
        return ''

    return should_stop


def quieten_logs() -> None:
    """Keeps warnings, drops the dozens of informational lines that checkpointing and start-up print."""
    for name in ('orbax', 'jax._src.xla_bridge'):
        logging.getLogger(name).setLevel(logging.WARNING)
    absl_logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= logging.WARNING or '/orbax/' not in record.pathname
    )


def start_jax() -> None:
    """Sets what must be set before jax first touches a device."""
    import jax

    from pnn_jax import hosts

    if COMPILATION_CACHE.value:
        jax.config.update('jax_compilation_cache_dir', os.path.abspath(COMPILATION_CACHE.value))
    if COORDINATOR.value:
        hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    elif MULTIHOST.value:
        hosts.join()


def main(argv: list[str]) -> None:
    del argv
    should_stop = stop_conditions(TIME_BUDGET.value)
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)
    # Imported here, because jax reads XLA_FLAGS when it is imported.
    import jax

    from pnn_jax import hosts
    from pnn_jax.errors import InputError, RunError, StoppedEarly
    from pnn_jax.run.log import describe, describe_classes
    from pnn_jax.train import evaluate_checkpoint, train_and_evaluate
    from pnn_jax.validate import ineffective_overrides, validate_config

    quieten_logs()
    config = CONFIG.value
    name = os.path.splitext(os.path.basename(_config_path()))[0]
    workdir = WORKDIR.value or os.path.join('runs', name)
    overridden = [
        field.removeprefix('model.')
        for field in config_flags.get_override_values(flags.FLAGS['config'])
        if field.startswith('model.')
    ]
    try:
        start_jax()
        if MODE.value == 'eval':
            result = evaluate_checkpoint(config, workdir, which=CHECKPOINT.value)
            if jax.process_index() == 0:
                print(f'{CHECKPOINT.value} checkpoint, step {result["step"]}: {describe(result)}')
                print(describe_classes(result))
            return
        validate_config(config)
        for line in ineffective_overrides(config.model, overridden):
            print(f'note: {line}', file=sys.stderr)
        result = train_and_evaluate(config, workdir, should_stop=should_stop)
    except InputError as error:
        fail(str(error), 2, hosts.leave)
    except RunError as error:
        fail(str(error), 1, hosts.leave)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' in str(error):
            fail(f'out of memory; a smaller config.batch_size needs less ({_one_line(error)[:200]})', 1, hosts.leave)
        if jax.process_count() == 1 or 'INTERNAL' in str(error):
            raise
        message = 'another host stopped or cannot be reached; the same command on every host goes on'
        fail(f'{message} ({_one_line(error)[:200]})', 1, hosts.leave)
    except StoppedEarly as reason:
        print(f'stopped: {reason}; the same command goes on', file=sys.stderr)
        sys.exit(STOPPED_EARLY)
    if jax.process_index() != 0:
        return
    if config.num_seeds > 1:
        mean, sd = 100 * result['mean_final_test_accuracy'], 100 * result['sd_final_test_accuracy']
        print(f'{config.num_seeds} seeds: {mean:.2f}% +- {sd:.2f} (standard deviation); results in {workdir}')
        return
    print(describe_classes(result))
    print(describe(result))
    print(f'plot: {os.path.join(workdir, "curves.png")}')


if __name__ == '__main__':
    restart_with_huge_pages()
    app.run(main, flags_parser=parse)
