"""Prepared TFDS sets without TensorFlow, and what happens where a set is not prepared."""

import pwd
import re
import shutil
import socket
import sys
from pathlib import Path

import image_sets
import numpy as np
import pytest
from image_sets import data_config

from pnn_jax.data import load_dataset
from pnn_jax.data.streams import open_stream
from pnn_jax.data.tfds import NAMES
from pnn_jax.errors import InputError

IMAGES = image_sets.random_images(0, 12, 32, 32, 3)


@pytest.fixture(scope='session')
def prepared(tmp_path_factory) -> Path:
    """A folder in which 'cifar10' is prepared: 8 training and 4 test images, label i % 3."""
    labels = [i % 3 for i in range(12)]
    splits = {'train': range(8), 'test': range(8, 12)}
    return image_sets.write_tfds(tmp_path_factory.mktemp('tfds'), IMAGES, labels, splits)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('the network was asked for')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def test_prepared_set_is_read_exactly(prepared, tmp_path):
    dataset = load_dataset(data_config('tfds', prepared, cache_dir=str(tmp_path)))
    assert dataset.name == 'cifar10' and dataset.class_names == ('ant', 'bee', 'cow')
    position = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    for split, expected in ((dataset.train, range(8)), (dataset.test, range(8, 12))):
        found = [position[image.tobytes()] for image in split.images]
        assert sorted(found) == list(expected)
        np.testing.assert_array_equal(split.labels, np.array(found) % 3)
    again = load_dataset(data_config('tfds', prepared, cache_dir=str(tmp_path)))
    assert again.digest == dataset.digest and len(list(tmp_path.iterdir())) == 2
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('name', NAMES)
def test_unprepared_set_stops_at_once_with_the_command(tmp_path, name, caplog):
    with pytest.raises(InputError) as error:
        load_dataset(data_config('tfds', tmp_path, name=name))
    assert str(error.value).endswith(f'python -m pnn_jax.prepare --name={name} --path={tmp_path}')
    assert '\n' not in str(error.value) and not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, 'get_default_data_dir', lambda: str(tmp_path))
    with pytest.raises(InputError, match=f'not prepared in {tmp_path}; .* --name=mnist$'):
        load_dataset(data_config('tfds', '', name='mnist'))


def test_default_folder_needs_a_home_directory(monkeypatch, capsys, tmp_path):
    import tensorflow_datasets as tfds

    from pnn_jax import prepare

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HOME')
    monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', lambda uid: {}[uid])  # as for a user without an entry
    message = 'empty: the default of tfds.=.*: the home directory of ~ is not known'
    with pytest.raises(InputError, match=rf'^config\.data\.path .{message}'):
        load_dataset(data_config('tfds', ''))
    monkeypatch.setitem(sys.modules, 'tensorflow', tfds)
    assert prepare.main(['--name=cifar10']) == 2
    assert re.match(f'error: --path .{message}.*\n$', capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_urls_are_refused_before_anything_is_downloaded(monkeypatch, capsys):
    import tensorflow_datasets as tfds

    from pnn_jax import prepare

    with pytest.raises(InputError, match=r'^config\.data\.path=gs://bucket/x: URLs are not read'):
        load_dataset(data_config('tfds', 'gs://bucket/x'))
    monkeypatch.setitem(sys.modules, 'tensorflow', tfds)
    assert prepare.main(['--name=cifar10', '--path=gs://bucket/x']) == 2
    assert capsys.readouterr().err.startswith('error: --path=gs://bucket/x: URLs are not read')


def test_what_systems_leave_is_no_change_of_the_set(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / 'data')
    expected = open_stream(data_config('stream_tfds', root, image_size=8)).digest
    for name in ('.DS_Store', 'desktop.ini'):
        (root / 'cifar10' / '3.0.2' / name).write_bytes(b'x')
    assert open_stream(data_config('stream_tfds', root, image_size=8)).digest == expected
    load_dataset(data_config('tfds', root, cache_dir=str(tmp_path / 'kept')))
    (root / 'cifar10' / '3.0.2' / 'Thumbs.db').write_bytes(b'x')
    load_dataset(data_config('tfds', root, cache_dir=str(tmp_path / 'kept')))
    assert len(list((tmp_path / 'kept').iterdir())) == 2


def test_set_prepared_in_another_format_or_damaged_is_named(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / 'data')
    info = root / 'cifar10' / '3.0.2' / 'dataset_info.json'
    content = info.read_text()
    assert '"array_record"' in content
    info.write_text(content.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r'prepared as tfrecord, which only TensorFlow reads; .*--name=cifar10'):
        load_dataset(data_config('tfds', root))
    info.write_text(content[: len(content) // 2])
    with pytest.raises(InputError, match=r'3\.0\.2 cannot be read'):
        load_dataset(data_config('tfds', root))


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'rotten'])
def test_damaged_records_are_named(prepared, tmp_path, damage):
    root = shutil.copytree(prepared, tmp_path / 'data')
    (shard,) = (root / 'cifar10' / '3.0.2').glob('*test*')
    content = shard.read_bytes()
    if damage == 'missing':
        shard.unlink()
    elif damage == 'truncated':
        shard.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        shard.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(InputError, match=r'cifar10/3\.0\.2'):
        load_dataset(data_config('tfds', root))


def test_unknown_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.name='imagenet': must be one of cifar10, "):
        load_dataset(data_config('tfds', tmp_path, name='imagenet'))


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(InputError, match='needs the package tensorflow-datasets'):
        load_dataset(data_config('tfds', tmp_path))


def test_prepare_without_tensorflow_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    from pnn_jax import prepare

    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    assert prepare.main(['--name=cifar10', f'--path={tmp_path}']) == 2
    shown = capsys.readouterr()
    assert shown.out == ''
    assert shown.err == "error: preparing data needs TensorFlow: pip install 'pnn-jax[prepare]'\n"


def test_prepare_asks_tfds_for_array_record(monkeypatch, capsys, tmp_path):
    import tensorflow_datasets as tfds

    from pnn_jax import prepare

    asked = []

    class Builder:
        data_path = tmp_path / 'cifar10'

        def download_and_prepare(self):
            asked.append('prepared')

    def builder(name, **options):
        asked.append((name, options))
        return Builder()

    monkeypatch.setitem(sys.modules, 'tensorflow', tfds)
    monkeypatch.setattr(tfds, 'builder', builder)
    assert prepare.main(['--name=cifar10', f'--path={tmp_path}']) == 0
    assert asked == [('cifar10', {'data_dir': str(tmp_path), 'file_format': 'array_record'}), 'prepared']
    assert capsys.readouterr().out == f'prepared: {tmp_path}/cifar10\n'

    def offline(name, **options):
        raise ConnectionError('no route\nto host')

    monkeypatch.setattr(tfds, 'builder', offline)
    assert prepare.main(['--name=cifar10']) == 1
    assert capsys.readouterr().err == 'error: cifar10 cannot be prepared (ConnectionError: no route to host)\n'
