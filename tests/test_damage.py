"""Damaged checkpoints of every kind: none is restored wrongly, each is named, a good earlier one is used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from pnn_jax.errors import RunError
from pnn_jax.run.checkpoints import Checkpointer, tree_digest

# Orbax leaves coroutines behind where it fails to read.
pytestmark = [
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
    pytest.mark.filterwarnings('ignore:coroutine'),
]


def make_state(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        'step': np.int32(seed),
        'params': {'layer1': {'kernel': rng.normal(size=(64, 64, 16)).astype(np.float32)}},
        'batch_stats': {'mean': rng.normal(size=64).astype(np.float32)},
        'opt_state': [rng.normal(size=(64, 64, 16)).astype(np.float32)],
    }


def arrays_file(path: Path) -> Path:
    """The file with the arrays, which is the largest."""
    return max((file for file in (path / 'state').rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)


def manifest(path: Path) -> Path:
    return path / 'state' / 'manifest.ocdbt'


def metadata(path: Path) -> Path:
    return path / 'state' / '_METADATA'


def meta(path: Path) -> Path:
    return path / 'meta' / 'metadata'


def truncate(file: Callable[[Path], Path], fraction: float) -> Callable[[Path], None]:
    def harm(path):
        data = file(path).read_bytes()
        file(path).write_bytes(data[: int(len(data) * fraction)])

    return harm


def flip(file: Callable[[Path], Path], fraction: float) -> Callable[[Path], None]:
    def harm(path):
        data = bytearray(file(path).read_bytes())
        data[int(len(data) * fraction)] ^= 0x10
        file(path).write_bytes(data)

    return harm


def fill_with_zeros(path):
    file = arrays_file(path)
    file.write_bytes(bytes(file.stat().st_size))


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def become_a_file(path):
    shutil.rmtree(path)
    path.write_bytes(b'checkpoint')


def become_a_link_to_itself(path):
    shutil.rmtree(path)
    path.symlink_to(path)


def take_the_state_of_the_other(path):
    shutil.rmtree(path / 'state')
    shutil.copytree(path.parent / '000001_step_1' / 'state', path / 'state')


def be_a_copy_of_the_other(path):
    shutil.rmtree(path)
    shutil.copytree(path.parent / '000001_step_1', path)


def change_meta(old: str, new: str) -> Callable[[Path], None]:
    def harm(path):
        text = meta(path).read_text()
        assert old in text
        meta(path).write_text(text.replace(old, new))

    return harm


DAMAGES = {
    **{f'arrays cut at {10 * tenth}%': truncate(arrays_file, tenth / 10) for tenth in range(10)},
    **{
        f'arrays with a flipped bit at {percent}%': flip(arrays_file, percent / 100)
        for percent in (0, 10, 30, 50, 70, 90)
    },
    'arrays filled with zeros': fill_with_zeros,
    'no arrays': lambda path: arrays_file(path).unlink(),
    'no directory of arrays': lambda path: shutil.rmtree(path / 'state' / 'd'),
    'manifest cut': truncate(manifest, 0.5),
    'manifest with a flipped bit': flip(manifest, 0.5),
    'no manifest': lambda path: manifest(path).unlink(),
    'metadata cut': truncate(metadata, 0.5),
    'no metadata': lambda path: metadata(path).unlink(),
    'no state': lambda path: shutil.rmtree(path / 'state'),
    'state of another checkpoint': take_the_state_of_the_other,
    'a copy of another checkpoint': be_a_copy_of_the_other,
    'meta cut': truncate(meta, 0.5),
    'meta with a flipped bit': flip(meta, 0.5),
    'meta that is not an object': lambda path: meta(path).write_text('[]'),
    'meta with another accuracy': change_meta('0.25', '0.75'),
    'meta with another position': change_meta('"epoch": 2', '"epoch": 1'),
    'no meta': lambda path: shutil.rmtree(path / 'meta'),
    'an empty directory': empty,
    'a file': become_a_file,
    'a link to itself': become_a_link_to_itself,
}


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp('original')
    with Checkpointer(directory, keep=1) as checkpointer:
        checkpointer.save(1, make_state(1), {'epoch': 1}, accuracy=0.5)
        checkpointer.save(2, make_state(2), {'epoch': 2}, accuracy=0.25)
    return directory


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_damaged_checkpoint(original, tmp_path, caplog, kind):
    directory = tmp_path / 'checkpoints'
    shutil.copytree(original, directory)
    DAMAGES[kind](directory / '000002_step_2')
    with Checkpointer(directory) as checkpointer:
        restored = checkpointer.restore(make_state(0))
        assert (restored.step, restored.meta) == (1, {'epoch': 1})
        assert tree_digest(restored.state) == tree_digest(make_state(1))
        warnings = [record.getMessage() for record in caplog.records if record.name == 'root']
        assert len(warnings) == 1 and '000002_step_2 is damaged and skipped: ' in warnings[0]
        assert '\n' not in warnings[0]
        with pytest.raises(RunError, match='000002_step_2: '):
            checkpointer.restore(make_state(0), which=2)
        # Alone, it is an error that names it, and never a fresh start.
        shutil.rmtree(directory / '000001_step_1')
        with pytest.raises(RunError, match='000002_step_2: '):
            checkpointer.restore(make_state(0))


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(original, tmp_path, caplog):
    """In every file, at several places: what is restored is always one of the two states, bit by bit."""
    used = set()
    files = [path.relative_to(original) for path in sorted((original / '000002_step_2').rglob('*')) if path.is_file()]
    files = [file for file in files if (original / file).stat().st_size]
    assert len(files) >= 6
    for file in files:
        for place in (0.0, 0.37, 0.81):
            directory = tmp_path / f'{len(list(tmp_path.iterdir()))}'
            shutil.copytree(original, directory)
            flip(lambda path: directory / file, place)(directory)  # noqa: B023  (called at once)
            with Checkpointer(directory) as checkpointer:
                restored = checkpointer.restore(make_state(0))
            assert tree_digest(restored.state) == tree_digest(make_state(restored.step))
            assert restored.meta == {'epoch': restored.step}
            used.add(restored.step)
    assert used == {1, 2}


def test_a_checkpoint_of_another_configuration(original):
    """It is whole, so nothing earlier is tried: the leaf is named."""
    template = make_state(0)
    template['params']['layer1']['kernel'] = np.zeros((64, 65, 16), np.float32)
    with (
        Checkpointer(original) as checkpointer,
        pytest.raises(
            RunError, match=r'params.layer1.kernel is float32\[64, 64, 16\] instead of float32\[64, 65, 16\]'
        ),
    ):
        checkpointer.restore(template)


def test_restoring_never_changes_the_files(original, tmp_path):
    directory = tmp_path / 'checkpoints'
    shutil.copytree(original, directory)
    flip(arrays_file, 0.5)(directory / '000002_step_2')
    before = {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}
    with Checkpointer(directory) as checkpointer:
        checkpointer.restore(jax.tree.map(np.zeros_like, make_state(0)))
    assert {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()} == before
