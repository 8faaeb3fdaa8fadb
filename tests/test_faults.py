"""What public bug reports of other trainers found in this one: each report, as a user makes it, and what must happen.

Every run is a process of its own, forked (see command_line.py). All of them train the same tiny network.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from command_line import QUICKSTART, ROOT, run
from tiny_runs import NO_PLOT, NUM_TEST, QUICK_COMPILATION, TINY, tree_of, write_npz

from pnn_jax.errors import InputError
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.run.provenance import provenance
from pnn_jax.run.workdir import Workdir, read_config

pytestmark = pytest.mark.slow

NO_HOME = """
import os, pwd
os.environ.pop('HOME', None)
def unknown(*arguments):
    raise KeyError('no passwd entry')
pwd.getpwuid = pwd.getpwnam = unknown
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> pathlib.Path:
    """A data set. One class is named in a script that ASCII lacks."""
    return write_npz(tmp_path_factory.mktemp('data') / 'data.npz', names=['кот', 'dog', 'owl'])


@pytest.fixture(scope='module')
def other_data(tmp_path_factory) -> pathlib.Path:
    return write_npz(tmp_path_factory.mktemp('data') / 'other.npz', seed=1, names=['кот', 'dog', 'owl'])


def train(workdir, data, *arguments, setup='', **options):
    common = (*TINY, f'--config.data.path={data}', f'--workdir={workdir}')
    return run(*common, *arguments, setup=f'{NO_PLOT}\n{setup}', **options)


@pytest.fixture(scope='module')
def finished_once(tmp_path_factory, data) -> tuple[pathlib.Path, str]:
    workdir = tmp_path_factory.mktemp('finished')
    done = train(workdir, data)
    assert done.returncode == 0, done.stderr
    return workdir, next(line for line in done.stdout.splitlines() if f' of {NUM_TEST} correct, ' in line)


@pytest.fixture
def finished(finished_once, tmp_path) -> pathlib.Path:
    """The workdir of a finished run, of this test alone."""
    return shutil.copytree(finished_once[0], tmp_path / 'finished')


@pytest.fixture
def result_line(finished_once) -> str:
    """The line that the finished run printed."""
    return finished_once[1]


def assert_refused(done, *words):
    """One line on standard error, exit code 2."""
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith('error: '), done.stderr
    for word in words:
        assert word in done.stderr


# Row 1


def test_finished_run_is_never_shown_as_that_of_other_data(finished, other_data, data, tmp_path):
    before = tree_of(finished)
    assert_refused(train(finished, other_data), 'trained on other data')
    same_path = shutil.copy(data, tmp_path / 'changed.npz')
    assert train(finished, same_path).returncode == 0
    shutil.copy(other_data, same_path)
    assert_refused(train(finished, same_path), 'trained on other data')
    assert tree_of(finished) == before


def test_result_names_the_code_that_computed_it(finished):
    code = json.loads((finished / 'result.json').read_text())['code']
    assert code == provenance()


# Row 2


def test_refused_attempt_does_not_lock_out_the_original_command(finished, data, other_data, result_line):
    before = tree_of(finished)
    assert_refused(train(finished, other_data, '--config.num_epochs=3'), 'trained on other data')
    assert_refused(train(finished, data, '--config.num_epochs=1'), 'num_epochs: 2 are done -> 1')
    done = train(finished, data)
    assert done.returncode == 0 and result_line in done.stdout
    assert tree_of(finished) == before


def test_interrupted_attempt_does_not_lock_out_the_original_command(finished, data, result_line):
    result = (finished / 'result.json').read_bytes()
    assert train(finished, data, '--config.num_epochs=200', '--time_budget=0').returncode == 75
    done = train(finished, data)
    assert done.returncode == 0 and result_line in done.stdout
    assert (finished / 'result.json').read_bytes() == result


# Rows 3 and 17


def test_two_classes_of_one_name_are_refused(tmp_path):
    twice = write_npz(tmp_path / 'twice.npz', names=['cat', 'dog', 'cat'])
    assert_refused(train(tmp_path / 'run', twice), "both named 'cat'")
    assert not (tmp_path / 'run').exists()


def test_class_without_training_examples_is_named(finished, tmp_path):
    from_1 = write_npz(tmp_path / 'from_1.npz', first_label=1)
    done = train(finished, from_1)  # refused after it was read
    assert "note: classes without a training example (1 of 4): '0'; labels count from 0" in done.stdout


# Rows 4 and 5


@pytest.mark.parametrize('url', ['s3://bucket/x', 'gs://bucket/x', 'file:///tmp/x', 'hdfs:/x'])
@pytest.mark.parametrize('flag', ['workdir', 'compilation_cache', 'config.data.path'])
def test_url_is_refused_at_the_start(tmp_path, data, flag, url):
    done = run(*TINY, f'--config.data.path={data}', f'--workdir={tmp_path}/run', f'--{flag}={url}', cwd=tmp_path)
    assert_refused(done, f'{flag}={url}: URLs are not read or written')
    assert list(tmp_path.iterdir()) == []


def test_tilde_is_the_home_directory(finished, data, tmp_path, result_line):
    home, folder = tmp_path / 'home', tmp_path / 'folder'
    home.mkdir()
    folder.mkdir()
    finished.rename(home / 'run')
    setup = f'import os; os.environ["HOME"] = {str(home)!r}'
    done = train('~/run', data, '--compilation_cache=~/cache', cwd=folder, setup=setup)
    assert done.returncode == 0 and result_line in done.stdout
    setup += f'\n{QUICK_COMPILATION}'
    done = train('~/other', data, '--compilation_cache=~/cache', '--time_budget=0', cwd=folder, setup=setup)
    assert done.returncode == 75
    assert (home / 'other' / 'checkpoints').is_dir() and (home / 'cache').is_dir()
    assert list(folder.iterdir()) == []
    (home / 'mine.py').write_text('raise NotImplementedError("found")')
    assert_refused(run('--config=~/mine.py', setup=setup), 'NotImplementedError: found', f'{home}/mine.py, line 1')


# Row 6


@pytest.mark.parametrize('name', ['ENOSYS', 'ENOLCK', 'EOPNOTSUPP'])
def test_file_system_without_locks_is_said_and_has_a_way_on(finished, data, result_line, name):
    setup = f"""
import errno, fcntl, os
def flock(*arguments):
    raise OSError(errno.{name}, os.strerror(errno.{name}))
fcntl.flock = flock
"""
    before = tree_of(finished)
    assert_refused(train(finished, data, setup=setup), 'has no file locks', 'add --nolock')
    done = train(finished, data, '--nolock', setup=setup)
    assert done.returncode == 0 and result_line in done.stdout
    assert tree_of(finished) == before


# Row 7


def test_path_with_tilde_and_no_home_directory_is_one_line(tmp_path, data):
    for flag in ('workdir', 'compilation_cache', 'config.data.path'):
        done = run(*TINY, f'--config.data.path={data}', f'--workdir={tmp_path}/run', f'--{flag}=~/x', setup=NO_HOME)
        assert_refused(
            done, f'--{flag}=~/x' if flag != 'config.data.path' else 'config.data.path=~/x', 'home directory'
        )
    assert not (tmp_path / 'run').exists()


def test_run_needs_no_home_directory(finished, data, result_line):
    done = train(finished, data, setup=NO_HOME)
    assert done.returncode == 0 and result_line in done.stdout


# Rows 8, 19 and 20


def test_run_with_a_flagfile_is_named_after_its_config(tmp_path, data):
    (tmp_path / 'flags').write_text('\n'.join([*TINY, f'--config.data.path={data}', '--time_budget=0']))
    assert run('--flagfile=flags', cwd=tmp_path).returncode == 75
    assert (tmp_path / 'runs' / 'quickstart' / 'checkpoints').is_dir()
    assert [path.name for path in (tmp_path / 'runs').iterdir()] == ['quickstart']


def test_config_given_twice_is_one_line(tmp_path):
    (tmp_path / 'flags').write_text(f'--config={ROOT}/configs/baseline.py')
    for second in (f'--config={ROOT}/configs/baseline.py', '--flagfile=flags'):
        done = run(f'--config={QUICKSTART}', second, f'--workdir={tmp_path}/run', cwd=tmp_path)
        assert_refused(done, f'--config is given twice ({QUICKSTART} and {ROOT}/configs/baseline.py)')
    assert not (tmp_path / 'run').exists()


def test_config_finds_its_own_neighbours(finished, data, result_line, tmp_path):
    """Another project's `configs` package in the current folder is neither imported nor in the way."""
    own = tmp_path / 'own' / 'configs'
    own.mkdir(parents=True)
    (own / '__init__.py').write_text('raise ValueError("the wrong package was imported")')
    (own / 'default.py').write_text('def get_config():\n    raise ValueError("the wrong neighbour was imported")')
    done = train(finished, data, cwd=own.parent)
    assert done.returncode == 0 and result_line in done.stdout

    (own / '__init__.py').write_text('')
    (own / 'mine.py').write_text('from configs import default\ndef get_config():\n    return default.get_config()')
    done = run('--config=configs/mine.py', f'--workdir={tmp_path}/run', cwd=own.parent)
    assert_refused(done, 'the wrong neighbour was imported')


# Row 9


@pytest.mark.parametrize(
    'how',
    ['runpy.run_path("pnn_jax/main.py", run_name="__main__")', 'runpy.run_module("pnn_jax.main", None, "__main__")'],
)
def test_process_of_somebody_else_is_never_replaced(how):
    """As %run in a notebook does it, and the debuggers."""
    code = f"""
import os, runpy, sys
def replaced(*arguments):
    print('the process was replaced', flush=True)
    os._exit(99)
os.execv = os.execve = replaced
sys.path.insert(0, '')
sys.argv = ['pnn_jax/main.py', '--config=nothing']
{how}
"""
    environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'error: --config=nothing: there is no such file\n'


# Row 11


def test_characters_that_a_terminal_lacks_are_written_as_escapes(tmp_path, data):
    setup = "import sys; sys.stdout = open(1, 'w', encoding='ascii', closefd=False)"
    done = train(tmp_path / 'run', data, setup=setup)
    assert done.returncode == 0 and done.stderr == ''
    assert r'\u043a\u043e\u0442' in done.stdout and f' of {NUM_TEST} correct, ' in done.stdout
    assert (tmp_path / 'run' / 'result.json').is_file()


def test_full_disk_behind_standard_output_changes_nothing(tmp_path, data):
    done = train(tmp_path / 'run', data, stdout='/dev/full')
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'run' / 'result.json').is_file()


def test_reader_that_closes_the_pipe_changes_nothing(tmp_path, data):
    """As `| head -1`."""
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    lines = []

    def head():
        with open(pipe) as file:
            lines.append(file.readline())

    reader = threading.Thread(target=head)
    reader.start()
    done = train(tmp_path / 'run', data, stdout=pipe)
    reader.join()
    assert lines == ['quickstart: starting\n']
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'run' / 'result.json').is_file()


def test_closed_standard_streams_change_nothing(finished, data):
    """As `>&- 2>&-`: Python then has no streams, and the next file that is opened gets their number."""
    before = tree_of(finished)
    setup = 'import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None'
    assert train(finished, data, setup=setup) == (0, '', '')
    assert train(finished, data, '--config.seed=1', setup=setup) == (2, '', '')
    assert tree_of(finished) == before


# Row 12


def test_loss_that_is_not_finite_before_anything_was_saved(tmp_path, data):
    rate = '--config.optimizer.learning_rate=1e38'
    done = train(tmp_path / 'run', data, rate, '--config.log.every_steps=1')
    assert done.returncode == 1
    assert 'not finite' in done.stderr and 'nothing was saved' in done.stderr and 'last checkpoint' not in done.stderr
    assert not (tmp_path / 'run').exists()
    assert train(tmp_path / 'run', data, '--time_budget=0').returncode == 75  # the default rate is accepted


# Row 13


@pytest.mark.parametrize('limit', [2**9, 2**14])
def test_full_disk_is_one_line_with_its_cause(tmp_path, data, limit):
    """A limit on the size of files fails the first file of the run, or the checkpoint inside of orbax."""
    setup = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))'
    done = train(tmp_path / 'run', data, setup=setup)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith('error: ') and 'not written' in lines[-1] and 'File too large' in lines[-1]
    assert len([line for line in lines if line]) == 1, done.stderr
    assert (tmp_path / 'run').exists() == (limit > 2**9)  # where nothing was done, nothing is left


def test_failure_of_a_disk_that_nothing_else_reports_is_one_line(tmp_path, data):
    setup = """
import errno, os, pnn_jax.train
def train_and_evaluate(*arguments, **options):
    raise OSError(errno.EIO, os.strerror(errno.EIO), '/mnt/data')
pnn_jax.train.train_and_evaluate = train_and_evaluate
"""
    done = train(tmp_path / 'run', data, setup=setup)
    assert (done.returncode, done.stderr) == (1, 'error: /mnt/data: Input/output error\n')


def test_file_that_cannot_be_read_is_named(finished):
    (finished / 'metrics.jsonl').unlink()
    (finished / 'metrics.jsonl').mkdir()
    with pytest.raises(InputError, match=r'metrics.jsonl cannot be read \(Is a directory\)'):
        Workdir.open(finished, read_config(finished))


def test_refused_attempt_leaves_no_folder_above_its_workdir(tmp_path, finished):
    Workdir.open(tmp_path / 'runs' / 'new', read_config(finished)).close()
    assert not (tmp_path / 'runs').exists()


# Rows 15 and 16


def test_training_in_a_converted_workdir_says_that_it_was_converted(finished, data):
    """A conversion knows no data set: its checkpoint has an empty digest of the data."""
    with Checkpointer(finished / 'checkpoints', read_only=True) as original:
        arrays, record = original.read('latest')
    for name in ('metrics.jsonl', 'outcomes.npz', 'result.json'):
        (finished / name).unlink()
    for checkpoint in (finished / 'checkpoints').glob('*_step_*'):
        shutil.rmtree(checkpoint)
    with Checkpointer(finished / 'checkpoints') as converted:
        converted.save(record['step'], arrays, record['meta'] | {'data_digest': ''}, accuracy=None)
    before = tree_of(finished)
    assert_refused(train(finished, data), 'was converted', 'only be evaluated', '--mode=eval')
    assert tree_of(finished) == before
    assert train(finished, data, '--mode=eval').returncode == 0


def test_evaluation_on_another_number_of_classes_names_both(finished, tmp_path):
    ten = write_npz(tmp_path / 'ten.npz', classes=10)
    before = tree_of(finished)
    assert_refused(train(finished, ten, '--mode=eval'), 'the network has 3 classes, the data 10')
    assert tree_of(finished) == before


def test_evaluation_on_images_of_another_size_names_both(finished, data, tmp_path):
    with np.load(data) as file:
        arrays = dict(file)
    for split in ('train', 'test'):
        arrays[f'{split}_images'] = np.repeat(np.repeat(arrays[f'{split}_images'], 2, axis=1), 2, axis=2)
    np.savez(tmp_path / 'large.npz', **arrays)
    assert_refused(
        train(finished, tmp_path / 'large.npz', '--mode=eval'), 'trained on images of another size', 'which are 16x16'
    )
