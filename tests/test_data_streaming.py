"""Streams: the same batches as in memory, for any number of hosts and from any step, a bounded number ahead."""

import threading
from functools import partial
from pathlib import Path

import image_sets
import jax
import numpy as np
import pytest
from image_sets import data_config, random_images, write_folder
from PIL import Image

from pnn_jax.data import load_dataset, stream_batches
from pnn_jax.data.batches import epoch_order, host_share
from pnn_jax.data.images import NUM_THREADS
from pnn_jax.data.stream_batches import BATCHES_AHEAD, random_part, stream_eval_batches, stream_train_batches
from pnn_jax.data.streams import STREAMS, open_stream
from pnn_jax.errors import InputError

KEY = jax.random.key(5)


@pytest.fixture
def folder(tmp_path) -> Path:
    """13 training and 7 test images of 8x8 pixels in two classes."""
    counts = {('train', 'a'): 6, ('train', 'b'): 7, ('test', 'a'): 4, ('test', 'b'): 3}
    images = {where: random_images(seed, count, 8, 8, 3) for seed, (where, count) in enumerate(counts.items())}
    return write_folder(tmp_path / 'set', images)


def opened(path, source='stream_folder', **fields):
    return open_stream(data_config(source, path, **({'image_size': 8} | fields)))


def epoch_batches(stream, epoch=0, start_step=0, batch_size=4, **hosts) -> list:
    batches = stream_train_batches(stream, key=KEY, epoch=epoch, start_step=start_step, batch_size=batch_size, **hosts)
    return list(batches)


def assert_same(batches, others) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name, values in batch.items():
            assert values.dtype == other[name].dtype
            np.testing.assert_array_equal(values, other[name])


@pytest.mark.parametrize('train_examples', [0, 9])
def test_batches_are_those_of_the_set_in_memory(folder, train_examples):
    stream = opened(folder, train_examples=train_examples)
    memory = load_dataset(data_config('folder', folder, train_examples=train_examples)).train
    for epoch in (0, 3):
        order = np.asarray(epoch_order(KEY, epoch, len(memory.labels)))
        batches = epoch_batches(stream, epoch)
        sizes = [4, 4, 4, 1] if not train_examples else [4, 4, 1]
        assert [len(batch['label']) for batch in batches] == sizes
        np.testing.assert_array_equal(np.concatenate([batch['image'] for batch in batches]), memory.images[order])
        np.testing.assert_array_equal(np.concatenate([batch['label'] for batch in batches]), memory.labels[order])
    assert batches[0]['image'].dtype == np.uint8 and batches[0]['label'].dtype == np.int32


@pytest.mark.parametrize('augment', ['none', 'resized_crop_flip'])
def test_any_step_can_be_the_first(folder, augment):
    stream = opened(folder, augment=augment)
    whole = epoch_batches(stream, epoch=2)
    for step in range(5):
        assert_same(epoch_batches(stream, epoch=2, start_step=step), whole[step:])


@pytest.mark.parametrize(('process_count', 'device_count'), [(2, 2), (2, 4), (4, 4)])
def test_hosts_together_load_what_one_loads(folder, process_count, device_count):
    stream = opened(folder, augment='resized_crop_flip')
    whole = epoch_batches(stream)
    parts = [
        epoch_batches(stream, process_index=index, process_count=process_count, device_count=device_count)
        for index in range(process_count)
    ]
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            found = [part[step][name] for part in parts]
            if len(values) % device_count:  # the last batch, of one image: replicated
                assert all(np.array_equal(values, each) for each in found)
            else:
                assert {len(each) for each in found} == {len(values) // process_count}
                np.testing.assert_array_equal(values, np.concatenate(found))


def test_share_of_a_host_fits_the_sharding_of_a_batch():
    share = partial(host_share, device_count=8, process_count=4)
    assert [share(16, process_index=i) for i in range(4)] == [slice(4 * i, 4 * i + 4) for i in range(4)]
    assert {(part.start, part.stop) for part in (share(12, process_index=i) for i in range(4))} == {(0, 12)}


def test_random_parts_change_with_epoch_and_key_but_not_with_the_batch(folder):
    stream = opened(folder, augment='resized_crop_flip')

    def images_of(epoch, batch_size, key=KEY):
        batches = stream_train_batches(stream, key=key, epoch=epoch, start_step=0, batch_size=batch_size)
        images = np.concatenate([batch['image'] for batch in batches])
        return dict(zip(np.asarray(epoch_order(key, epoch, 13)).tolist(), images, strict=True))

    base, other_batch, other_epoch = images_of(0, 4), images_of(0, 5), images_of(1, 4)
    other_key = images_of(0, 4, jax.random.key(6))
    assert all(np.array_equal(base[i], other_batch[i]) for i in base)
    assert sum(np.array_equal(base[i], other_epoch[i]) for i in base) <= 1
    assert sum(np.array_equal(base[i], other_key[i]) for i in base) <= 1


def test_random_part_has_the_area_and_sides_it_should():
    rng = np.random.default_rng(0)
    boxes = np.array([random_part(rng, 400, 300) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 400 and bottom.max() <= 300
    width, height = right - left, bottom - top
    area = width * height / (400 * 300)
    assert 0.078 < area.min() < 0.09 and area.max() > 0.9
    assert (width / height).min() > 0.74 and (width / height).max() < 1.35
    assert random_part(rng, 1, 1) == (0, 0, 1, 1)
    assert random_part(rng, 1000, 2) == (499, 0, 501, 2)  # no part of 8% fits: the centred square


def test_training_image_is_the_part_resized_and_half_of_them_mirrored(tmp_path):
    columns = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))  # brighter to the right
    rows = columns.transpose(1, 0, 2)
    images = np.stack([columns] * 40)
    root = write_folder(tmp_path / 'set', {('train', 'a'): images, ('test', 'a'): np.stack([rows])})
    stream = opened(root, augment='resized_crop_flip', image_size=16)
    image = np.concatenate([batch['image'] for batch in epoch_batches(stream)]).astype(int)
    assert np.all(np.abs(np.diff(image, axis=1)) <= 1)  # rows of an image are alike: nothing is transposed
    rising = np.sum(np.diff(image[:, 8, :, 0], axis=-1), axis=-1) > 0
    assert 8 < rising.sum() < 32
    (batch,) = stream_eval_batches(stream, batch_size=1)
    assert batch['image'][0, 0, 8, 0] in range(4 * 4, 4 * 8) and batch['image'][0, -1, 8, 0] in range(4 * 56, 4 * 60)


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [1, 3, 4, 7, 20])
def test_evaluation_sees_every_example_once_in_equal_batches(folder, process_count, batch_size):
    stream = opened(folder)
    expected = load_dataset(data_config('folder', folder)).test
    per_host = [
        list(stream_eval_batches(stream, batch_size=batch_size, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    share = -(-batch_size // process_count)
    assert {len(batches) for batches in per_host} == {-(-7 // (share * process_count))}
    seen = []
    for batch in (batch for batches in per_host for batch in batches):
        assert batch['image'].shape == (share, 8, 8, 3) and batch['batch_mask'].shape == (share,)
        valid, index = batch['batch_mask'], batch['index']
        seen.extend(index[valid])
        np.testing.assert_array_equal(batch['image'][valid], expected.images[index[valid]])
        np.testing.assert_array_equal(batch['label'][valid], expected.labels[index[valid]])
        assert not batch['image'][~valid].any() and not index[~valid].any()
    assert sorted(seen) == list(range(7))


def test_photographs_of_any_size_become_224(tmp_path):
    for split, count in (('train', 5), ('test', 3)):
        for name in ('a', 'b'):
            target = tmp_path / 'set' / split / name
            target.mkdir(parents=True)
            for i in range(count):
                size = (300 + 40 * i, 260 + 15 * i)
                Image.fromarray(random_images(i, size[1], size[0], 3)).save(target / f'{i}.jpg')
    stream = opened(tmp_path / 'set', image_size=224, augment='resized_crop_flip')
    assert stream.image_shape == (224, 224, 3)
    assert [batch['image'].shape for batch in epoch_batches(stream, batch_size=8)] == [
        (8, 224, 224, 3),
        (2, 224, 224, 3),
    ]
    assert sum(batch['batch_mask'].sum() for batch in stream_eval_batches(stream, batch_size=4)) == 6


def finish_submitted_work() -> None:
    """Returns when the decoding threads have done what was submitted so far: each of them then waits at the barrier."""
    barrier = threading.Barrier(NUM_THREADS + 1)
    for _ in range(NUM_THREADS):
        stream_batches._THREADS.submit(barrier.wait, 60)
    barrier.wait(60)


def test_only_a_few_batches_are_decoded_ahead_and_nothing_after_the_end(folder, monkeypatch):
    decoded = []
    decode = stream_batches.decode_image
    monkeypatch.setattr(stream_batches, 'decode_image', lambda *args: decoded.append(1) or decode(*args))
    batches = stream_train_batches(opened(folder), key=KEY, epoch=0, start_step=0, batch_size=1)
    for taken in range(1, 4):
        next(batches)
        finish_submitted_work()
        assert len(decoded) <= taken + BATCHES_AHEAD
    batches.close()
    for epoch in range(3):
        epoch_batches(opened(folder), epoch)
    assert sum(thread.name.startswith('decode') for thread in threading.enumerate()) <= NUM_THREADS


def test_damaged_image_stops_the_stream_with_its_name(folder):
    stream = opened(folder)
    (folder / 'train' / 'b' / '003.png').write_bytes(b'damaged')
    with pytest.raises(InputError, match=r'train/b/003\.png: not a usable image'):
        epoch_batches(stream)
    (folder / 'train' / 'b' / '003.png').unlink()
    with pytest.raises(InputError, match=r'train/b/003\.png: cannot be read'):
        epoch_batches(stream)


def test_digest_depends_on_names_and_sizes_but_not_on_the_place(folder, tmp_path):
    base = opened(folder).digest
    moved = folder.rename(tmp_path / 'moved')
    assert opened(moved).digest == base != opened(moved, train_examples=5).digest
    (moved / 'train' / 'a' / '000.png').rename(moved / 'train' / 'a' / '00.png')
    assert opened(moved).digest != base


def test_prepared_set_streams_and_unlabelled_test_gives_way_to_validation(tmp_path):
    images = random_images(0, 12, 10, 8, 3)
    labels = [i % 3 for i in range(10)] + [-1, -1]
    splits = {'train': range(6), 'validation': range(6, 10), 'test': range(10, 12)}
    path = image_sets.write_tfds(tmp_path, images, labels, splits)
    stream = opened(path, source='stream_tfds')
    assert stream.class_names == ('ant', 'bee', 'cow') and (len(stream.train), len(stream.test)) == (6, 4)
    position = {image[1:9].tobytes(): i for i, image in enumerate(images)}
    found = []
    for batch in [*epoch_batches(stream), *stream_eval_batches(stream, batch_size=4)]:
        for image, label in zip(batch['image'], batch['label'], strict=True):
            found.append(position[image.tobytes()])
            assert label == found[-1] % 3
    assert sorted(found[:6]) == list(range(6)) and sorted(found[6:]) == [6, 7, 8, 9]


@pytest.mark.parametrize('resize', ['crop', 'stretch'])
def test_sizes_are_those_of_the_set_in_memory(tmp_path, resize):
    images = {(split, name): random_images(0, 3, 5, 9, 3) for split in ('train', 'test') for name in 'ab'}
    fields = {'image_size': 6, 'resize': resize, 'pad': 9}
    root = write_folder(tmp_path / 'set', images)
    stream, memory = opened(root, **fields), load_dataset(data_config('folder', root, **fields))
    (batch,) = stream_eval_batches(stream, batch_size=6)
    np.testing.assert_array_equal(batch['image'], memory.test.images)
    (batch,) = epoch_batches(stream, batch_size=6)
    np.testing.assert_array_equal(batch['image'], memory.train.images[np.asarray(epoch_order(KEY, 0, 6))])
    assert stream.image_shape == (9, 9, 3)
    plain = opened(root, image_size=6, resize=resize)
    assert plain.digest != stream.digest
    (batch,) = stream_eval_batches(plain, batch_size=6)
    np.testing.assert_array_equal(batch['image'], memory.test.images[:, 1:7, 1:7])


def test_stretched_parts_keep_their_scale_in_evaluation(tmp_path):
    rows = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 32, 3))
    root = write_folder(tmp_path / 'set', {(split, 'a'): rows[None] for split in ('train', 'test')})
    stream = opened(root, augment='resized_crop_flip', image_size=8, resize='stretch')
    (batch,) = stream_eval_batches(stream, batch_size=1)
    expected = Image.fromarray(rows[4:60, 2:30]).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.abs(batch['image'][0].astype(int) - np.asarray(expected)).max() <= 4  # pixels beside the box count a bit


def test_validation_examples_are_those_of_the_set_in_memory(folder):
    stream = opened(folder, validation_examples=4)
    memory = load_dataset(data_config('folder', folder, validation_examples=4))
    batches = list(stream_eval_batches(stream, batch_size=3, split='validation'))
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert found['batch_mask'].tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(found['image'][:4], memory.validation.images)
    np.testing.assert_array_equal(found['label'][:4], memory.validation.labels)
    train = np.concatenate([batch['image'] for batch in epoch_batches(stream)])
    np.testing.assert_array_equal(train, memory.train.images[np.asarray(epoch_order(KEY, 0, 9))])
    assert opened(folder).validation is None and opened(folder).digest != stream.digest


def test_notes_and_class_names_are_those_of_the_set_in_memory(folder):
    assert opened(folder).notes == ()
    fields = {'train_examples': 1}
    assert opened(folder, **fields).notes == load_dataset(data_config('folder', folder, **fields)).notes != ()
    for name in ('train', 'test'):
        (folder / name / 'a').rename(folder / name / 'e\u0301')
        (folder / name / 'b').rename(folder / name / '\u00e9')
    with pytest.raises(InputError, match='classes 0 and 1 are both named'):
        opened(folder)


def test_leftovers_are_no_change_of_the_set(folder):
    expected = opened(folder).digest
    (folder / 'train' / 'a' / 'Thumbs.db').write_bytes(b'x')
    (folder / 'train' / 'labels.csv').write_bytes(b'x')
    assert opened(folder).digest == expected


def test_bad_input_is_named(folder, tmp_path):
    assert set(STREAMS) == {'stream_folder', 'stream_tfds'}
    for fields, message in (
        ({'image_size': 0}, r'config\.data\.image_size=0: stream_folder needs a size'),
        ({'train_examples': 14}, r'train_examples=14: there are only 13'),
        ({'mean': (0.5, 0.5)}, r'config\.data\.mean'),
        ({'pad': 7}, r'config\.data\.pad=7: must be at least config\.data\.image_size=8, or 0'),
        ({'validation_examples': 13}, r'validation_examples=13: of 13 training examples, at least 1 must be left'),
    ):
        with pytest.raises(InputError, match=message):
            opened(folder, **fields)
    for url in ('s3://bucket/x', 'https://host/x'):
        with pytest.raises(InputError, match=rf'config\.data\.path={url}: URLs are not read'):
            opened(url)
    with pytest.raises(InputError, match='path is empty'):
        opened('')
    with pytest.raises(InputError, match='is not prepared'):
        opened(tmp_path, source='stream_tfds', name='imagenet2012')
    with pytest.raises(InputError, match=r"config\.data\.source='folder': must be one of stream_folder"):
        opened(folder, source='folder')
    with pytest.raises(InputError, match='resized_crop_flip'):
        load_dataset(data_config('folder', folder, augment='resized_crop_flip'))
