"""Files that are replaced as a whole."""

import os
import stat

import pytest

from pnn_jax.paths import replace_file, replacing


def test_file_is_replaced_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with replacing(path) as file:
        file.write(b'n')
        file.flush()
        assert path.read_bytes() == b'old'
        file.write(b'ew')
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['file']


def test_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'file'
    replace_file(path, b'old')

    def interrupted():
        with replacing(path) as file:
            file.write(b'new')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_others_may_read_the_file_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / 'file', b'x')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'file').stat().st_mode) == 0o640
