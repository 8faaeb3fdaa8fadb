"""Runs of the command lines without the seconds that an interpreter takes to import jax.

A server process imports everything once and starts no device. For every run it forks a child, which is then a process
like that of `python -m pnn_jax.main`: with its own flags, devices, signal handlers, standard streams and exit code.
`python -m experiments.ablation` is run in the same way.
"""

import functools
import gc
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import IO, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = str(ROOT / 'configs' / 'quickstart.py')
LONGEST_SECONDS = 1800  # of a run, on the busiest machine
# All that a run imports, also what it imports late.
IMPORTED = (
    *('pnn_jax.main', 'pnn_jax.train', 'pnn_jax.evaluate_run', 'experiments.ablation.__main__'),
    *('experiments.command', 'experiments.robustness.kill_test'),
    *('matplotlib.pyplot', 'matplotlib.backends.backend_agg', 'scipy.stats', 'sklearn.datasets'),
)


class Done(NamedTuple):
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


@functools.cache
def server() -> subprocess.Popen:
    """The server of this test session. It ends with the session, which closes its standard input."""
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )


def _ask(**request) -> int:
    server().stdin.write(json.dumps(request) + '\n')
    server().stdin.flush()
    return int(server().stdout.readline())


def start(
    *arguments: str,
    stdout: str | os.PathLike,
    stderr: str | os.PathLike,
    cwd: str | os.PathLike = ROOT,
    setup: str = '',
    program: str = 'pnn_jax.main',
) -> int:
    """Starts a run and returns the id of its process; `wait` must follow. Several may run at once.

    Args:
        arguments: of the command line.
        stdout, stderr: files to write to, such as /dev/full or a named pipe.
        cwd: the current folder.
        setup: Python code that the process runs first.
        program: 'pnn_jax.main' or 'experiments.ablation'.
    """
    streams = {'stdout': os.fspath(stdout), 'stderr': os.fspath(stderr)}
    return _ask(start=program, argv=arguments, cwd=os.fspath(cwd), setup=setup, **streams)


def wait(process: int) -> int:
    """Returns the exit code of a run that was started; negative for a signal."""
    return _ask(wait=process)


def run(*arguments: str, stdout: str | os.PathLike = '', **options) -> Done:
    """Runs `python -m pnn_jax.main` with `arguments` to its end.

    Args:
        stdout: a file to write to; the default is one that is read.
        options: as `start`.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: os.path.join(folder, name) for name in ('stdout', 'stderr')}
        if stdout:
            streams['stdout'] = os.fspath(stdout)
        returncode = wait(start(*arguments, **streams, **options))
        output = '' if stdout else _read(streams['stdout'])
        return Done(returncode, output, _read(streams['stderr']))


def _read(path: str) -> str:
    return pathlib.Path(path).read_text(encoding='utf-8', errors='replace')


def _become(request: dict) -> None:
    """Makes this process that of the run. One that hangs is ended by the alarm."""
    signal.alarm(LONGEST_SECONDS)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request['cwd'])
    sys.stdout = _text(1)
    sys.stderr = _text(2, buffering=1)
    sys.argv = [request['start'], *request['argv']]
    exec(request['setup'], {'__name__': 'setup'})


def _text(descriptor: int, **options) -> IO[str]:
    return open(descriptor, 'w', encoding='utf-8', closefd=False, **options)


def serve() -> str:
    """Forks a run for every request to start one.

    Returns:
        In a forked process, the program to run; '' in the server, where the input has ended.
    """
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')  # the run has other streams under 0 and 1
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for line in requests:
        request = json.loads(line)
        if 'wait' in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request['wait'], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
                return request['start']
        print(answer, flush=True, file=answers)
    return ''


if __name__ == '__main__':
    from absl import app, logging

    logging.use_absl_handler()  # as app.run does; without it, a warning during an import sets up another handler
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # so that a child's garbage collector does not copy every page
    program = serve()
    if program == 'pnn_jax.main':
        main = sys.modules[program]
        app.run(main.main, flags_parser=main.parse)
    elif program:
        sys.exit(sys.modules['experiments.command'].exit_code(sys.modules[f'{program}.__main__'].main))
