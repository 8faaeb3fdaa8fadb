"""Digits, .npz and idx files, and what load_dataset does for every source."""

import gzip
import hashlib
import os
import pwd
import zipfile
from pathlib import Path

import image_sets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import data_config, write_idx
from PIL import Image

from configs.default import get_config
from pnn_jax.data import SOURCES, load_dataset
from pnn_jax.data.dataset import ADDED_FIELDS
from pnn_jax.data.images import padded
from pnn_jax.errors import InputError
from pnn_jax.validate import validate_config

SHARED = os.environ.get('PNN_SHARED')  # a folder with data that the repository does not hold


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {
        'train_images': image_sets.random_images(0, 20, 4, 4, 3),
        'train_labels': np.arange(20, dtype=np.uint8) % 3,
        'test_images': image_sets.random_images(1, 5, 4, 4, 3),
        'test_labels': np.array([0, 1, 2, 0, 0]),
    }


def npz(tmp_path, arrays: dict[str, np.ndarray], **fields):
    path = tmp_path / 'set.npz'
    np.savez(path, **arrays)
    return data_config('npz', path, **fields)


def test_digits_are_scikit_learns_split_once_and_for_all():
    from sklearn import datasets

    dataset = load_dataset(data_config('digits', image_size=8))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1437, 360)
    assert dataset.train.images.shape == (1437, 8, 8, 1) and dataset.test.labels.dtype == np.int32
    assert dataset.class_names == tuple('0123456789')
    found = sorted(
        (image.tobytes(), label)
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    )
    bundled = datasets.load_digits()
    pixels = np.round(bundled.images / 16 * 255).astype(np.uint8)
    assert found == sorted((image.tobytes(), label) for image, label in zip(pixels, bundled.target, strict=True))
    share = np.bincount(dataset.test.labels) / np.bincount(bundled.target)
    assert np.all(np.abs(share - 0.2) < 0.005)
    assert dataset.digest.startswith('def4b703f59c17f3')


def test_digits_are_resized_to_16_unless_told_otherwise():
    small, default = (load_dataset(data_config('digits', image_size=size)) for size in (8, 0))
    assert default.test.images.shape == (360, 16, 16, 1)
    image = Image.fromarray(small.test.images[7, :, :, 0])
    np.testing.assert_array_equal(
        default.test.images[7, :, :, 0], np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    )


def test_npz_round_trip(tmp_path, arrays):
    dataset = load_dataset(npz(tmp_path, arrays))
    np.testing.assert_array_equal(dataset.train.images, arrays['train_images'])
    np.testing.assert_array_equal(dataset.test.labels, arrays['test_labels'])
    assert dataset.name == 'set' and dataset.class_names == ('0', '1', '2')
    assert {dataset.train.labels.dtype, dataset.test.labels.dtype} == {np.dtype(np.int32)}
    named = load_dataset(npz(tmp_path, arrays | {'class_names': np.array(['a', 'b', 'c', 'd'])}))
    assert named.class_names == ('a', 'b', 'c', 'd')


def test_digest_is_the_sha256_of_pixels_and_labels_and_notices_every_change(tmp_path, arrays):
    digest = hashlib.sha256()
    for name in ('train_images', 'train_labels', 'test_images', 'test_labels'):
        array = arrays[name] if 'images' in name else arrays[name].astype(np.int32)
        digest.update(f'{array.dtype}{array.shape}'.encode() + array.tobytes())
    assert load_dataset(npz(tmp_path, arrays)).digest == digest.hexdigest()
    for name, array in arrays.items():
        changed = array.copy()
        changed.flat[-1] ^= 1
        assert load_dataset(npz(tmp_path, arrays | {name: changed})).digest != digest.hexdigest()


def test_subset_is_fixed_random_and_in_order(tmp_path, arrays):
    arrays['train_images'] = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * np.ones((1, 4, 4, 1), np.uint8)
    arrays['test_images'] = arrays['test_images'][..., :1]
    chosen = [load_dataset(npz(tmp_path, arrays, train_examples=8)).train for _ in range(2)]
    index = chosen[0].images[:, 0, 0, 0]
    np.testing.assert_array_equal(index, chosen[1].images[:, 0, 0, 0])
    assert len(index) == 8 and np.all(np.diff(index) > 0) and list(index) != list(range(8))
    np.testing.assert_array_equal(chosen[0].labels, index % 3)
    assert len(load_dataset(npz(tmp_path, arrays)).test.labels) == 5
    with pytest.raises(InputError, match=r'config\.data\.train_examples=21: there are only 20'):
        load_dataset(npz(tmp_path, arrays, train_examples=21))


def test_image_size_resizes_the_centred_square(tmp_path, arrays):
    wide = np.zeros((20, 4, 8, 3), np.uint8)
    wide[:, :, 1:7] = 200  # the square and what bilinear sampling sees beside it
    dataset = load_dataset(npz(tmp_path, arrays | {'train_images': wide}, image_size=6))
    assert dataset.train.images.shape == (20, 6, 6, 3) and dataset.test.images.shape == (5, 6, 6, 3)
    assert np.all(dataset.train.images == 200)


if SHARED is not None:

    def test_exact_cifar_subset():
        dataset = load_dataset(data_config('npz', Path(SHARED, 'data', 'cifar10-exact-subset.npz')))
        assert dataset.train.images.shape == (5170, 32, 32, 3) and dataset.test.images.shape == (1017, 32, 32, 3)
        assert dataset.class_names == tuple('0123456789')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'test_labels': np.array([0, 1, 3, 0, 0])}, 'label 3 of image 2 is out of range; 3 classes'),
        ({'train_labels': np.full(20, -1)}, 'label -1 of image 0 is out of range'),
        ({'train_labels': np.array([2**40] + 19 * [0])}, 'training label 1099511627776 is out of range'),
        ({'train_labels': np.zeros(19, int)}, r'labels are int64 \[19\]; integers \[20\]'),
        ({'train_labels': np.zeros(20)}, r'labels are float64 \[20\]'),
        ({'train_labels': np.zeros((20, 1), int)}, r'labels are int64 \[20, 1\]'),
        ({'train_images': np.zeros((20, 4, 4, 3))}, 'images are float64'),
        ({'train_images': np.zeros((20, 4, 4), np.uint8)}, r'images are uint8 \[20, 4, 4\]'),
        ({'train_images': np.zeros((20, 4, 4, 4), np.uint8)}, r'uint8 \[20, 4, 4, 4\]'),
        ({'test_images': np.zeros((5, 8, 8, 3), np.uint8)}, 'set config.data.image_size'),
        ({'test_images': np.zeros((0, 4, 4, 3), np.uint8), 'test_labels': np.zeros(0, int)}, 'there are no images'),
        ({'class_names': np.array([1, 2, 3])}, 'class_names is int64'),
        ({'class_names': np.array(['a'])}, 'label 1 of image 1 is out of range; 1 classes'),
        ({'train_labels': np.array([None] * 20)}, 'not a readable .npz'),
    ],
)
def test_npz_that_breaks_a_rule_is_refused(tmp_path, arrays, change, message):
    with pytest.raises(InputError, match=message):
        load_dataset(npz(tmp_path, arrays | change))


def test_npz_without_an_array_or_not_a_zip_is_refused(tmp_path, arrays):
    del arrays['test_labels']
    with pytest.raises(InputError, match='there is no array test_labels; it has train_images'):
        load_dataset(npz(tmp_path, arrays))
    path = tmp_path / 'text.npz'
    path.write_text('not a zip')
    with pytest.raises(InputError, match=r'text\.npz: not a readable \.npz'):
        load_dataset(data_config('npz', path))
    with pytest.raises(InputError, match=r'none\.npz'):
        load_dataset(data_config('npz', tmp_path / 'none.npz'))


@pytest.mark.parametrize('gzipped', [False, True])
def test_idx_round_trip(tmp_path, gzipped):
    arrays = write_idx(tmp_path, gzipped=gzipped)
    dataset = load_dataset(data_config('idx', tmp_path))
    np.testing.assert_array_equal(dataset.train.images[..., 0], arrays['train-images-idx3-ubyte'])
    np.testing.assert_array_equal(dataset.test.labels, arrays['t10k-labels-idx1-ubyte'])
    assert dataset.train.images.shape == (12, 5, 4, 1) and dataset.class_names == tuple('012345')


def test_idx_with_the_test_files_alone_says_what_is_there(tmp_path):
    write_idx(tmp_path, prefixes=('t10k',))
    with pytest.raises(InputError, match=r'no train-images-idx3-ubyte .*are: t10k-images-idx3-ubyte, t10k-labels'):
        load_dataset(data_config('idx', tmp_path))


@pytest.mark.parametrize(
    ('name', 'damage', 'message'),
    [
        ('train-images-idx3-ubyte', lambda b: b'\x00\x00\x0d\x03' + b[4:], 'starts with 00 00 0d 03'),
        ('train-images-idx3-ubyte', lambda b: b[:-1], 'says 12x5x4 bytes of data, but it has 239'),
        ('train-images-idx3-ubyte', lambda b: b + b'\0', 'has 241'),
        ('train-images-idx3-ubyte', lambda b: b[:4] + b'\xff' * 12 + b[16:], 'says 4294967295x'),
        ('train-images-idx3-ubyte', lambda b: b[:9], 'ends within its header'),
        ('t10k-labels-idx1-ubyte', lambda b: b'', 'starts with , where'),
        ('t10k-labels-idx1-ubyte', lambda b: b[:-1] + b'\x06', 'label 6 of image 5 is out of range'),
        (
            't10k-labels-idx1-ubyte',
            lambda b: image_sets.idx_bytes(np.zeros(5)),
            r'labels are uint8 \[5\]; integers \[6\]',
        ),
        ('t10k-labels-idx1-ubyte', lambda b: gzip.compress(b)[:-9], 'damaged gzip file'),
        ('t10k-labels-idx1-ubyte', lambda b: gzip.compress(b)[:12] + b'\xff' * 30, 'damaged gzip file'),
    ],
)
def test_damaged_idx_is_refused(tmp_path, name, damage, message):
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        load_dataset(data_config('idx', tmp_path))
    assert '\n' not in str(error.value)


def test_unzipped_size_is_bounded(tmp_path, monkeypatch):
    write_idx(tmp_path, gzipped=True)
    monkeypatch.setattr('pnn_jax.data.files.MAX_BYTES', 100)
    with pytest.raises(InputError, match=r'train-images-idx3-ubyte\.gz: more than 100 bytes'):
        load_dataset(data_config('idx', tmp_path))


def test_unknown_source_or_no_path_is_refused():
    assert set(SOURCES) == {'digits', 'tfds', 'folder', 'cifar', 'idx', 'npz'}
    with pytest.raises(InputError, match=r"config\.data\.source='url'"):
        load_dataset(data_config('url', 'x'))
    for source in ('folder', 'cifar', 'idx', 'npz'):
        with pytest.raises(InputError, match=r'config\.data\.path is empty'):
            load_dataset(data_config(source))


def test_mnist_is_found_where_torchvision_puts_it(tmp_path):
    arrays = write_idx(tmp_path / 'data' / 'MNIST' / 'raw', gzipped=True)
    (tmp_path / 'data' / 'MNIST' / 'processed').mkdir()
    (tmp_path / 'data' / 'mnist').symlink_to(tmp_path / 'data' / 'MNIST')  # a link is no second set
    for path in (tmp_path / 'data', tmp_path / 'data' / 'MNIST', tmp_path / 'data' / 'MNIST' / 'raw'):
        dataset = load_dataset(data_config('idx', path))
        assert dataset.name == path.name
        np.testing.assert_array_equal(dataset.test.images[..., 0], arrays['t10k-images-idx3-ubyte'])


def test_mnist_in_several_folders_or_in_none_is_named(tmp_path):
    for name in ('MNIST', 'FashionMNIST'):
        write_idx(tmp_path / 'data' / name / 'raw')
    with pytest.raises(InputError, match=r'several folders .*: FashionMNIST/raw, MNIST/raw; name one of them$'):
        load_dataset(data_config('idx', tmp_path / 'data'))
    assert len(load_dataset(data_config('idx', tmp_path / 'data' / 'MNIST')).test.labels) == 6
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no file such as train-images-idx3-ubyte or .* nor in a folder at most 2 lev'):
        load_dataset(data_config('idx', tmp_path / 'empty'))
    with pytest.raises(
        InputError, match=r'config\.data\.path=.*/nowhere: cannot be read \(No such file or directory\)'
    ):
        load_dataset(data_config('idx', tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['cat', 'dog', 'cat'], "classes 0 and 2 are both named 'cat'; names must differ"),
        (['caf\u00e9', 'dog', 'cafe\u0301'], 'classes 0 and 2 are both named .*, in two Unicode forms'),
    ],
)
def test_two_classes_of_one_name_are_refused(tmp_path, arrays, names, message):
    with pytest.raises(InputError, match=message) as error:
        load_dataset(npz(tmp_path, arrays | {'class_names': np.array(names)}))
    assert '\n' not in str(error.value)


def test_two_arrays_of_one_name_are_refused(tmp_path, arrays):
    config = npz(tmp_path, arrays)
    with zipfile.ZipFile(config.path) as archive:
        content = archive.read('train_labels.npy')
    with zipfile.ZipFile(config.path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate name'):
        archive.writestr('train_labels.npy', content)
    with pytest.raises(InputError, match="holds 2 arrays named 'train_labels'"):
        load_dataset(config)


def test_classes_without_training_examples_are_noted(tmp_path, arrays):
    assert load_dataset(npz(tmp_path, arrays)).notes == ()
    shifted = {name: array + 1 if 'labels' in name else array for name, array in arrays.items()}
    (note,) = load_dataset(npz(tmp_path, shifted)).notes
    assert note == "classes without a training example (1 of 4): '0'; labels count from 0"
    many = np.array([f'class {i}' for i in range(33)])
    (note,) = load_dataset(npz(tmp_path, arrays | {'class_names': many})).notes
    assert note.startswith("classes without a training example (30 of 33): 'class 3', ") and note.endswith(
        "'class 12', ..."
    )


def test_classes_that_a_subset_leaves_out_are_noted(tmp_path, arrays):
    dataset = load_dataset(npz(tmp_path, arrays, train_examples=2))
    missing = set(range(3)) - set(dataset.train.labels.tolist())
    assert len(missing) >= 1 and all(repr(str(label)) in dataset.notes[0] for label in missing)


def test_paths_are_expanded_and_urls_refused(tmp_path, arrays, monkeypatch):
    npz(tmp_path, arrays)
    monkeypatch.setenv('HOME', str(tmp_path))
    config = data_config('npz', 'x', cache_dir='')
    config.path = '~/set.npz'
    assert load_dataset(config).name == 'set'
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(pwd, 'getpwuid', lambda uid: {}[uid])  # as for a user without an entry
    for source in ('npz', 'idx', 'cifar', 'folder'):
        for path, message in (
            ('~/set.npz', 'the home directory of ~ is not known'),
            ('s3://bucket/set', 'URLs are not read'),
            ('gs:/bucket/set', 'URLs are not read'),
        ):
            config.source, config.path = source, path
            with pytest.raises(InputError, match=rf'^config\.data\.path={path}: {message}') as error:
                load_dataset(config)
            assert '\n' not in str(error.value)


def test_wide_images_are_cropped_or_stretched(tmp_path, arrays):
    wide = np.zeros((20, 4, 8, 3), np.uint8)
    wide[:, :, :4], wide[:, :, 4:] = 40, 200  # left half, right half
    images = arrays | {'train_images': wide, 'test_images': wide[:5]}
    cropped, stretched = (
        load_dataset(npz(tmp_path, images, image_size=4, resize=resize)).train.images for resize in ('crop', 'stretch')
    )
    np.testing.assert_array_equal(cropped[0, 0, [0, 3], 0], [40, 200])  # columns 2 to 5 of 8
    for image, original in zip(stretched, wide, strict=True):
        whole = Image.fromarray(original).resize((4, 4), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(whole))
    assert load_dataset(npz(tmp_path, images, image_size=4, resize='stretch')).notes == ()
    (note,) = load_dataset(npz(tmp_path, images, resize='stretch')).notes
    assert note == "config.data.resize='stretch' has no effect: config.data.image_size is 0"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 4))
def test_padding_is_black_and_keeps_the_image_in_the_centre(h, w, channels, more):
    images = np.random.default_rng(h * 10 + w).integers(1, 256, (2, h, w, channels), dtype=np.uint8)  # no black pixel
    pad = max(h, w) + more
    result = padded(images, pad)
    assert result.shape == (2, pad, pad, channels)
    rows, columns = (np.flatnonzero(result[0].any(axis=axis)[:, 0]) for axis in (1, 0))
    for found, size in ((rows, h), (columns, w)):
        assert len(found) == size and found[0] == (pad - size) // 2 and found[-1] - found[0] == size - 1
    np.testing.assert_array_equal(result[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], images)
    assert np.count_nonzero(result) == images.size


def test_pad_applies_after_resizing_and_changes_the_digest(tmp_path, arrays):
    plain = load_dataset(npz(tmp_path, arrays, image_size=6))
    dataset = load_dataset(npz(tmp_path, arrays, image_size=6, pad=8))
    np.testing.assert_array_equal(dataset.train.images[:, 1:7, 1:7], plain.train.images)
    assert dataset.test.images.shape == (5, 8, 8, 3) and dataset.digest != plain.digest
    assert load_dataset(npz(tmp_path, arrays, pad=4)).digest == load_dataset(npz(tmp_path, arrays)).digest
    with pytest.raises(InputError, match=r'config\.data\.pad=3: the images are 4x4 pixels; must be at least 4, or 0'):
        load_dataset(npz(tmp_path, arrays, pad=3))


def numbered(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Training image i has the value i everywhere."""
    images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * np.ones((1, 4, 4, 3), np.uint8)
    return arrays | {'train_images': images}


@pytest.mark.parametrize('validation_examples', [1, 6, 19])
def test_validation_set_is_fixed_and_disjoint_from_training(tmp_path, arrays, validation_examples):
    arrays = numbered(arrays)
    index = lambda split: split.images[:, 0, 0, 0].tolist()
    dataset, again = (load_dataset(npz(tmp_path, arrays, validation_examples=validation_examples)) for _ in range(2))
    assert index(dataset.validation) == index(again.validation) == sorted(index(dataset.validation))
    assert sorted(index(dataset.train) + index(dataset.validation)) == list(range(20))
    np.testing.assert_array_equal(dataset.validation.labels, np.array(index(dataset.validation)) % 3)
    assert len(dataset.validation.labels) == validation_examples
    small = load_dataset(npz(tmp_path, arrays, validation_examples=validation_examples, train_examples=1))
    assert index(small.validation) == index(dataset.validation) and set(index(small.train)) <= set(index(dataset.train))


def test_validation_set_is_random_sized_padded_and_in_the_digest(tmp_path, arrays):
    arrays = numbered(arrays)
    plain = load_dataset(npz(tmp_path, arrays))
    dataset = load_dataset(npz(tmp_path, arrays, validation_examples=8, image_size=5, pad=6))
    chosen = dataset.validation.images[:, 2, 2, 0].tolist()
    assert chosen not in (list(range(8)), list(range(12, 20)))
    assert dataset.validation.images.shape == (8, 6, 6, 3)
    assert plain.validation is None
    digests = {load_dataset(npz(tmp_path, arrays, validation_examples=count)).digest for count in (0, 1, 2)}
    assert len(digests) == 3


def test_too_many_validation_examples_are_refused(tmp_path, arrays):
    for fields, left in (
        ({'validation_examples': 20}, 1),
        ({'validation_examples': 5, 'train_examples': 16}, 16),
    ):
        with pytest.raises(InputError, match=rf'validation_examples=.*: of 20 training examples, at least {left} must'):
            load_dataset(npz(tmp_path, arrays, **fields))
    dataset = load_dataset(npz(tmp_path, arrays, validation_examples=5, train_examples=15))
    assert len(dataset.train.labels) == 15


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        (
            'resize',
            'strech',
            r"config\.data\.resize='strech': must be one of crop, stretch \(did you mean 'stretch'\?\)",
        ),
        ('pad', -1, r'config\.data\.pad=-1: must be finite and at least 0'),
        ('pad', 15, r'config\.data\.pad=15: must be at least config\.data\.image_size=16, or 0'),
        ('validation_examples', -1, r'config\.data\.validation_examples=-1: must be finite and at least 0'),
    ],
)
def test_fields_are_validated(field, value, message):
    config = get_config()
    config.data.image_size = 16
    validate_config(config)
    config.data[field] = value
    with pytest.raises(InputError, match=f'^{message}$'):
        validate_config(config)


def test_defaults_of_added_fields_are_those_of_the_config():
    assert {name: get_config().data[name] for name in ADDED_FIELDS} == ADDED_FIELDS


def test_config_of_an_earlier_version_still_loads(tmp_path, arrays):
    config = npz(tmp_path, arrays, image_size=6)
    expected = load_dataset(config).digest
    for name in ('resize', 'pad', 'validation_examples'):
        delattr(config, name)
    assert load_dataset(config).digest == expected
