"""A real run, interrupted in every way that there is, ends bit for bit as an uninterrupted one."""

import json
import signal

import ml_collections
import pytest

from experiments.robustness.kill_test import Kill, command, digests, finish, launch
from pnn_jax.run.workdir import Workdir


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp('uninterrupted')
    finish(workdir, cache)
    return workdir


def interrupt(workdir, cache, kill=None, *flags):
    process = launch([*command(workdir, cache), *flags], kill)
    output, _ = process.communicate(timeout=120)
    assert 'Traceback' not in output, output
    return process.returncode, output


def test_signals_time_budget_and_kills_change_nothing(uninterrupted, tmp_path, cache):
    code, output = interrupt(tmp_path, cache, Kill('steps', 1, 0.01, int(signal.SIGTERM)))
    assert code == 75 and 'SIGTERM' in output
    code, output = interrupt(tmp_path, cache, Kill('checkpoint', 3, 0.01))
    assert code == -signal.SIGKILL
    code, output = interrupt(tmp_path, cache, Kill('steps', 1, 0.0, int(signal.SIGINT)))
    assert code == 75 and 'SIGINT' in output
    code, output = interrupt(tmp_path, cache, Kill('evaluation', 1, 0.0))
    assert code == -signal.SIGKILL
    code, output = interrupt(tmp_path, cache, Kill('evaluation', 1, 0.0, int(signal.SIGTERM)))
    assert code == 75 and 'SIGTERM' in output
    code, output = interrupt(tmp_path, cache, None, '--time_budget=0')
    assert code == 75 and 'time budget' in output
    assert not (tmp_path / 'result.json').exists()
    finish(tmp_path, cache)
    assert digests(tmp_path) == digests(uninterrupted)


def test_a_second_process_in_the_workdir_is_refused(uninterrupted, cache):
    config = ml_collections.ConfigDict(json.loads((uninterrupted / 'config.json').read_text()))
    before = digests(uninterrupted)
    with Workdir.open(uninterrupted, config):
        code, output = interrupt(uninterrupted, cache)
    assert code == 2 and 'in use by another process' in output
    assert digests(uninterrupted) == before
