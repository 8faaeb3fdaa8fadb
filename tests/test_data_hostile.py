"""Hostile input: whatever comes, a valid data set or one line, nothing run and nothing written beside the cache."""

import gzip
import io
import os
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import image_sets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import data_config, random_images
from PIL import Image
from test_data_cifar import hostile_pickles

from pnn_jax.data import Dataset, load_dataset
from pnn_jax.data.images import decode_image
from pnn_jax.data.pickles import PickleError, read_pickle
from pnn_jax.data.stream_batches import stream_eval_batches
from pnn_jax.data.streams import open_stream
from pnn_jax.errors import InputError

PHOTO = Image.fromarray(random_images(0, 6, 6, 3))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b'') -> bytes:
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(more) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


FRAMES = {'save_all': True, 'append_images': [Image.fromarray(random_images(1, 6, 6, 3))]}
VALID, REFUSED = True, False

# kind -> (content of an image file, whether it is a valid 6x6 image)
CONTENTS: dict[str, tuple[bytes, bool]] = {
    'empty file': (b'', REFUSED),
    'text': (b'hello', REFUSED),
    'script': (b'#!/bin/sh\ntouch witness\n', REFUSED),
    'GIF': (encoded(PHOTO, 'GIF'), REFUSED),
    'animated GIF': (encoded(PHOTO, 'GIF', **FRAMES), REFUSED),
    'animated PNG': (encoded(PHOTO, 'PNG', **FRAMES), REFUSED),
    'BMP': (encoded(PHOTO, 'BMP'), REFUSED),
    'TIFF': (encoded(PHOTO, 'TIFF'), REFUSED),
    'WebP': (encoded(PHOTO, 'WEBP'), VALID),
    'animated WebP': (encoded(PHOTO, 'WEBP', **FRAMES), REFUSED),
    'truncated WebP': (encoded(PHOTO, 'WEBP')[:-30], REFUSED),
    'WebP header alone': (encoded(PHOTO, 'WEBP')[:20], REFUSED),
    'EPS, which a program would render': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n', REFUSED),
    'CMYK JPEG': (encoded(PHOTO.convert('CMYK'), 'JPEG'), VALID),
    'grey JPEG': (encoded(PHOTO.convert('L'), 'JPEG'), VALID),
    'two photographs in one JPEG': (encoded(PHOTO, 'MPO', **FRAMES), VALID),
    'palette PNG': (encoded(PHOTO.convert('P'), 'PNG'), VALID),
    'transparent PNG': (encoded(PHOTO.convert('RGBA'), 'PNG'), VALID),
    'bilevel PNG': (encoded(PHOTO.convert('1'), 'PNG'), VALID),
    '16-bit PNG': (encoded(Image.fromarray(np.full((6, 6), 40_000, np.uint16)), 'PNG'), VALID),
    '1x1 PNG': (encoded(PHOTO.resize((1, 1)), 'PNG'), REFUSED),
    'PNG of another size': (encoded(PHOTO.resize((7, 6)), 'PNG'), REFUSED),
    '0x0 PNG': (png(0, 0), REFUSED),
    'PNG of 100,000 x 100,000 pixels': (png(100_000, 100_000), REFUSED),
    'PNG of 2**31 x 2**31 pixels': (png(2**31, 2**31), REFUSED),
    'PNG that says 8,000 x 8,000 pixels and has none': (png(8_000, 8_000), REFUSED),
    'PNG with a gigabyte of text': (png(6, 6, chunk(b'zTXt', b'k\0\0' + zlib.compress(bytes(2**26)))), REFUSED),
    'PNG with a chunk of 4 GB': (png(6, 6)[:33] + b'\xff\xff\xff\xffIDAT', REFUSED),
    'PNG with a wrong checksum': (encoded(PHOTO, 'PNG').replace(b'IDAT', b'IDAU'), REFUSED),
    'truncated PNG': (encoded(PHOTO, 'PNG')[:-30], REFUSED),
    'truncated JPEG': (encoded(PHOTO, 'JPEG')[:-30], REFUSED),
    'JPEG header alone': (encoded(PHOTO, 'JPEG')[:20], REFUSED),
    'zip of a PNG': (gzip.compress(encoded(PHOTO, 'PNG')), REFUSED),
}


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


# kind -> function that makes an entry of an image folder at a path; none is acceptable
ENTRIES: dict[str, Callable[[Path], None]] = {
    'folder': lambda path: path.mkdir(),
    'link to itself': lambda path: path.symlink_to(path),
    'link to nothing': link('nowhere'),
    'link to the folder above': link('..'),
    'link to a device that never ends': link('/dev/zero'),
    'named pipe': lambda path: os.mkfifo(path),
    'name of another kind': lambda path: path.with_suffix('.npy').write_text('x'),
    'name that is no text': lambda path: Path(os.fsdecode(bytes(path.parent) + b'/\xff\xfe.gif')).write_text('x'),
    'name with a line break': lambda path: (path.parent / 'a\nb.png').write_bytes(b'x'),
}


def load_in_one_line(config, *, opened=load_dataset) -> Dataset | InputError:
    """The data set, or the error, which must be a single printable line."""
    try:
        return opened(config)
    except InputError as error:
        message = str(error)
        assert '\n' not in message and message.isprintable() and len(message) < 1000, message
        return error


def tree(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob('*') if 'cache' not in path.parts)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', CONTENTS)
def test_every_kind_of_image_file(tmp_path, kind):
    content, valid = CONTENTS[kind]
    folder = image_sets.small_folder(tmp_path / 'set')
    target = folder / 'test' / 'dog' / '001.png'
    target.write_bytes(content)
    before = tree(tmp_path)
    result = load_in_one_line(data_config('folder', folder))
    if valid:
        assert isinstance(result, Dataset) and len(result.test.labels) == 4
    else:
        assert isinstance(result, InputError) and str(target) in str(result)

    def evaluate(config):
        return list(stream_eval_batches(open_stream(config), batch_size=4))

    streamed = load_in_one_line(data_config('stream_folder', folder, image_size=6), opened=evaluate)
    assert isinstance(streamed, list) == (valid or kind in ('1x1 PNG', 'PNG of another size'))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ('kind', 'where'),
    [
        (kind, where)
        for kind in ENTRIES
        for where in ('train/cat', 'test/dog', 'train', 'test')
        # A folder beside the class folders is one more class.
        if not (kind in ('folder', 'link to the folder above') and where in ('train', 'test'))
    ],
)
def test_every_kind_of_folder_entry(tmp_path, kind, where):
    folder = image_sets.small_folder(tmp_path / 'set')
    ENTRIES[kind](folder / where / 'z.png')
    before = tree(tmp_path)
    result = load_in_one_line(data_config('folder', folder))
    assert isinstance(result, InputError) and f'set/{where}' in str(result)
    assert tree(tmp_path) == before


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` cut off, with bytes changed, or with a piece left out, doubled or put in."""
    position = st.integers(0, len(content))
    piece = st.tuples(position, position).map(sorted)
    return st.one_of(
        position.map(lambda end: content[:end]),
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), min_size=1, max_size=8).map(
            lambda flips: _flipped(content, flips)
        ),
        piece.map(lambda cut: content[: cut[0]] + content[cut[1] :]),
        piece.map(lambda cut: content[: cut[1]] + content[cut[0] :]),
        st.tuples(position, st.binary(max_size=40)).map(lambda put: content[: put[0]] + put[1] + content[put[0] :]),
    )


def _flipped(content: bytes, flips: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for position, mask in flips:
        changed[position] ^= mask
    return bytes(changed)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_damaged_images_decode_or_are_named(kind):
    @settings(max_examples=150, deadline=None)
    @given(damaged(encoded(PHOTO.resize((20, 16)), kind)), st.sampled_from([0, 8]))
    def check(content, image_size):
        try:
            pixels = decode_image(content, 'the file', 3, image_size)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and (not image_size or pixels.shape == (8, 8, 3))
        except InputError as error:
            assert str(error).startswith('the file: not a usable image (') and '\n' not in str(error)

    check()


def test_damaged_idx_files_load_or_are_named():
    arrays = {
        'train-images-idx3-ubyte': random_images(0, 4, 3, 3),
        'train-labels-idx1-ubyte': np.array([0, 1, 2, 1]),
        't10k-images-idx3-ubyte': random_images(1, 2, 3, 3),
        't10k-labels-idx1-ubyte': np.array([1, 2]),
    }
    plain = {name: image_sets.idx_bytes(array) for name, array in arrays.items()}
    zipped = {name: gzip.compress(content) for name, content in plain.items()}
    candidates = [(name, content) for files in (plain, zipped) for name, content in files.items()]
    damages = st.sampled_from(candidates).flatmap(lambda file: st.tuples(st.just(file[0]), damaged(file[1])))

    @settings(max_examples=200, deadline=None)
    @given(damages)
    def check(damage):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (plain | dict([damage])).items():
                (Path(folder) / name).write_bytes(content)
            result = load_in_one_line(data_config('idx', folder))
            if isinstance(result, Dataset):
                assert len(result.train.images) == 4 and result.train.labels.max() < len(result.class_names)
                assert result.test.labels.max() < len(result.class_names)

    check()


INSTRUCTIONS = st.sampled_from(
    [bytes([code]) for code in b'().012NacdeltuRobsq}])\x85\x86\x87\x88\x89\x81\x92\x93\x94\x90\x91\x8f']
    + [b'K\x05', b'U\x01a', b'X\x01\0\0\0b', b'h\0', b'q\0', b'q\1', b'h\1', b'I3\n', b'p0\n', b'g0\n', b'C\x02ab']
    + [b'cnumpy\nndarray\n', b'cnumpy\ndtype\n', b'cnumpy.core.multiarray\n_reconstruct\n', b'c_codecs\nencode\n']
    + [b'cos\nsystem\n', b'cbuiltins\neval\n', b'Vtouch witness\n', b'U\x02u1', b'(ios\nsystem\n', b'\x82\1', b'Pa\n']
)


@settings(max_examples=400, deadline=None)
@given(st.lists(INSTRUCTIONS, max_size=30).map(b''.join) | st.binary(max_size=60))
def test_random_pickle_programs_give_plain_data_or_an_error(program):
    try:
        result = read_pickle(program + b'.')
    except PickleError as error:
        assert '\n' not in str(error)
    else:
        assert not callable(result)


def test_damaged_cifar_archives_load_or_are_named():
    files = image_sets.cifar_batches()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f'cifar-10-batches-py/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    tar = buffer.getvalue()

    @settings(max_examples=120, deadline=None)
    @given(damaged(tar) | damaged(gzip.compress(tar, 1)))
    def check(content):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'cifar-10-python.tar.gz'
            path.write_bytes(content)
            result = load_in_one_line(data_config('cifar', path))
            if isinstance(result, Dataset):
                assert result.train.labels.max() < len(result.class_names) and len(result.test.labels) > 0
            assert os.listdir(folder) == [path.name]

    check()


def test_hostile_pickles_in_archives_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, content in hostile_pickles(tmp_path / 'witness').items():
        path = image_sets.write_cifar_archive(
            tmp_path / 'x.tar.gz', image_sets.cifar_batches() | {'test_batch': content}
        )
        result = load_in_one_line(data_config('cifar', path))
        assert isinstance(result, InputError) and 'test_batch' in str(result), kind
    assert os.listdir(tmp_path) == ['x.tar.gz']


def test_archives_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('pnn_jax.data.files.MAX_BYTES', 2**20)
    path = tmp_path / 'cifar-10-python.tar.gz'
    path.write_bytes(gzip.compress(bytes(2**22)))
    assert 'more than 1,048,576 bytes' in str(load_in_one_line(data_config('cifar', path)))
