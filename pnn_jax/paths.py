"""Paths as users write them, and writing files atomically.

Every path that a user can give (workdir, data, cache, checkpoint, what is converted) goes through `local_path`.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pnn_jax.errors import InputError

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*:/')  # also 's3:/bucket', which is what is left of a URL after Path()


class UnknownHomeError(InputError):
    """A path begins with `~`, and no home directory is known."""


def local_path(value: str | os.PathLike, field: str) -> Path:
    """The absolute path that a user means by `value`: `~` is expanded, a URL is refused.

    Args:
        value: as the user wrote it.
        field: the flag or config field, for errors: '--workdir', 'config.data.path'.

    Raises:
        InputError: `value` is empty or a URL.
        UnknownHomeError: `value` begins with `~`, and no home directory is known; an InputError too.
    """
    text = os.fspath(value)
    if not text:
        raise InputError(f'{field} is empty: must be a file or folder')
    if '\0' in text:
        raise InputError(f'{field}={text!r}: must be a file or folder')
    if _URL.match(text):
        raise InputError(
            f'{field}={text}: URLs are not read or written; copy the files to a local disk, or mount the bucket as a '
            'folder, and name that'
        )
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UnknownHomeError(
            f'{field}={text}: the home directory of {text.split("/")[0]} is not known; name the folder in full'
        ) from None
    return Path(os.path.abspath(path))


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that at any instant the old or the new content is there, also after a power failure.

    Raises:
        OSError: as the system raises it. The old file is still there then, and nothing else is left behind.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As `replace_file`, for content that is written piece by piece to the open file that the block gets.

    The file replaces the one at `path` when the block ends. Where the block raises, the old file stays.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that nobody else can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
