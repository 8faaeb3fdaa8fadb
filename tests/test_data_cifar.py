"""CIFAR's folders and archives, and pickles read as data."""

import io
import pickle
import pickletools
import tarfile

import image_sets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_sets import cifar_batches, data_config, write_cifar_archive, write_cifar_folder

from pnn_jax.data import load_dataset
from pnn_jax.data.pickles import PickleError, read_pickle
from pnn_jax.errors import InputError


def test_folder_parent_archive_and_folder_of_archive_agree(tmp_path):
    files = cifar_batches()
    folder = write_cifar_folder(tmp_path / 'a', files)
    archive = write_cifar_archive(tmp_path / 'cifar-10-python.tar.gz', files)
    paths = (folder, tmp_path / 'a', archive, tmp_path)
    datasets = [load_dataset(data_config('cifar', path)) for path in paths]
    assert len({dataset.digest for dataset in datasets}) == 1
    dataset = datasets[0]
    assert dataset.name == 'cifar10' and dataset.class_names[3] == 'class 3'
    np.testing.assert_array_equal(dataset.train.labels, [0, 9, 1, 8, 2, 7, 3, 6, 4, 5])
    assert dataset.train.images.shape == (10, 32, 32, 3) and dataset.test.images.shape == (2, 32, 32, 3)
    planes = image_sets.random_images(1, 2, 3072)[1]  # second image of the second batch: red, green, blue planes
    for channel, row, column in [(0, 0, 0), (1, 3, 7), (2, 31, 30)]:
        assert dataset.train.images[3, row, column, channel] == planes[1024 * channel + 32 * row + column]


def test_set_is_found_below_the_path_where_that_is_unambiguous(tmp_path):
    files = cifar_batches()
    write_cifar_folder(tmp_path / 'data' / 'cifar10', files)
    (tmp_path / 'data' / 'meta').mkdir()
    assert len(load_dataset(data_config('cifar', tmp_path / 'data')).test.labels) == 2
    folder = write_cifar_folder(tmp_path / 'plain', files).rename(tmp_path / 'plain' / 'renamed')
    assert len(load_dataset(data_config('cifar', folder.parent)).test.labels) == 2
    write_cifar_archive(tmp_path / 'data' / 'cifar-10-python.tar.gz', files)  # in the folder itself: comes first
    assert len(load_dataset(data_config('cifar', tmp_path / 'data')).test.labels) == 2
    with pytest.raises(InputError, match=r'several folders .*: data, plain/renamed; name one of them'):
        load_dataset(data_config('cifar', tmp_path))
    with pytest.raises(InputError, match=r'no cifar-100-python or cifar-100-python\.tar\.gz in it, nor in a folder'):
        load_dataset(data_config('cifar', tmp_path, name='cifar100'))


def test_cifar100_reads_the_fine_labels(tmp_path):
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    contents = {'meta': {'fine_label_names': [f'f{i}' for i in range(100)], 'coarse_label_names': ['c']}}
    for name, count in (('train', 3), ('test', 2)):
        contents[name] = {
            'data': image_sets.random_images(0, count, 3072),
            'fine_labels': [99, 5, 7][:count],
            'coarse_labels': [0] * count,
        }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, 4))
    dataset = load_dataset(data_config('cifar', tmp_path, name='cifar100'))
    assert len(dataset.class_names) == 100 and dataset.name == 'cifar100'
    np.testing.assert_array_equal(dataset.train.labels, [99, 5, 7])


# As Python 2's cPickle wrote the original: {'labels': [6, 9], 'data': array([[1, 2, 3]], uint8)}.
PYTHON_2 = (
    b'\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x06K\teU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05'
    b'cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\t'
    b'(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\x02\x03tbu.'
)


def test_python_2_pickle_is_read_as_python_reads_it():
    expected = pickle.loads(PYTHON_2, encoding='bytes')
    result = read_pickle(PYTHON_2)
    assert result.keys() == expected.keys() and result[b'labels'] == [6, 9]
    np.testing.assert_array_equal(result[b'data'], expected[b'data'])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda children: (
        st.lists(children)
        | st.lists(children).map(tuple)
        | st.dictionaries(st.text() | st.binary() | st.integers(), children)
    ),
    max_leaves=20,
)
arrays = hnp.arrays(st.sampled_from(['u1', '<i8', '>i4', '<f4', '?']), hnp.array_shapes(max_side=4))


@settings(max_examples=150, deadline=None)
@given(plain, st.integers(0, 4))
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@settings(max_examples=60, deadline=None)
@given(arrays, st.booleans(), st.integers(2, 5))
def test_arrays_are_read_as_python_reads_them(array, transposed, protocol):
    array = array.T if transposed else array
    content = pickle.dumps([array, {'again': array}], protocol)
    expected = pickle.loads(content)[0]
    result = read_pickle(content)
    for copy in (result[0], result[1]['again']):
        assert copy.dtype == expected.dtype and copy.dtype.kind == array.dtype.kind
        np.testing.assert_array_equal(copy, array)


def test_a_numpy_scalar_is_read_as_python_reads_it():
    for value in (np.float64(0.25), np.float32(-3), np.int64(7), np.bool_(True)):
        for protocol in (2, 4):
            result = read_pickle(pickle.dumps({'accuracy': value}, protocol))['accuracy']
            assert result == value and result.dtype == value.dtype


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def multiplied_array(times: int) -> bytes:
    """A pickle of a megabyte that makes an array of it `times` times."""
    head = b'\x80\x03B' + (2**20).to_bytes(4, 'little') + bytes(2**20) + b'q\0'
    dtype = b'cnumpy\ndtype\n(X\2\0\0\0u1K\0K\1tR(K\3X\1\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbq\1'
    made = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR(K\1J\0\0\x10\0\x85h\1\x89h\0tb'
    return head + dtype + b'](' + made * times + b'e.'


def hostile_pickles(witness) -> dict[str, bytes]:
    """Pickles that would write the file `witness`, or exhaust memory or the stack, were they run."""
    import os
    import subprocess

    command = f'touch {witness}'
    return {
        'os.system': pickle.dumps(Calls(os.system, command)),
        'os.system, protocol 0': pickle.dumps(Calls(os.system, command), 0),
        'eval': pickle.dumps({'data': Calls(eval, f'open({str(witness)!r}, "w")')}, 2),
        'subprocess': pickle.dumps(Calls(subprocess.check_output, ['touch', str(witness)])),
        'open': pickle.dumps(Calls(open, str(witness), 'w'), 2),
        'inst': b'(S' + repr(command).encode() + b'\nios\nsystem\n.',
        'obj': b'(cos\nsystem\nS' + repr(command).encode() + b'\no.',
        'newobj': b'\x80\x02cnumpy\nndarray\n(K\x02t\x81.',
        'extension': b'\x80\x02\x82\x01.',
        'persistent': b'Psomething\n.',
        'numpy.load': b'cnumpy\nload\n(S' + repr(str(witness)).encode() + b'\ntR.',
        'array of objects': pickle.dumps(np.array([None, 1])),
        'huge array': b'cnumpy\nndarray\n((L1000000000000L\nttR.',
        'huge memo': b'\x80\x02Nr\xff\xff\xff\xff.',
        'huge bytearray': b'\x80\x05\x96' + b'\xff' * 6 + b'\0\0.',
        'huge scalar': b'cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vi8\nttRtR.',
        'huge text': b'\x80\x04\x8d' + b'\xff' * 7 + b'\x7f' + b'a.',
        'deep nesting as key': b'\x80\x02})' + b'\x85' * 100_000 + b'Ns.',
        # Hashing these would need more stack than a thread has (8 MB).
        'deep nesting in a set': b'\x80\x04\x8f()' + b'\x85' * 300_000 + b'\x90.',
        'deep nesting in a frozen set': b'\x80\x04()' + b'\x85' * 300_000 + b'\x91.',
        # 60 pairs of the same pair twice: hashing it takes 2**60 steps.
        'wide nesting as key': b'\x80\x02})' + b'q\0h\0\x86' * 60 + b'Ns.',
        # Ten thousand copies of one megabyte.
        'multiplied array': multiplied_array(10_000),
        'state of a function': b'ccollections\nOrderedDict\n}S"__defaults__"\nNsb.',
        'dtype of objects': b'cnumpy\ndtype\n(S"O8"\ntR.',
        'reduce on text': b'\x80\x02U\x03abc(tR.',
        'state on a name': b'cnumpy\nndarray\n}b.',
    }


def test_no_pickle_runs_code(tmp_path):
    witness = tmp_path / 'witness'
    for kind, content in hostile_pickles(witness).items():
        if kind == 'huge memo':  # harmless data, only expensive for the reader in C
            assert read_pickle(content) is None
            continue
        with pytest.raises(PickleError) as error:
            read_pickle(content)
        assert '\n' not in str(error.value) and len(str(error.value)) < 250, kind
    assert not witness.exists()


def test_hostile_batch_is_named_in_folder_and_archive(tmp_path):
    files = cifar_batches() | {'data_batch_3': hostile_pickles(tmp_path / 'witness')['os.system']}
    for path in (
        write_cifar_folder(tmp_path / 'a', files),
        write_cifar_archive(tmp_path / 'b.tar.gz', files),
    ):
        with pytest.raises(InputError, match=r"data_batch_3: a pickle that wants to use 'posix\.system'"):
            load_dataset(data_config('cifar', path))
    assert not (tmp_path / 'witness').exists()


def test_number_of_instructions_is_bounded(monkeypatch):
    monkeypatch.setattr('pnn_jax.data.pickles.MAX_INSTRUCTIONS', 100)
    assert read_pickle(pickle.dumps(list(range(40)))) == list(range(40))
    with pytest.raises(PickleError, match='more than 100 instructions'):
        read_pickle(pickle.dumps(list(range(200))))


def test_an_array_that_is_made_once_may_be_as_large_as_its_pickle():
    (array,) = read_pickle(multiplied_array(1))
    assert array.shape == (2**20,) and not array.any()


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('test_batch', [1, 2], 'holds a list'),
        ('test_batch', {'labels': [1, 2]}, r'no uint8 array \[n, 3072\]'),
        ('test_batch', {'labels': [1, 2], 'data': np.zeros((2, 3071), np.uint8)}, r'no uint8 array \[n, 3072\]'),
        ('test_batch', {'labels': [1, 2], 'data': np.zeros((2, 3072))}, r'no uint8 array \[n, 3072\]'),
        ('test_batch', {'labels': [1, 2], 'data': b'abc'}, r'no uint8 array \[n, 3072\]'),
        ('test_batch', {'labels': [1], 'data': np.zeros((2, 3072), np.uint8)}, r'labels are int64 \[1\]'),
        ('test_batch', {'labels': [1, 10], 'data': np.zeros((2, 3072), np.uint8)}, 'label 10 of image 1'),
        ('test_batch', {'labels': [1, -1], 'data': np.zeros((2, 3072), np.uint8)}, 'label -1 of image 1'),
        ('test_batch', {'labels': [1, 2**70], 'data': np.zeros((2, 3072), np.uint8)}, 'no list of integers'),
        ('test_batch', {'labels': [1, 'b'], 'data': np.zeros((2, 3072), np.uint8)}, 'no list of integers'),
        ('test_batch', {'labels': [], 'data': np.zeros((0, 3072), np.uint8)}, 'there are no images'),
        ('batches.meta', {'names': []}, "no list of class names under 'label_names'"),
        ('batches.meta', {'label_names': []}, 'no list of class names'),
    ],
)
def test_batch_of_other_content_is_refused(tmp_path, name, content, message):
    folder = write_cifar_folder(tmp_path, cifar_batches() | {name: pickle.dumps(content, 2)})
    with pytest.raises(InputError, match=f'{name}: .*{message}'):
        load_dataset(data_config('cifar', folder))


def test_missing_files_are_named(tmp_path):
    files = cifar_batches()
    del files['data_batch_5']
    with pytest.raises(InputError, match='no data_batch_5'):
        load_dataset(data_config('cifar', write_cifar_folder(tmp_path, files)))
    with pytest.raises(InputError, match='no cifar-10-batches-py/data_batch_5 in it'):
        load_dataset(data_config('cifar', write_cifar_archive(tmp_path / 'x.tgz', files)))
    with pytest.raises(InputError, match=r'nowhere: cannot be read'):
        load_dataset(data_config('cifar', tmp_path / 'nowhere'))
    with pytest.raises(InputError, match=r"config\.data\.name='mnist': must be one of cifar10, cifar100"):
        load_dataset(data_config('cifar', tmp_path, name='mnist'))


@pytest.mark.parametrize('name', ['../escape', '/escape', 'cifar-10-batches-py/../../escape'])
def test_archive_that_points_outside_is_refused_and_never_unpacked(tmp_path, name):
    path = tmp_path / 'deep' / 'er' / 'x.tar.gz'
    path.parent.mkdir(parents=True)
    with tarfile.open(path, 'w:gz') as archive:
        member = tarfile.TarInfo(name)
        member.size = 4
        archive.addfile(member, io.BytesIO(b'evil'))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(InputError, match='points outside the archive'):
        load_dataset(data_config('cifar', path))
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_archive_with_links_in_place_of_files_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / 'x.tar.gz', 'w:gz') as archive:
        member = tarfile.TarInfo('cifar-10-batches-py/data_batch_1')
        member.type, member.linkname = kind, '/etc/passwd'
        archive.addfile(member)
    with pytest.raises(InputError, match='is not a single plain file'):
        load_dataset(data_config('cifar', tmp_path / 'x.tar.gz'))


def test_truncated_pickle_is_refused_at_every_length():
    content = cifar_batches()['test_batch']
    ends = {position for _, _, position in pickletools.genops(content)}
    for end in sorted(ends | set(range(0, len(content), 997))):
        with pytest.raises(PickleError):
            read_pickle(content[:end])
