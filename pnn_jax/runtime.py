"""What belongs to the whole process: jax's flags, memory, output, signals. For entry points, not for modules."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from absl import logging as absl_logging

# Measured on AVX-512 machines. Full vector registers halve the time of the gradients of einsums. Convolutions and
# products of matrices are left to Eigen: YNNPACK, to which XLA gives them otherwise, is slower for most of those of
# these networks. It keeps the reductions of batch norm, at which it is several times as fast as XLA's own code.
CPU_XLA_FLAGS = (
    '--xla_cpu_prefer_vector_width=512 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot'
)

STOPPED_EARLY = 75  # exit code EX_TEMPFAIL
RESUMES = 'the same command resumes the run'

# malloc asks for huge pages where the system leaves it to programs ('madvise', the default of most distributions).
# XLA allocates the temporary arrays of every step again; with pages of 4 KiB the system then clears and maps tens of
# thousands of pages a step, a fifth of the time of a training step without masks.
HUGE_PAGES = 'glibc.malloc.hugetlb=1'


def restart_with_huge_pages(module: str) -> None:
    """Starts `python -m module` again with GLIBC_TUNABLES set, which glibc reads only when a process starts.

    Call it before anything else. It does nothing where the variable is set already, where the process was started in
    another way (a notebook, a debugger, another program's process), or where the interpreter cannot be executed again.
    """
    if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ or not sys.executable or not _owns_process(module):
        return
    environment = os.environ | {'GLIBC_TUNABLES': HUGE_PAGES}
    with contextlib.suppress(OSError):  # huge pages save time; a run goes without them
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _owns_process(module: str) -> bool:
    """Whether this process was started as `python -m module` and runs nothing else."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    names = {f'{module}.__main__', module}
    _, _, program = ' '.join(sys.orig_argv).partition(' -m ')  # of several -m, the first is the interpreter's own
    return (
        program.split(' ')[0] == module
        and spec is not None
        and spec.name in names
        and not sys.flags.interactive
        and not sys.flags.inspect
        and sys.gettrace() is None
        and threading.active_count() == 1
    )


def release_unused() -> None:
    """Gives memory that was freed back to the system; a compilation leaves hundreds of megabytes of it."""
    with contextlib.suppress(OSError, AttributeError):  # a system without glibc
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def quieten_logs() -> None:
    """Keeps warnings, and drops the dozens of informational lines that checkpointing and start-up print.

    The errors that are logged while orbax saves are dropped too: `Checkpointer` reports them in one line, with the
    cause. A failed save leaves coroutines behind that find their event loop closed, at any time until the process ends.
    """
    sys.unraisablehook = _show_unraisable
    logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)
    for name in ('orbax', 'asyncio', 'concurrent.futures'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    absl_logging.get_absl_handler().addFilter(
        lambda record: '/orbax/' not in record.pathname or logging.ERROR > record.levelno >= logging.WARNING
    )


def _show_unraisable(unraisable) -> None:
    """Python's own hook for exceptions that nobody can catch, without those of coroutines of a failed save."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == 'Event loop is closed'):
        sys.__unraisablehook__(unraisable)


class SafeStream:
    """A text stream that shows what it can and drops the rest, so that printing never decides the outcome of a run.

    A terminal may lack a character, a reader may close the pipe, the disk behind a redirected output may be full.

    Characters that the encoding lacks are written as escapes (`\\u732b`). After the first failed write nothing more is
    written.

    Args:
        stream: to write to; None, as in a program that was started with the stream closed, takes everything and shows
            nothing.
        owned: the stream belongs to this program, so that after a failure its file descriptor may be pointed at the
            null device. Without that, Python would try to write the rest when the process ends, and fail there.
    """

    def __init__(self, stream: TextIO | None, *, owned: bool = False):
        self._stream = open(os.devnull, 'w') if stream is None else stream  # noqa: SIM115  (open as long as the process)
        self._owned, self._failed = owned, False

    def write(self, text: str) -> int:
        if self._failed:
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or 'ascii'
            self.write(text.encode(encoding, 'backslashreplace').decode(encoding))
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._fail()
        return len(text)

    def flush(self) -> None:
        if self._failed:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._fail()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _fail(self) -> None:
        self._failed = True
        if self._owned:
            with contextlib.suppress(OSError, ValueError), open(os.devnull, 'w') as null:
                os.dup2(null.fileno(), self._stream.fileno())


def protect_standard_streams() -> None:
    """Makes standard output and standard error of this process safe; for entry points, which own them.

    A stream that is closed when the process starts is opened on the null device, so that no file of the run gets its
    number: what a library prints would be written into that file.
    """
    sys.stdout, sys.stderr = SafeStream(sys.stdout, owned=True), SafeStream(sys.stderr, owned=True)


def stop_conditions(time_budget: float | None, again: str = RESUMES) -> Callable[[], str]:
    """Installs handlers of SIGTERM and SIGINT; returns a function that gives the reason to stop, or ''.

    Once that function has been called, the first signal asks to save and stop, and a second one ends the process at
    once. Before that there is nothing to save, and the first signal ends the process.

    Args:
        time_budget: seconds from now after which there is a reason to stop; None for no limit.
        again: what the same command would do, for the line that a signal prints.
    """
    began = time.monotonic()
    received: list[int] = []
    asked = False

    def receive(number: int, frame) -> None:
        received.append(number)
        if not asked or len(received) > 1:
            line = f'stopped: received {signal.Signals(number).name}; {again}\n'
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
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
