"""Files as bytes, gzipped or not, within bounds."""

import gzip
import zlib
from pathlib import Path

from pnn_jax.errors import InputError

MAX_BYTES = 2**30  # several times the largest file that the in-memory sources know


def read_bytes(path: Path) -> bytes:
    """The content of a file, unzipped where it is gzipped.

    Raises:
        InputError: the file is missing, unreadable, damaged, or larger than MAX_BYTES when unzipped.
    """
    try:
        with open(path, 'rb') as file:
            gzipped = file.read(2) == b'\x1f\x8b'
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if gzipped else file).read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f'{path}: damaged gzip file ({error})') from None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror or error})') from None
    if len(content) > MAX_BYTES:
        raise InputError(f'{path}: more than {MAX_BYTES:,} bytes')
    return content
