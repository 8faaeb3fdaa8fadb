"""The command line, as a user meets it: what it prints and exits with, and that it writes nothing when it refuses."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    '--config.num_epochs=1',
    '--config.model.num_filters=4',
    '--config.model.num_masks=2',
    '--config.data.train_examples=64',
    '--config.data.image_size=8',
)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, '-m', 'pnn_jax.main', *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([], '--config=configs/<name>.py is required'),
        (['--config=configs/noise_mask.py'], 'did you mean configs/noise_masks.py?'),
        (['--config=configs/quickstart.py', '--config.model.num_mask=2'], 'Did you mean "num_masks"'),
        (['--config=configs/quickstart.py', '--config.model.num_masks=two'], 'num_masks'),
        (['--config=configs/quickstart.py', '--time_budget=-1'], '--time_budget=-1'),
        (['--config=configs/quickstart.py', '--time_budget=nan'], '--time_budget=nan: must be a number of seconds'),
        (['--config=configs/quickstart.py', '--coordinator=127.0.0.1:1'], '--coordinator=127.0.0.1:1'),
        (['--config=configs/quickstart.py', '--workdir='], '--workdir is empty'),
        (['--config=nothing.py'], '--config=nothing.py: there is no such file'),
        (['--config=configs/quickstart.py', 'extra'], "unexpected argument 'extra'"),
        (['--config=configs/quickstart.py', '--config.model.activation=rellu'], "did you mean 'relu'?"),
        (['--config=configs/quickstart.py', '--config.platform=tpu'], "jax found only 'cpu'"),
        (['--config=configs/baseline.py', '--config.data.source=folder', '--config.data.path=nowhere'], 'nowhere'),
        (['--config=configs/quickstart.py', '--mode=eval'], 'no checkpoint'),
        (['--config=configs/quickstart.py', '--config.foo.bar=1'], "unknown config field: 'foo'"),
        (['--config=configs/quickstart.py', '--process_id=1'], '--process_id need --coordinator'),
        (['--config=configs/quickstart.py', '--config.model.num_masks=1000000000'], 'GiB, and this machine has'),
    ],
)
def test_wrong_usage_is_one_clear_line_and_writes_nothing(tmp_path, arguments, expected):
    workdir = tmp_path / 'run'
    done = run(f'--workdir={workdir}', *arguments)
    assert done.returncode == 2
    message = [line for line in done.stderr.splitlines() if line]
    assert expected in done.stderr
    assert 'Traceback' not in done.stderr
    assert len(message) <= 3
    assert not workdir.exists()


def test_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    done = run('--config=configs/quickstart.py', *TINY, f'--workdir={tmp_path}/file/run')
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert len(done.stderr.splitlines()) == 1


def test_a_run_from_the_command_line(tmp_path):
    """Trains, continues with nothing to do, evaluates, and refuses another config in its workdir."""
    workdir = tmp_path / 'run'
    common = ('--config=configs/quickstart.py', *TINY, f'--workdir={workdir}')
    first = run(*common)
    assert first.returncode == 0, first.stderr
    last, plot = first.stdout.splitlines()[-2:]
    with np.load(workdir / 'outcomes.npz') as stored:
        correct = int(stored['correct'][-1].sum())
    assert last.startswith(f'{correct} of 360 correct, ')
    assert '95% CI' in last
    assert plot == f'plot: {workdir}/curves.png'
    assert (workdir / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert 'Traceback' not in first.stderr
    assert any(path.name.startswith('events.out.tfevents') for path in workdir.iterdir())

    again = run(*common)
    assert again.returncode == 0
    assert last in again.stdout

    evaluated = run(*common, '--mode=eval', '--checkpoint=best')
    assert evaluated.returncode == 0, evaluated.stderr
    assert f'{correct} of 360 correct' in evaluated.stdout

    refused = run(*common, '--config.model.noise_level=0.25')
    assert refused.returncode == 2
    assert 'model.noise_level: 0.5 -> 0.25' in refused.stderr


def test_time_budget_stops_with_75_and_a_setting_without_effect_is_noted(tmp_path):
    common = ('--config=configs/quickstart.py', *TINY, f'--workdir={tmp_path}/run', '--config.model.kernel_size=5')
    stopped = run(*common, '--time_budget=0')
    assert stopped.returncode == 75
    assert 'the same command goes on' in stopped.stderr
    assert 'config.model.kernel_size=5 has no effect' in stopped.stderr
    assert run(*common).returncode == 0


def test_a_signal_soon_after_the_start_ends_with_75(tmp_path):
    command = [sys.executable, '-m', 'pnn_jax.main', '--config=configs/quickstart.py', f'--workdir={tmp_path}/run']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6)  # compiling, or in the first steps; the interpreter itself starts within a second or two
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.splitlines()[-1] == 'stopped: received SIGINT; the same command goes on'


def test_runtime_needs_neither_tensorflow_nor_torch_nor_tfds(tmp_path):
    """A whole run with the three made impossible to import."""
    for name in ('tensorflow', 'torch', 'tensorflow_datasets'):
        (tmp_path / f'{name}.py').write_text(f'raise ImportError("{name} is not installed")')
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')]))
    done = run('--config=configs/quickstart.py', *TINY, f'--workdir={tmp_path}/run', PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert 'of 360 correct' in done.stdout
