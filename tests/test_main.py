"""The command line, as a user meets it: what it prints and exits with, and that it writes nothing when it refuses.

Most runs are forked (see command_line.py); what depends on how the process starts is tested in a new interpreter.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from command_line import QUICKSTART, ROOT, run, start, wait
from tiny_runs import TINY, write_npz

pytestmark = pytest.mark.slow

CONFIG = f'--config={QUICKSTART}'
DIGITS = (CONFIG, '--config.num_epochs=1', '--config.model.num_filters=4', '--config.model.num_masks=2')


def run_new_interpreter(*arguments, python_path):
    """`python -m pnn_jax.main` itself, with a folder in front of everything that is imported."""
    path = os.pathsep.join(filter(None, [str(python_path), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-m', 'pnn_jax.main', *arguments]
    environment = os.environ | {'PYTHONPATH': path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([], '--config is required: a file, or the name of a config of the package (authors_all_layers, '),
        (['--config=configs/noise_mask.py'], 'did you mean configs/noise_masks.py?'),
        ([CONFIG, '--config.model.num_mask=2'], 'Did you mean "num_masks"'),
        ([CONFIG, '--config.model.num_masks=two'], 'num_masks'),
        ([CONFIG, '--time_budget=-1'], '--time_budget=-1'),
        ([CONFIG, '--time_budget=nan'], '--time_budget=nan: must be a number of seconds'),
        ([CONFIG, '--coordinator=127.0.0.1:1'], '--coordinator=127.0.0.1:1'),
        ([CONFIG, '--workdir='], '--workdir is empty'),
        ([CONFIG, '--coordinator=', '--num_processes=2', '--process_id=1'], '--coordinator is empty'),
        (['--config=nothing.py'], '--config=nothing.py: there is no such file'),
        ([CONFIG, 'extra'], "unexpected argument 'extra'"),
        ([CONFIG, '--config.model.activation=rellu'], "did you mean 'relu'?"),
        ([CONFIG, '--config.platform=tpu'], "jax found only 'cpu'"),
        (['--config=configs/baseline.py', '--config.data.source=folder', '--config.data.path=nowhere'], 'nowhere'),
        ([CONFIG, '--mode=eval'], 'there is no such folder'),
        (['--mode=eval'], 'there is no such folder'),
        ([CONFIG, '--config.foo.bar=1'], "unknown config field: 'foo'"),
        ([CONFIG, '--process_id=1'], '--process_id need --coordinator'),
        ([CONFIG, '--config.model.num_masks=1000000000'], 'GiB, and this machine has'),
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


@pytest.mark.parametrize(
    'program, expected',
    [
        ('def get_config():\n    return nothing', "NameError: name 'nothing' is not defined"),
        ('def get_config(): return 1 / 0', 'ZeroDivisionError: division by zero'),
        ('def get_config(:', 'invalid syntax'),
        ('import a_module_that_is_not_there', "No module named 'a_module_that_is_not_there'"),
    ],
)
def test_config_file_that_fails_is_one_line_with_the_place(tmp_path, program, expected):
    (tmp_path / 'mine.py').write_text(program)
    done = run(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    assert done.stderr.startswith('error: --config: ') and len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr and 'mine.py' in done.stderr and f'line {program.count(chr(10)) + 1}' in done.stderr


def test_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    data = write_npz(tmp_path / 'data.npz')
    done = run(*TINY, f'--config.data.path={data}', f'--workdir={tmp_path}/file/run')
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert len(done.stderr.splitlines()) == 1


def test_a_run_from_the_command_line(tmp_path):
    """Trains, says what it is doing, finds nothing more to do, evaluates, and refuses another config in its workdir."""
    workdir = tmp_path / 'run'
    changes = ('--config.data.train_examples=64', '--config.data.image_size=8', f'--workdir={workdir}')
    common = (*DIGITS, *changes)
    first = run(*common)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[:2] == ['quickstart: starting', 'reading data: digits']
    assert lines[2].startswith('compiling the training step; on a CPU this takes about ')
    assert lines[3].startswith('lenet: ') and '64 training and 360 test images' in lines[3]
    assert lines[4].startswith('epoch 1/1 ')
    last, plot = lines[-2:]
    with np.load(workdir / 'outcomes.npz') as stored:
        correct = int(stored['correct'][-1].sum())
    assert last.startswith(f'{correct} of 360 correct, ')
    assert '95% CI' in last
    assert plot == f'plot: {workdir}/curves.png'
    assert (workdir / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert first.stderr == ''
    assert any(path.name.startswith('events.out.tfevents') for path in workdir.iterdir())

    again = run(*common)
    assert again.returncode == 0
    assert last in again.stdout

    evaluated = run(*common, '--mode=eval', '--checkpoint=best')
    assert evaluated.returncode == 0, evaluated.stderr
    assert f'{correct} of 360 correct' in evaluated.stdout
    by_itself = run('--mode=eval', '--checkpoint=best', f'--workdir={workdir}')
    assert by_itself.returncode == 0, by_itself.stderr
    assert by_itself.stdout.splitlines()[1:] == evaluated.stdout.splitlines()[1:]

    refused = run(*common, '--config.model.noise_level=0.25')
    assert refused.returncode == 2
    assert 'model.noise_level: 0.5 -> 0.25' in refused.stderr


def test_time_budget_stops_with_75_and_a_setting_without_effect_is_noted(tmp_path):
    data = write_npz(tmp_path / 'data.npz')
    common = (*TINY, f'--config.data.path={data}', f'--workdir={tmp_path}/run', '--config.model.kernel_size=5')
    stopped = run(*common, '--time_budget=0')
    assert stopped.returncode == 75
    assert 'the same command resumes the run' in stopped.stderr
    assert 'config.model.kernel_size=5 has no effect' in stopped.stderr
    assert run(*common).returncode == 0


def test_a_signal_soon_after_the_start_ends_with_75(tmp_path):
    pipe, errors = tmp_path / 'pipe', tmp_path / 'errors'
    os.mkfifo(pipe)
    process = start(CONFIG, f'--workdir={tmp_path}/run', stdout=pipe, stderr=errors)
    with open(pipe) as output:
        assert output.readline() == 'quickstart: starting\n'
        os.kill(process, signal.SIGINT)
        output.read()
    assert wait(process) == 75
    assert errors.read_text().splitlines()[-1] == 'stopped: received SIGINT; the same command resumes the run'


def test_runtime_needs_neither_tensorflow_nor_torch_nor_tfds(tmp_path):
    """A whole run with the three made impossible to import."""
    for name in ('tensorflow', 'torch', 'tensorflow_datasets'):
        (tmp_path / f'{name}.py').write_text(f'raise ImportError("{name} is not installed")')
    small = ('--config.data.train_examples=64', '--config.data.image_size=8')
    done = run_new_interpreter(*DIGITS, *small, f'--workdir={tmp_path}/run', python_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'of 360 correct' in done.stdout


def test_first_line_comes_before_anything_large_is_imported(tmp_path):
    """Otherwise the screen stays blank for as long as importing jax takes, many seconds on a busy machine."""
    (tmp_path / 'jax.py').write_text('raise SystemExit("importing jax")')
    done = run_new_interpreter(CONFIG, f'--workdir={tmp_path}/run', python_path=tmp_path)
    assert done.stdout == 'quickstart: starting\n'
    assert 'importing jax' in done.stderr
