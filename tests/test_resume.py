"""A real run, interrupted in every way that there is, ends bit for bit as one that was not."""

import signal

import pytest
from command_line import Done, run
from tiny_runs import tree_of

from experiments.robustness.kill_test import Kill, command, digests
from pnn_jax.run.workdir import Workdir, read_config

pytestmark = pytest.mark.slow


def start(workdir, kill: Kill | None = None, *flags: str) -> Done:
    """Runs the command until it ends, or until it sends itself the signal of `kill`."""
    setup = f'from experiments.robustness.kill_test import Kill, arm; arm(Kill(*{tuple(kill)}))' if kill else ''
    done = run(*command(workdir), *flags, setup=setup)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('uninterrupted')
    assert start(workdir).returncode == 0
    return workdir


def test_signals_time_budget_and_kills_change_nothing(uninterrupted, tmp_path):
    done = start(tmp_path, Kill('steps', 1, 0.01, int(signal.SIGTERM)))
    assert done.returncode == 75 and 'SIGTERM' in done.stderr
    done = start(tmp_path, Kill('checkpoint', 3, 0.01))
    assert done.returncode == -signal.SIGKILL
    done = start(tmp_path, Kill('steps', 1, 0.0, int(signal.SIGINT)))
    assert done.returncode == 75 and 'SIGINT' in done.stderr
    done = start(tmp_path, Kill('evaluation', 1, 0.0))
    assert done.returncode == -signal.SIGKILL
    done = start(tmp_path, Kill('evaluation', 1, 0.0, int(signal.SIGTERM)))
    assert done.returncode == 75 and 'SIGTERM' in done.stderr
    done = start(tmp_path, None, '--time_budget=0')
    assert done.returncode == 75 and 'time budget' in done.stderr
    assert not (tmp_path / 'result.json').exists()
    assert start(tmp_path).returncode == 0
    assert digests(tmp_path) == digests(uninterrupted)


def test_a_second_process_in_the_workdir_is_refused(uninterrupted):
    before = tree_of(uninterrupted)
    with Workdir.open(uninterrupted, read_config(uninterrupted)):
        done = start(uninterrupted)
    assert done.returncode == 2 and 'in use by another process' in done.stderr
    assert tree_of(uninterrupted) == before
