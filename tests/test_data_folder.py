"""Image folders: order, conversion, cache, and what is refused."""

import errno
import hashlib
import io
import json
import logging
import os
import pwd
import re
import struct
import zlib
from pathlib import Path

import image_sets
import numpy as np
import pytest
from image_sets import data_config, random_images, write_folder
from PIL import Image

from pnn_jax.data import load_dataset
from pnn_jax.data.images import MAX_PIXELS, decode_image
from pnn_jax.errors import InputError


@pytest.fixture
def folder(tmp_path) -> Path:
    return image_sets.small_folder(tmp_path / 'pets')


def test_labels_follow_sorted_classes_and_images_sorted_names(folder):
    dataset = load_dataset(data_config('folder', folder))
    assert dataset.name == 'pets' and dataset.class_names == ('cat', 'dog')
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(
        dataset.train.images, np.concatenate([random_images(0, 3, 6, 6, 3), random_images(1, 3, 6, 6, 3)])
    )
    np.testing.assert_array_equal(
        dataset.test.images, np.concatenate([random_images(2, 2, 6, 6, 3), random_images(3, 2, 6, 6, 3)])
    )


def test_val_stands_in_for_test_and_hidden_files_are_left_out(folder):
    expected = load_dataset(data_config('folder', folder)).digest
    (folder / 'test').rename(folder / 'val')
    (folder / 'train' / 'cat' / '.DS_Store').write_bytes(b'x')
    (folder / 'train' / '.ipynb_checkpoints').mkdir()
    assert load_dataset(data_config('folder', folder)).digest == expected


def test_second_load_reads_the_cache_and_notices_every_kind_of_change(folder, monkeypatch):
    config = data_config('folder', folder)
    first = load_dataset(config).digest
    decoded = []
    monkeypatch.setattr('pnn_jax.data.folder.read_image', lambda path: decoded.append(path) or Path(path).read_bytes())
    assert load_dataset(config).digest == first and not decoded

    target = folder / 'train' / 'cat' / '001.png'
    Image.fromarray(random_images(9, 6, 6, 3)).save(target)  # rewritten
    changed = load_dataset(config).digest
    assert changed != first and decoded
    target.rename(folder / 'train' / 'cat' / '009.png')  # renamed: another order
    assert load_dataset(config).digest not in (first, changed)
    os.utime(folder / 'train' / 'dog' / '000.png', ns=(0, 0))  # touched
    decoded.clear()
    load_dataset(config)
    assert decoded
    config.image_size = 4
    assert load_dataset(config).train.images.shape == (6, 4, 4, 3)


def test_damaged_cache_is_written_again(folder, caplog):
    config = data_config('folder', folder)
    expected = load_dataset(config).digest
    for damage in (
        lambda content: content[: len(content) // 2],
        lambda content: content[:150] + b'\xff' + content[151:],
    ):
        for path in Path(config.cache_dir).iterdir():
            path.write_bytes(damage(path.read_bytes()))
        with caplog.at_level(logging.WARNING):
            assert load_dataset(config).digest == expected
        assert 'damaged or unreadable' in caplog.text
        caplog.clear()


def test_cache_that_cannot_be_written_only_warns(folder, caplog):
    config = data_config('folder', folder, cache_dir=str(folder / 'train' / 'cat' / '000.png'))
    assert len(load_dataset(config).train.labels) == 6
    assert len(caplog.messages) == 2  # one for each split
    for message in caplog.messages:
        assert 'decoded images are not cached' in message and '(File exists)' in message and '\n' not in message


def test_cache_folder_from_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('PNN_JAX_CACHE', str(tmp_path / 'elsewhere'))
    load_dataset(data_config('folder', folder, cache_dir=''))
    assert sorted(path.name.split('-')[1] for path in (tmp_path / 'elsewhere').iterdir()) == ['test', 'train']


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_url_as_cache_is_refused(folder):
    refuse(folder, r'^config\.data\.cache_dir=s3://bucket/x: URLs are not read', cache_dir='s3://bucket/x')


@pytest.mark.parametrize('cache_dir', ['', '~/cache'])
def test_no_home_directory_means_no_cache(folder, monkeypatch, caplog, cache_dir):
    monkeypatch.delenv('HOME')
    monkeypatch.delenv('PNN_JAX_CACHE', raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', lambda uid: {}[uid])  # as for a user without an entry
    monkeypatch.chdir(folder.parent)
    assert len(load_dataset(data_config('folder', folder, cache_dir=cache_dir)).train.labels) == 6
    assert 'the home directory of ~ is not known' in caplog.text
    assert [path.name for path in folder.parent.iterdir()] == ['pets']


def test_full_disk_means_no_cache_and_leaves_nothing(folder, monkeypatch, caplog):
    def full(file, **arrays):
        file.write(b'begun')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, 'savez', full)
    config = data_config('folder', folder)
    assert len(load_dataset(config).train.labels) == 6
    assert 'are not cached' in caplog.text and 'No space left on device' in caplog.text
    assert list(Path(config.cache_dir).iterdir()) == []


def test_cache_of_the_default_size_options_keeps_its_name(folder):
    config = data_config('folder', folder, image_size=4)
    load_dataset(config)
    files = [str(folder / 'train' / name / f'{i:03d}.png') for name in ('cat', 'dog') for i in range(3)]
    state = [[4, 3]] + [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]
    assert (Path(config.cache_dir) / f'pets-train-{key}.npz').exists()
    stored = sorted(path.name for path in Path(config.cache_dir).iterdir())
    config.pad, config.validation_examples = 8, 2  # applied to what is stored
    load_dataset(config)
    assert sorted(path.name for path in Path(config.cache_dir).iterdir()) == stored
    config.resize = 'stretch'
    load_dataset(config)
    assert len(list(Path(config.cache_dir).iterdir())) == 2 * len(stored)


def test_photographs_are_cropped_or_stretched(tmp_path):
    rising = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (10, 40, 3))
    root = write_folder(tmp_path / 'set', {(split, 'a'): rising[None] for split in ('train', 'test')})
    for resize, whole in (('crop', Image.fromarray(rising[:, 15:25])), ('stretch', Image.fromarray(rising))):
        image = load_dataset(data_config('folder', root, image_size=10, resize=resize)).train.images[0]
        np.testing.assert_array_equal(image, np.asarray(whole.resize((10, 10), Image.Resampling.BILINEAR)))


def test_webp_is_read(folder):
    pixels = random_images(5, 6, 6, 3)
    Image.fromarray(pixels).save(folder / 'train' / 'cat' / '003.webp', lossless=True)
    dataset = load_dataset(data_config('folder', folder))
    np.testing.assert_array_equal(dataset.train.images[3], pixels)


LEFT_BEHIND = [
    *('Thumbs.db', 'desktop.ini', '.DS_Store', '._000.png', 'Icon\r', '000.png:Zone.Identifier'),
    *('labels.csv', 'LABELS.TXT', 'list.tsv', 'annotations.json', '000.xml', 'README', '000.png~'),
]


@pytest.mark.parametrize('where', ['train', 'test/dog'])
def test_what_systems_and_people_leave_beside_images_is_passed_over(folder, where):
    expected = load_dataset(data_config('folder', folder)).digest
    for name in LEFT_BEHIND:
        (folder / where / name).write_bytes(b'x')
    for name in ('@eaDir', '__MACOSX', '$RECYCLE.BIN', 'lost+found', 'System Volume Information'):
        (folder / where / name / 'inside').mkdir(parents=True)
        (folder / where / name / '000.png').write_bytes(b'x')
    assert load_dataset(data_config('folder', folder)).digest == expected


@pytest.mark.parametrize('name', ['notes.pdf', '000.gif', '000.bmp', '000.npy', 'train.zip', 'more.png.part', '000'])
def test_stray_file_of_another_kind_is_named(folder, name):
    (folder / 'train' / 'cat' / name).write_bytes(b'x')
    refuse(folder, rf'cat/{re.escape(name)}: only images \(\.png, \.jpg, \.jpeg, \.webp\) belong here')


def test_folder_named_as_a_note_is_a_class_and_never_passed_over(folder):
    for split in ('train', 'test'):
        (folder / split / 'dog').rename(folder / split / 'readme')
    assert load_dataset(data_config('folder', folder)).class_names == ('cat', 'readme')
    (folder / 'train' / 'cat' / 'list.txt').mkdir()
    refuse(folder, r'cat/list\.txt: only images')


def test_class_names_in_two_unicode_forms_are_one_class(folder):
    composed, decomposed = 'caf\u00e9', 'cafe\u0301'
    (folder / 'train' / 'cat').rename(folder / 'train' / decomposed)
    (folder / 'test' / 'cat').rename(folder / 'test' / composed)
    dataset = load_dataset(data_config('folder', folder))
    assert dataset.class_names == (decomposed, 'dog')
    np.testing.assert_array_equal(dataset.test.images[:2], random_images(2, 2, 6, 6, 3))
    np.testing.assert_array_equal(dataset.test.labels, [0, 0, 1, 1])
    (folder / 'train' / 'dog').rename(folder / 'train' / composed)
    refuse(folder, r'pets/train: classes 0 and 1 are both named .*, in two Unicode forms')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'RGBA', 'LA'])
def test_png_modes_are_converted_as_pil_does(mode, channels):
    image = Image.fromarray(random_images(0, 5, 7, 3)).convert(mode)
    expected = np.asarray(image.convert({1: 'L', 3: 'RGB'}[channels])).reshape(5, 7, channels)
    np.testing.assert_array_equal(decode_image(encoded(image, 'PNG'), 'x', channels), expected)


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new('CMYK', (8, 8), (0, 255, 255, 0))
    pixels = decode_image(encoded(image, 'JPEG', quality=95), 'x', 3)
    assert pixels.shape == (8, 8, 3) and np.abs(pixels.astype(int) - [255, 0, 0]).max() < 12


def test_sixteen_bits_keep_the_high_byte():
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values), 'PNG'), 'x', 1)
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 0x12, 0xFF])


def test_name_does_not_matter_content_does(folder):
    pixels = random_images(5, 6, 6, 3)
    (folder / 'train' / 'cat' / '000.png').write_bytes(encoded(Image.fromarray(pixels), 'JPEG'))
    assert load_dataset(data_config('folder', folder)).train.images.shape == (6, 6, 6, 3)


def test_large_jpeg_is_shrunk_close_to_exact_resizing():
    smooth = Image.fromarray(random_images(0, 8, 8, 3)).resize((400, 300), Image.Resampling.BICUBIC)
    content = encoded(smooth, 'JPEG', quality=95)
    exact = smooth.crop((50, 0, 350, 300)).resize((32, 32), Image.Resampling.BILINEAR)
    difference = decode_image(content, 'x', 3, image_size=32).astype(int) - np.asarray(exact)
    assert np.abs(difference).max() <= 12 and np.abs(difference).mean() < 2


def test_grey_folder_where_the_mean_has_one_value(folder):
    dataset = load_dataset(data_config('folder', folder, mean=(0.5,), std=(1.0,)))
    assert dataset.train.images.shape == (6, 6, 6, 1)
    with pytest.raises(InputError, match=r'config\.data\.mean=\(0\.5, 0\.5\)'):
        load_dataset(data_config('folder', folder, mean=(0.5, 0.5)))


def refuse(folder: Path, message: str, **fields) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_dataset(data_config('folder', folder, **fields))
    assert '\n' not in str(error.value)


def test_images_of_different_size_need_image_size(folder):
    odd = folder / 'train' / 'dog' / '001.png'
    Image.fromarray(random_images(0, 4, 9, 3)).save(odd)
    refuse(folder, r'train/cat/000\.png is 6x6 and .*train/dog/001\.png is 9x4 pixels; set config\.data\.image_size')
    assert load_dataset(data_config('folder', folder, image_size=6)).train.images.shape == (6, 6, 6, 3)


def test_class_missing_in_test_or_train(folder):
    (folder / 'test' / 'dog').rename(folder / 'test' / 'wolf')
    refuse(folder, r"class folder 'dog' is missing in test/")
    (folder / 'test' / 'dog').mkdir()
    refuse(folder, r"class folder 'wolf' is missing in train/")
    (folder / 'test' / 'wolf').rename(folder / 'wolf')
    refuse(folder, 'test/dog: there are no images')


def test_missing_or_empty_splits(folder, tmp_path):
    refuse(
        tmp_path / 'nowhere',
        r'nowhere/train: cannot be read \(No such file.*; an image folder has train/<class>/\* and',
    )
    (folder / 'test').rename(folder / 'elsewhere')
    refuse(folder, r'pets/test: cannot be read')
    (folder / 'test').mkdir()
    refuse(folder, 'is missing in test/|there are no class folders')


def png_of(width: int, height: int) -> bytes:
    """A PNG that says that it has this size, and little else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(random_images(i, 6, 6, 3)) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


IMAGE = Image.fromarray(random_images(0, 32, 32, 3))


@pytest.mark.filterwarnings('error::PIL.Image.DecompressionBombWarning')  # as images.py sets it outside pytest
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'not PNG, JPEG or WebP'),
        (b'<html>404</html>', 'not PNG, JPEG or WebP'),
        (encoded(IMAGE, 'GIF'), 'not PNG, JPEG or WebP'),
        (encoded(IMAGE, 'BMP'), 'not PNG, JPEG or WebP'),
        (encoded(IMAGE, 'PNG')[:-600], 'not a usable image'),
        (encoded(IMAGE, 'JPEG')[:-200], 'not a usable image'),
        (encoded(IMAGE, 'PNG')[:40], 'not a usable image'),
        (animated('PNG'), 'an animation'),
        (animated('WEBP'), 'an animation'),
        (encoded(IMAGE, 'WEBP')[:-30], 'not a usable image'),
        (png_of(100_000, 100_000), 'not a usable image'),
        (png_of(MAX_PIXELS, 2), 'not a usable image'),
        (png_of(MAX_PIXELS // 2, 3), 'not a usable image'),
        (png_of(0, 0), 'not a usable image'),
    ],
)
def test_damaged_image_is_named(folder, content, message):
    (folder / 'test' / 'dog' / '001.png').write_bytes(content)
    refuse(folder, rf'test/dog/001\.png: .*{message}')
    refuse(folder, rf'test/dog/001\.png: .*{message}', image_size=6)


def test_strangers_are_named_instead_of_left_out(folder):
    stranger = folder / 'train' / 'cat' / 'notes.pdf'
    stranger.write_text('x')
    refuse(folder, r'cat/notes\.pdf: only images')
    stranger.unlink()
    (folder / 'train' / 'cat' / 'more').mkdir()
    refuse(folder, r'cat/more: only images')
    (folder / 'train' / 'cat' / 'more').rmdir()
    Image.fromarray(random_images(0, 6, 6, 3)).save(folder / 'train' / 'loose.png')
    refuse(folder, r'train/loose\.png: only class folders')


def test_links_pipes_and_loops(folder):
    inside = folder / 'train' / 'cat'
    (inside / 'x.png').symlink_to(inside / '000.png')
    assert len(load_dataset(data_config('folder', folder)).train.labels) == 7
    (inside / 'x.png').unlink()
    (inside / 'x.png').symlink_to(inside / 'x.png')
    refuse(folder, r'x\.png: cannot be read \(Too many levels of symbolic links')
    (inside / 'x.png').unlink()
    (inside / 'x.png').symlink_to(inside / 'gone.png')
    refuse(folder, r'x\.png: cannot be read \(No such file')
    (inside / 'x.png').unlink()
    (inside / 'x.png').symlink_to(folder / 'train')
    refuse(folder, r'x\.png: only images')
    (inside / 'x.png').unlink()
    os.mkfifo(inside / 'x.png')
    refuse(folder, r'x\.png: only images')


def test_unreadable_folder_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse_dog(path):
        if str(path).endswith('train/dog'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse_dog)
    refuse(folder, r'train/dog: cannot be read \(Permission denied\)')


def test_set_larger_than_memory_is_told_to_stream(folder, monkeypatch):
    monkeypatch.setattr(os, 'sysconf', lambda name: 10)
    refuse(folder, "stream them .*'stream_folder'")
