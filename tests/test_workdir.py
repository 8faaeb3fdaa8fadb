"""The workdir: one process at a time, one run only, files that are whole at every instant."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from pnn_jax.errors import InputError, RunError
from pnn_jax.run.workdir import Workdir

LABELS = np.arange(5)


def make_config(**changes) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(
        {
            'seed': 0,
            'num_seeds': 1,
            'num_epochs': 3,
            'eval_batch_size': 10,
            'model': {'name': 'lenet', 'dropout_rate': 0.3},
            'data': {'path': '', 'mean': (0.1, 0.2), 'cache_dir': ''},
            'checkpoint': {'keep': 0},
            'log': {'every_steps': 5},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def outcomes_of(epoch: int) -> np.ndarray:
    return np.arange(5) < epoch


def metrics_of(epoch: int) -> dict:
    return {'epoch': epoch, 'test_accuracy': epoch / 5, 'test_loss': 0.1 + epoch}


def open_with_epochs(path, num_epochs: int) -> Workdir:
    workdir = Workdir.open(path, make_config())
    workdir.set_examples(LABELS, 'digest')
    for epoch in range(len(workdir.history) + 1, num_epochs + 1):
        workdir.append_epoch(metrics_of(epoch), outcomes_of(epoch))
    return workdir


def tree_of(path) -> dict[str, bytes]:
    """Every file under a folder, with its content."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}


def test_opening_writes_nothing(tmp_path):
    Workdir.open(tmp_path / 'new', make_config()).close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'empty').mkdir()
    Workdir.open(tmp_path / 'empty', make_config()).close()
    assert list((tmp_path / 'empty').iterdir()) == []


def test_an_attempt_that_saved_nothing_binds_nobody(tmp_path):
    with Workdir.open(tmp_path, make_config()) as workdir:
        workdir.begin()  # config.json is there, a checkpoint is not
    with Workdir.open(tmp_path, make_config(seed=7)) as workdir:
        workdir.begin()
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 7


@pytest.mark.parametrize(
    'number, message',
    [
        (errno.ENOSYS, 'has no file locks .* add --nolock'),
        (errno.ENOLCK, 'has no file locks .* add --nolock'),
        (errno.EOPNOTSUPP, 'has no file locks .* add --nolock'),
        (errno.EACCES, 'cannot be locked'),
        (errno.EWOULDBLOCK, 'in use by another process'),
    ],
)
def test_a_lock_that_is_refused_says_why(tmp_path, monkeypatch, number, message):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with pytest.raises(InputError, match=message):
        Workdir.open(tmp_path, make_config())
    with Workdir.open(tmp_path, make_config(), lock=False) as workdir:
        workdir.begin()
    assert (tmp_path / 'config.json').exists()


def test_a_new_run_leaves_the_files_of_the_design(tmp_path):
    with open_with_epochs(tmp_path / 'a' / 'run', 2) as workdir:
        assert workdir.result() is None
        workdir.write_result({'final_test_accuracy': 0.4})
        assert workdir.checkpoints_dir == tmp_path / 'a' / 'run' / 'checkpoints'
    path = tmp_path / 'a' / 'run'
    assert {file.name for file in path.iterdir()} == {
        'config.json',
        'metrics.jsonl',
        'outcomes.npz',
        'result.json',
        'lock',
    }
    assert json.loads((path / 'config.json').read_text())['model'] == {'name': 'lenet', 'dropout_rate': 0.3}
    assert [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()] == [
        metrics_of(1),
        metrics_of(2),
    ]
    assert json.loads((path / 'result.json').read_text()) == {'final_test_accuracy': 0.4}
    with np.load(path / 'outcomes.npz') as stored:
        assert stored['correct'].dtype == np.bool_ and stored['labels'].dtype == np.int32
        np.testing.assert_array_equal(stored['correct'], [outcomes_of(1), outcomes_of(2)])
        np.testing.assert_array_equal(stored['labels'], LABELS)
        assert stored['test_digest'] == 'digest'


def test_a_continued_run_sees_what_was_done(tmp_path):
    open_with_epochs(tmp_path, 2).close()
    with open_with_epochs(tmp_path, 3) as workdir:
        assert workdir.history == [metrics_of(epoch) for epoch in (1, 2, 3)]
        np.testing.assert_array_equal(workdir.outcomes, [outcomes_of(epoch) for epoch in (1, 2, 3)])


def test_epochs_after_the_restored_checkpoint_are_forgotten(tmp_path):
    with open_with_epochs(tmp_path, 3) as workdir:
        workdir.write_result({'done': True})
    with Workdir.open(tmp_path, make_config()) as workdir:
        assert workdir.result() == {'done': True}
        workdir.set_examples(LABELS, 'digest')
        workdir.truncate(3)
        assert workdir.result() == {'done': True}
        workdir.truncate(1)
        assert (tmp_path / 'result.json').exists()  # nothing is written before there is something to save
        workdir.begin()
        assert workdir.result() is None and not (tmp_path / 'result.json').exists()
        assert workdir.history == [metrics_of(1)]
        assert (tmp_path / 'metrics.jsonl').read_text() == json.dumps(metrics_of(1)) + '\n'
        with pytest.raises(RunError, match='has 1 complete epochs, but the checkpoint is of epoch 2'):
            workdir.truncate(2)
        with pytest.raises(ValueError, match='epoch 3 '):
            workdir.append_epoch(metrics_of(3), outcomes_of(3))
        workdir.append_epoch(metrics_of(2), ~outcomes_of(2))
    with np.load(tmp_path / 'outcomes.npz') as stored:
        np.testing.assert_array_equal(stored['correct'], [outcomes_of(1), ~outcomes_of(2)])


def test_more_epochs_make_the_result_stale(tmp_path):
    with open_with_epochs(tmp_path, 2) as workdir:
        workdir.write_result({'done': True})
        workdir.append_epoch(metrics_of(3), outcomes_of(3))
        assert workdir.result() is None and not (tmp_path / 'result.json').exists()


@pytest.mark.parametrize('tail', ['{"epoch": 3, "test_acc', '\0\0\0', '{"epoch": 3}'])
def test_an_unfinished_last_line_does_not_count(tmp_path, tail):
    open_with_epochs(tmp_path, 2).close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write(tail)
    with open_with_epochs(tmp_path, 3) as workdir:
        assert len(workdir.history) == 3
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [metrics_of(epoch) for epoch in (1, 2, 3)]


def test_killed_between_outcomes_and_line(tmp_path):
    """The outcomes then have a row that no line speaks of."""
    open_with_epochs(tmp_path, 2).close()
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'metrics.jsonl').write_text(lines[0])
    with open_with_epochs(tmp_path, 2):
        pass
    with np.load(tmp_path / 'outcomes.npz') as stored:
        np.testing.assert_array_equal(stored['correct'], [outcomes_of(1), outcomes_of(2)])


@pytest.mark.parametrize(
    'name,content',
    [
        ('metrics.jsonl', b'nonsense\n'),
        ('metrics.jsonl', b'{"epoch": 2}\n'),
        ('metrics.jsonl', b'[1]\n'),
        ('outcomes.npz', b''),
        ('outcomes.npz', b'PK\x03\x04 and nothing'),
        ('config.json', b'{'),
        ('config.json', b'[]'),
        ('result.json', b'\xff\xfe'),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    open_with_epochs(tmp_path, 1).close()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=f'{name} is damaged'):
        Workdir.open(tmp_path, make_config())


def test_missing_outcomes_are_named(tmp_path):
    open_with_epochs(tmp_path, 1).close()
    (tmp_path / 'outcomes.npz').unlink()
    with pytest.raises(RunError, match='outcomes.npz is damaged'):
        Workdir.open(tmp_path, make_config())


def test_another_runs_directory_is_refused_naming_every_field(tmp_path):
    open_with_epochs(tmp_path, 1).close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != 'lock'}
    other = make_config(**{'seed': 7, 'model.name': 'cifarnet', 'data.mean': (0.1, 0.3), 'num_epochs': 0})
    other.data.std = (1.0,)
    del other.model['dropout_rate']
    with pytest.raises(InputError) as refusal:
        Workdir.open(tmp_path, other)
    for words in (
        'seed: 0 -> 7',
        "model.name: 'lenet' -> 'cifarnet'",
        'data.mean: [0.1, 0.2] -> [0.1, 0.3]',
        "data.std: 'absent' -> [1.0]",
        'model.dropout_rate: 0.3 -> 0.5',
        'num_epochs: 1 are done -> 0',
    ):
        assert words in str(refusal.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != 'lock'} == before


def test_what_computes_nothing_may_change(tmp_path):
    open_with_epochs(tmp_path, 1).close()
    changes = {
        'num_epochs': 9,
        'eval_batch_size': 1,
        'checkpoint.keep': 5,
        'log.every_steps': 1,
        'data.path': 'x',
        'data.cache_dir': 'y',
    }
    before = tree_of(tmp_path)
    Workdir.open(tmp_path, make_config(**changes)).close()
    assert tree_of(tmp_path) == before  # nothing was done
    with Workdir.open(tmp_path, make_config(**changes)) as workdir:
        workdir.begin()
    assert json.loads((tmp_path / 'config.json').read_text())['num_epochs'] == 9
    Workdir.open(tmp_path, make_config(num_epochs=1)).close()  # one epoch is done
    with pytest.raises(InputError, match='num_epochs: 1 are done -> 0'):
        Workdir.open(tmp_path, make_config(num_epochs=0))


def test_files_of_an_unknown_run_are_refused(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('')
    with pytest.raises(InputError, match='metrics.jsonl but no config.json'):
        Workdir.open(tmp_path, make_config())


def test_a_lock_that_its_owner_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Another process was refused, and removes the file between our opening it and locking it."""
    lock, flock = tmp_path / 'lock', fcntl.flock
    removed = []

    def locked_too_late(descriptor, operation):
        if not removed:
            lock.unlink()
            removed.append(lock)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', locked_too_late)
    with Workdir.open(tmp_path, make_config()):
        assert removed and lock.exists()
        with pytest.raises(InputError, match='in use'), Workdir.open(tmp_path, make_config()):
            pass


def test_a_second_opening_is_refused_and_names_the_first(tmp_path):
    (tmp_path / 'lock').write_text('process 4194305 on another-host')  # which was killed
    named = rf'in use by another process \(process {os.getpid()} on [^)]*\);'
    with Workdir.open(tmp_path, make_config()), pytest.raises(InputError, match=named):
        Workdir.open(tmp_path, make_config())
    assert (tmp_path / 'lock').read_text() == ''
    Workdir.open(tmp_path, make_config()).close()


def test_the_result_of_all_seeds_goes_when_one_is_trained_for_longer(tmp_path):
    with Workdir.open(tmp_path, make_config(num_seeds=2)) as parent:
        with Workdir.open(tmp_path / 'seed_0', make_config(), parent=parent) as workdir:
            workdir.set_examples(LABELS, 'digest')
            workdir.append_epoch(metrics_of(1), outcomes_of(1))
        parent.write_result({'num_seeds': 2})
        with Workdir.open(tmp_path / 'seed_0', make_config(), parent=parent) as workdir:
            assert parent.result() is not None
            workdir.set_examples(LABELS, 'digest')
            workdir.append_epoch(metrics_of(2), outcomes_of(2))
        assert parent.result() is None and not (tmp_path / 'result.json').exists()


def test_other_test_data_is_refused(tmp_path):
    open_with_epochs(tmp_path, 1).close()
    with Workdir.open(tmp_path, make_config()) as workdir, pytest.raises(InputError, match='trained on other data'):
        workdir.set_examples(LABELS, 'another digest')


def test_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below', '/proc/nowhere'):
        with pytest.raises(InputError, match='--workdir=.*: cannot be used'):
            Workdir.open(path, make_config())


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    with open_with_epochs(tmp_path, 1) as workdir:

        def no_space(descriptor):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(os, 'fsync', no_space)
        with pytest.raises(RunError, match='outcomes.npz not written: No space left'):
            workdir.append_epoch(metrics_of(2), outcomes_of(2))
        monkeypatch.undo()
    with open_with_epochs(tmp_path, 1) as workdir:
        assert workdir.history == [metrics_of(1)]
    assert not list(tmp_path.glob('*.tmp'))


@pytest.mark.slow
def test_a_crash_leaves_no_lock(tmp_path):
    open_with_epochs(tmp_path, 1).close()
    holder = (
        'import signal, sys; from pnn_jax.run.workdir import Workdir, read_config\n'
        'workdir = Workdir.open(sys.argv[1], read_config(sys.argv[1])); workdir.begin()\n'
        'print("locked", flush=True); signal.pause()'
    )
    process = subprocess.Popen([sys.executable, '-c', holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'locked\n'
        with pytest.raises(InputError, match=f'process {process.pid} on '):
            Workdir.open(tmp_path, make_config())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    Workdir.open(tmp_path, make_config()).close()
