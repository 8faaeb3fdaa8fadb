"""Compiled programs on disk: where they are, how many are kept, and that they never fail a run."""

import os
import zlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from jax.experimental.compilation_cache import compilation_cache

from pnn_jax import program_cache
from pnn_jax.program_cache import folder_of_machine, remove_damaged, remove_oldest, use_program_cache

OPTIONS = (
    'jax_enable_compilation_cache',
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
)


@pytest.fixture(autouse=True)
def jax_options(monkeypatch):
    """Without the cache of the tests; what a test sets is undone."""
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    kept = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()
    yield
    for name, value in kept.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def chosen() -> str | None:
    return jax.config.jax_compilation_cache_dir


def test_default_is_the_cache_folder_of_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv('PNN_JAX_CACHE', os.fspath(tmp_path))
    use_program_cache()
    assert chosen() == os.fspath(folder_of_machine(tmp_path / 'programs')) and os.path.isdir(chosen())


def test_users_choice_decides(monkeypatch, tmp_path):
    use_program_cache('off')
    assert chosen() is None and not jax.config.jax_enable_compilation_cache
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', os.fspath(tmp_path / 'of_jax'))
    use_program_cache()
    assert chosen() is None  # jax itself has read the variable, if it was there when the process started
    use_program_cache(os.fspath(tmp_path / 'mine'))
    assert chosen() == os.fspath(folder_of_machine(tmp_path / 'mine'))


def test_without_a_folder_there_is_no_cache(monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    use_program_cache(os.fspath(tmp_path / 'file'))
    assert chosen() is None
    monkeypatch.setattr(os, 'access', lambda folder, how: False)
    use_program_cache(os.fspath(tmp_path / 'read_only'))
    assert chosen() is None


def test_folder_is_that_of_one_jax_and_one_processor(monkeypatch, tmp_path):
    here = folder_of_machine(tmp_path)
    assert here == folder_of_machine(tmp_path)
    version = program_cache.metadata.version('jaxlib')
    with monkeypatch.context() as other_jax:
        other_jax.setattr(program_cache.metadata, 'version', lambda name: version + '.1')
        assert folder_of_machine(tmp_path) != here
    monkeypatch.setattr(program_cache, '_CPUINFO', tmp_path / 'cpuinfo')
    (tmp_path / 'cpuinfo').write_text('flags : avx2\ncpu MHz : 1000')
    first = folder_of_machine(tmp_path)
    (tmp_path / 'cpuinfo').write_text('flags : avx2\ncpu MHz : 2000')
    assert folder_of_machine(tmp_path) == first
    (tmp_path / 'cpuinfo').write_text('flags : avx2 avx512f\ncpu MHz : 2000')
    assert folder_of_machine(tmp_path) != first
    (tmp_path / 'cpuinfo').unlink()
    assert folder_of_machine(tmp_path).parent == tmp_path  # other systems


def test_a_program_that_cannot_be_read_does_not_hide_a_damaged_one(monkeypatch, tmp_path):
    for name in ('a', 'b', 'c'):
        (tmp_path / f'{name}-cache').write_bytes(b'cut off')
    read, refused = program_cache.Path.read_bytes, []

    def of_somebody_else(path):
        if not refused:
            refused.append(path)
            raise PermissionError(13, 'Permission denied')
        return read(path)

    monkeypatch.setattr(program_cache.Path, 'read_bytes', of_somebody_else)
    program_cache.remove_damaged(tmp_path)
    assert list(tmp_path.glob('*-cache')) == refused


@hypothesis.given(
    sizes=strategies.lists(strategies.integers(0, 50), max_size=8),
    max_bytes=strategies.integers(0, 200),
    random=strategies.randoms(use_true_random=False),
)
def test_oldest_programs_are_removed_and_nothing_else(tmp_path_factory, sizes, max_bytes, random):
    root = tmp_path_factory.mktemp('programs')
    folders = [root / 'jax-1', root / 'jax-2']
    for folder in folders:
        folder.mkdir()
    ages = random.sample(range(len(sizes)), len(sizes))
    programs = {}
    for number, (size, age) in enumerate(zip(sizes, ages, strict=True)):
        file = random.choice(folders) / f'{number}-cache'
        file.write_bytes(bytes(size))
        os.utime(file, (1e9 - age, 1e9 - age))
        programs[age] = file
    others = [root / 'mine-cache', root / 'jax-1' / 'notes']
    for file in others:
        file.write_bytes(bytes(1000))
    remove_oldest(root, max_bytes)
    kept = [age for age, file in programs.items() if file.exists()]
    assert sorted(kept) == list(range(len(kept)))  # the youngest
    sizes_by_age = [programs[age].stat().st_size for age in sorted(kept)]
    assert sum(sizes_by_age) <= max_bytes
    if len(kept) < len(sizes):  # one more would have been too many
        assert sum(sizes_by_age) + sizes[ages.index(len(kept))] > max_bytes
    assert all(file.exists() for file in others)


@pytest.mark.parametrize('by_variable', [False, True])
def test_programs_that_were_cut_off_are_compiled_and_stored_again(by_variable, monkeypatch, tmp_path):
    """As a full disk or a killed process leaves them. Before the next start they are no error either."""
    if by_variable:
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', os.fspath(tmp_path))
        jax.config.update('jax_compilation_cache_dir', os.fspath(tmp_path))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    start = lambda: use_program_cache(None if by_variable else os.fspath(tmp_path))
    start()
    function = jax.jit(lambda x: jnp.sin(x) * 3 + 1)
    x = np.arange(5, dtype=np.float32)
    expected = np.asarray(function(x))
    whole = {file: file.read_bytes() for file in tmp_path.rglob('*-cache')}
    assert whole
    for file, content in whole.items():
        file.write_bytes(content[: len(content) // 2])
    jax.clear_caches()
    np.testing.assert_array_equal(function(x), expected)
    assert [len(file.read_bytes()) for file in whole] == [len(content) // 2 for content in whole.values()]
    start()
    jax.clear_caches()
    np.testing.assert_array_equal(function(x), expected)
    assert all(zlib.decompress(file.read_bytes()) for file in whole)


def test_programs_that_were_found_whole_are_not_read_again(monkeypatch, tmp_path):
    file, late = tmp_path / 'a-cache', tmp_path / 'b-cache'
    file.write_bytes(zlib.compress(b'program'))
    os.utime(file, (1e9, 1e9))
    remove_damaged(tmp_path)
    monkeypatch.setattr(program_cache.Path, 'read_bytes', lambda path: pytest.fail(f'read {path}'))
    remove_damaged(tmp_path)
    monkeypatch.undo()
    late.write_bytes(b'cut off')
    other_library = tmp_path / 'c-cache'
    other_library.write_bytes(b'\x28\xb5\x2f\xfd')  # as zstd begins; only jax with that library can tell what is whole
    remove_damaged(tmp_path)
    assert file.exists() and not late.exists() and other_library.exists()
