"""Files and folders as people have them: where a data set lies, what is no part of it, and the bytes of a file."""

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path

from pnn_jax.errors import InputError, one_line, os_reason

MAX_BYTES = 2**30  # several times the largest file that the in-memory sources read
SEARCH_DEPTH = 2  # torchvision keeps MNIST in <root>/MNIST/raw

# What operating systems, network disks and archivers leave in folders. Files or folders, in lower case.
_SYSTEM_NAMES = frozenset(
    {
        *('thumbs.db', 'ehthumbs.db', 'ehthumbs_vista.db', 'desktop.ini'),  # Windows
        *('$recycle.bin', 'system volume information'),
        *('__macosx', 'icon\r', 'network trash folder', 'temporary items'),  # macOS, besides names with a dot
        *('@eadir', '@tmp', '@recycle', '@recently-snapshot', '#recycle', '#snapshot'),  # Synology and QNAP
        *('lost+found', '__pycache__'),
    }
)
_SYSTEM_SUFFIXES = (':zone.identifier', ':encryptable', '@synoeastream', '@synoresource')

# What people keep beside images. Files only: a class can have the name of any of them.
_NOTE_NAMES = frozenset({'readme', 'license', 'licence', 'md5sums', 'sha1sums', 'sha256sums'})
_NOTE_SUFFIXES = (
    *('.csv', '.tsv', '.txt', '.json', '.jsonl', '.xml', '.yaml', '.yml', '.ini'),  # lists and annotations
    *('.md', '.rst', '.html', '.log', '.md5', '.sha256', '.lnk', '.url', '.webloc', '~'),
)


def is_left_by_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or something that systems leave behind."""
    name = name.lower()
    return name.startswith('.') or name in _SYSTEM_NAMES or name.endswith(_SYSTEM_SUFFIXES)


def is_note(name: str) -> bool:
    """Whether a file of this name is a list, an annotation or a note that people keep beside images."""
    name = name.lower()
    return name in _NOTE_NAMES or name.endswith(_NOTE_SUFFIXES)


def find_folder(root: Path, holds: Callable[[Path], bool], wanted: str) -> Path:
    """The folder of a data set: `root`, or the only suitable one at most SEARCH_DEPTH levels below it.

    Args:
        root: config.data.path.
        holds: whether a folder holds the set.
        wanted: what `holds` looks for, for errors.

    Raises:
        InputError: `root` cannot be read, or there is no such folder, or more than one.
    """
    try:
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f'config.data.path={root}: cannot be read ({os_reason(error)})') from None
    # The real path as key: a folder and a link to it are one.
    found = {os.path.realpath(folder): folder for folder in _holders(root, holds, SEARCH_DEPTH)}
    if not found:
        raise InputError(
            f'config.data.path={root}: there is no {wanted} in it, nor in a folder at most {SEARCH_DEPTH} levels below'
        )
    if len(found) > 1:
        names = ', '.join(os.path.relpath(folder, root) for folder in found.values())
        raise InputError(f'config.data.path={root}: several folders in it hold such a set: {names}; name one of them')
    return next(iter(found.values()))


def _holders(folder: Path, holds: Callable[[Path], bool], depth: int) -> list[Path]:
    if holds(folder):
        return [folder]
    if not depth:
        return []
    try:
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if not is_left_by_system(entry.name) and entry.is_dir())
    except OSError:  # somebody else's folder, beside the one that is looked for
        return []
    return [found for path in below for found in _holders(Path(path), holds, depth - 1)]


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed where it is gzipped.

    Raises:
        InputError: the file is missing, unreadable, damaged, or larger than MAX_BYTES when decompressed.
    """
    try:
        with open(path, 'rb') as file:
            gzipped = file.read(2) == b'\x1f\x8b'
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if gzipped else file).read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f'{path}: damaged gzip file ({one_line(error)})') from None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)})') from None
    if len(content) > MAX_BYTES:
        raise InputError(f'{path}: more than {MAX_BYTES:,} bytes')
    return content
