"""What concerns the whole process: the restart for huge pages, printing that cannot fail, signals."""

import io
import logging
import os
import signal
import sys
import types

import pytest
from absl import logging as absl_logging

from pnn_jax import runtime
from pnn_jax.runtime import SafeStream, restart_with_huge_pages, stop_conditions


class Started(Exception):
    """Instead of another program in this process."""


@pytest.fixture
def own_process(monkeypatch):
    """As if this process had been started as `python -m pnn_jax.main`."""
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'pnn_jax.main', '--config=x'])
    monkeypatch.setattr(sys, 'gettrace', lambda: None)
    spec = types.SimpleNamespace(name='pnn_jax.main')
    monkeypatch.setitem(sys.modules, '__main__', types.SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(runtime.threading, 'active_count', lambda: 1)
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)

    def execve(path, arguments, environment):
        raise Started(path, arguments, environment['GLIBC_TUNABLES'])

    monkeypatch.setattr(os, 'execve', execve)


def test_own_process_is_started_again_with_the_same_arguments(own_process):
    with pytest.raises(Started) as started:
        restart_with_huge_pages('pnn_jax.main')
    arguments = [sys.executable, '-m', 'pnn_jax.main', '--config=x']
    assert started.value.args == (sys.executable, arguments, 'glibc.malloc.hugetlb=1')


@pytest.mark.parametrize(
    'difference',
    [
        lambda patch: patch.setenv('GLIBC_TUNABLES', ''),
        lambda patch: patch.setattr(sys, 'platform', 'darwin'),
        lambda patch: patch.setattr(sys, 'orig_argv', ['ipython']),
        lambda patch: patch.setattr(sys, 'orig_argv', ['python', '-m', 'pdb', '-m', 'pnn_jax.main']),
        lambda patch: patch.setitem(sys.modules, '__main__', types.SimpleNamespace()),
        lambda patch: patch.setattr(sys, 'gettrace', lambda: print),
        lambda patch: patch.setattr(runtime.threading, 'active_count', lambda: 2),
    ],
    ids=['variable set', 'not linux', 'notebook', 'debugger', 'not -m', 'traced', 'threads'],
)
def test_process_of_somebody_else_is_not_replaced(own_process, monkeypatch, difference):
    difference(monkeypatch)
    restart_with_huge_pages('pnn_jax.main')


def test_interpreter_that_cannot_be_started_again_does_not_fail_the_run(own_process, monkeypatch):
    def execve(*arguments):
        raise PermissionError('not executable')

    monkeypatch.setattr(os, 'execve', execve)
    restart_with_huge_pages('pnn_jax.main')


def test_only_what_a_failed_save_logs_is_dropped(monkeypatch, caplog):
    """Orbax's threads log some pages, and Python's libraries that their event loop is closed, at any later time."""
    dropped = [logging.getLogger(name) for name in ('orbax.checkpoint', 'asyncio', 'concurrent.futures')]
    for logger in (logging.getLogger('orbax'), *dropped, logging.getLogger('jax._src.xla_bridge')):
        monkeypatch.setattr(logger, 'level', logger.level)  # puts the levels back
    handler = absl_logging.get_absl_handler()
    monkeypatch.setattr(handler, 'filters', list(handler.filters))
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
    shown = []
    monkeypatch.setattr(sys, '__unraisablehook__', shown.append)
    runtime.quieten_logs()
    for error in (RuntimeError('Event loop is closed'), another := RuntimeError('another')):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [unraisable.exc_value for unraisable in shown] == [another]
    for logger in dropped:
        logger.error('exception calling callback')
    logging.getLogger('pnn_jax').warning('kept')
    assert [record.message for record in caplog.records] == ['kept']


class Broken(io.StringIO):
    """A stream that takes what is written into its buffer, and cannot pass it on."""

    def flush(self):
        raise BrokenPipeError


def test_stream_that_fails_is_written_to_no_more():
    broken = Broken()
    stream = SafeStream(broken)
    assert stream.write('first') == 5
    stream.flush()
    assert stream.write('second') == 6
    stream.flush()
    assert broken.getvalue() == 'first'


def test_closed_stream_takes_everything():
    closed = io.StringIO()
    stream = SafeStream(closed)
    closed.close()
    assert stream.write('text') == 4
    stream.flush()


def test_characters_that_an_encoding_lacks_become_escapes():
    buffer = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(buffer, encoding='ascii', write_through=True))
    assert stream.write('a猫\n') == 3
    assert buffer.getvalue() == b'a\\u732b\n'


@pytest.fixture
def handlers():
    """Puts the signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_reason_to_stop_and_the_second_ends_the_process(handlers, monkeypatch, number):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    should_stop = stop_conditions(None)
    assert should_stop() == ''
    signal.raise_signal(number)
    assert should_stop() == f'received {number.name}' and ended == []
    signal.raise_signal(number)
    assert ended == [75]


def test_signal_before_there_is_anything_to_save_ends_the_process(handlers, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    stop_conditions(None)
    signal.raise_signal(signal.SIGTERM)
    assert ended == [75]
    assert capfd.readouterr().err == 'stopped: received SIGTERM; the same command resumes the run\n'


def test_time_budget_is_a_reason_to_stop(handlers, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runtime.time, 'monotonic', lambda: now[0])
    should_stop = stop_conditions(5)
    now[0] = 104.9
    assert should_stop() == ''
    now[0] = 105.1
    assert should_stop() == 'the time budget of 5 s is spent'
