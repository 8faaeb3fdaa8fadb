"""Compiled programs on disk: a program is compiled once on a machine. The cache saves time and never fails a run.

JAX's cache key covers the program, its options and XLA's flags, but not the processor: XLA:CPU compiles for the one
that it runs on, and the program may crash on another. So each version of jaxlib and kind of processor has a folder.
"""

import contextlib
import hashlib
import os
import platform
import time
import warnings
from importlib import metadata
from pathlib import Path

from pnn_jax.data.cache import cache_folder
from pnn_jax.paths import UnknownHomeError, local_path

OFF = 'off'
MAX_BYTES = 2**30

# Harmless: jax then goes on with the program that it compiled.
CACHE_WARNING = 'Error (reading|writing) persistent compilation cache entry'

_FIRST_BYTES = {b'\x78', b'\x28'}  # of zlib and of zstd; jax uses the second where it is installed

_CHECKED = 'checked'  # a file whose time is that of the last `remove_damaged`

_CPUINFO = Path('/proc/cpuinfo')  # Linux alone has it
# What it says about the kind of processor, on x86 and on ARM. Other lines hold frequencies, which change.
_KIND_OF_PROCESSOR = ('model name', 'flags', 'CPU implementer', 'CPU part', 'Features')


def use_program_cache(folder: str | None = None) -> None:
    """Lets jax keep compiled programs on disk. Call it before the first program.

    Args:
        folder: 'off' for none. By default that of the environment's JAX_COMPILATION_CACHE_DIR, which jax reads itself,
            else `programs` in the cache folder of pnn_jax. Where no folder can be written, there is no cache.
    """
    import jax

    if folder == OFF:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    warnings.filterwarnings('ignore', CACHE_WARNING)
    if folder is None and (variable := os.environ.get('JAX_COMPILATION_CACHE_DIR')):
        remove_damaged(Path(variable))
        return
    try:
        root = local_path(folder, '--compilation_cache') if folder else cache_folder('') / 'programs'
        programs = folder_of_machine(root)
        programs.mkdir(parents=True, exist_ok=True)
    except (OSError, UnknownHomeError):
        return
    if not os.access(programs, os.W_OK):
        return
    remove_damaged(programs)
    remove_oldest(root)
    jax.config.update('jax_compilation_cache_dir', os.fspath(programs))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)  # dozens of small programs take seconds too
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def folder_of_machine(root: Path) -> Path:
    """The folder inside `root` for this version of jaxlib and this kind of processor."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    kind = {line for line in lines if line.startswith(_KIND_OF_PROCESSOR)} or {platform.machine(), platform.processor()}
    digest = hashlib.sha256(repr(sorted(kind)).encode()).hexdigest()
    return root / f'jax-{metadata.version("jaxlib")}-{digest[:12]}'


def remove_damaged(programs: Path) -> None:
    """Removes the programs that were cut off when their process was killed or the disk was full.

    JAX does not write over a program that it cannot read: without this, it would be compiled in every process. Programs
    that an earlier call found whole are not read again.
    """
    # jax has no public names for these
    from jax._src.compilation_cache import compress_executable, decompress_executable

    other_formats = _FIRST_BYTES - {compress_executable(b'')[:1]}

    checked = programs / _CHECKED
    began = time.time()  # what is written from now on is checked next time
    since = 0.0
    with contextlib.suppress(OSError):  # there is none yet
        since = checked.stat().st_mtime
    for file in programs.glob('*-cache'):
        with contextlib.suppress(OSError):  # another process removes it at the same time, or it is another user's
            if file.stat().st_mtime < since:
                continue
            content = file.read_bytes()
            if content[:1] in other_formats:  # whole perhaps, for an environment with another library
                continue
            try:
                decompress_executable(content)
            except Exception:  # noqa: BLE001  (zlib's or zstd's error, whichever jax uses)
                file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder cannot be written
        checked.touch()
        os.utime(checked, (began, began))


def remove_oldest(root: Path, max_bytes: int = MAX_BYTES) -> None:
    """Removes the least recently used programs, until those in `root` take at most `max_bytes`.

    JAX can limit its cache itself, but then takes a lock for every program that it reads.
    """
    files = []
    for file in root.glob('jax-*/*-cache'):
        with contextlib.suppress(OSError):  # another process removes it at the same time
            files.append((file, file.stat()))
    files.sort(key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime))
    excess = sum(status.st_size for _, status in files) - max_bytes
    for file, status in files:
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        excess -= status.st_size
