"""Runs of the command line without the seconds that an interpreter takes to import jax.

A server process imports everything once and starts no device. For every run it forks a child, which is then a process
like that of `python -m pnn_jax.main`: with its own flags, devices, signal handlers, standard streams and exit code.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import IO, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = str(ROOT / 'configs' / 'quickstart.py')


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


def start(
    *arguments: str,
    stdout: str | os.PathLike,
    stderr: str | os.PathLike,
    cwd: str | os.PathLike = ROOT,
    setup: str = '',
) -> int:
    """Starts a run and returns the id of its process; `wait` must follow. Arguments as `run`."""
    request = {
        'argv': arguments,
        'cwd': os.fspath(cwd),
        'setup': setup,
        'stdout': os.fspath(stdout),
        'stderr': os.fspath(stderr),
    }
    server().stdin.write(json.dumps(request) + '\n')
    server().stdin.flush()
    return int(server().stdout.readline())


def wait() -> int:
    """Returns the exit code of the run that was started; negative for a signal."""
    return int(server().stdout.readline())


def run(*arguments: str, cwd: str | os.PathLike = ROOT, setup: str = '', stdout: str | os.PathLike = '') -> Done:
    """Runs `python -m pnn_jax.main` with `arguments` to its end.

    Args:
        arguments: of the command line.
        cwd: the current folder.
        setup: Python code that the process runs first.
        stdout: a file to write to, such as /dev/full or a named pipe; the default is one that is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: os.path.join(folder, name) for name in ('stdout', 'stderr')}
        if stdout:
            streams['stdout'] = os.fspath(stdout)
        start(*arguments, cwd=cwd, setup=setup, **streams)
        returncode = wait()
        output = '' if stdout else _read(streams['stdout'])
        return Done(returncode, output, _read(streams['stderr']))


def _read(path: str) -> str:
    return pathlib.Path(path).read_text(encoding='utf-8', errors='replace')


def _become(request: dict) -> None:
    """Makes this process that of the run."""
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request['cwd'])
    sys.stdout = _text(1)
    sys.stderr = _text(2, buffering=1)
    sys.argv = ['pnn_jax/main.py', *request['argv']]
    exec(request['setup'], {'__name__': 'setup'})


def _text(descriptor: int, **options) -> IO[str]:
    return open(descriptor, 'w', encoding='utf-8', closefd=False, **options)


def serve() -> bool:
    """Forks a run for every line of standard input. True in a forked process, False where the input has ended."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')  # the run has other streams under 0 and 1
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for line in requests:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            return True
        print(child, flush=True, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True, file=answers)
    return False


if __name__ == '__main__':
    from absl import app, logging

    logging.use_absl_handler()  # as app.run does; without it, a warning during an import sets up another handler
    import pnn_jax.evaluate_run
    import pnn_jax.main
    import pnn_jax.train

    if serve():
        app.run(pnn_jax.main.main, flags_parser=pnn_jax.main.parse)
