"""Checkpoints: bit-exact round trips, the right ones kept, nothing damaged ever returned."""

import json
import shutil
import subprocess
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pnn_jax.errors import InputError, RunError
from pnn_jax.run.checkpoints import Checkpointer, tree_digest


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple
    key: jax.Array


def make_state(seed: int = 0, width: int = 5, devices: int = 1) -> State:
    rng = np.random.default_rng(seed)
    params = {
        'layer': {
            'kernel': jnp.asarray(rng.normal(size=(3, width)), jnp.float32),
            'bias': -jnp.zeros(width),  # -0.0: a sign that a sum would lose
            'half': jnp.asarray(rng.normal(size=4), jnp.bfloat16),
        }
    }
    state = State(
        step=jnp.int32(seed),
        params=params,
        batch_stats={'mean': jnp.asarray([jnp.nan, 1.0])},
        opt_state=optax.chain(optax.trace(0.9), optax.scale(-1.0)).init(params),
        key=jax.random.key(seed),
    )
    mesh = jax.make_mesh((devices,), ('batch',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def assert_identical(state, expected):
    def bits(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).view(np.uint8) if leaf.ndim else np.asarray(leaf)[None].view(np.uint8)

    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), state, expected)


def saved_steps(directory: Path) -> list[int]:
    return [int(path.name.split('_')[-1]) for path in sorted(directory.glob('0*_step_*'))]


def step_path(directory: Path, step: int) -> Path:
    return sorted(directory.glob(f'*_step_{step}'))[-1]


def data_file(path: Path) -> Path:
    """The largest file: the arrays."""
    return max((file for file in path.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)


def flip_byte(file: Path, position: float = 0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * position)] ^= 1
    file.write_bytes(data)


@pytest.fixture
def two_steps(tmp_path):
    """Checkpoints of steps 1 and 2; 1 has the higher accuracy."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), {'epoch': 1}, accuracy=0.9)
        checkpointer.save(2, make_state(2), {'epoch': 2}, accuracy=0.8)
    return tmp_path


def test_round_trip_is_bit_exact_and_meta_survives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta = {'epoch': 3, 'losses': [0.1, float('nan')], 'masks': 'abc'}
    with Checkpointer('relative/checkpoints') as checkpointer:
        assert checkpointer.restore(make_state()) is None
        checkpointer.save(7, make_state(7), meta, accuracy=0.5)
        restored = checkpointer.restore(make_state())
    assert_identical(restored.state, make_state(7))
    assert restored.step == 7 and json.dumps(restored.meta) == json.dumps(meta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['relative']


@pytest.mark.parametrize('saved_on,restored_on', [(4, 1), (1, 4), (4, 2)])
def test_restores_on_another_number_of_devices(tmp_path, saved_on, restored_on):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1, devices=saved_on), {}, accuracy=None)
        template = make_state(devices=restored_on)
        restored = checkpointer.restore(template).state
    assert_identical(restored, make_state(1))
    assert restored.params['layer']['kernel'].sharding == template.params['layer']['kernel'].sharding
    assert restored.key.sharding.num_devices == restored_on


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    state = make_state(1)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x + 1, tree), donate_argnums=0)
    in_place = np.arange(4.0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {'params': state.params, 'array': in_place}, {}, accuracy=None)
        in_place += 1
        double(state.params)
        template = {'params': make_state().params, 'array': np.zeros(4)}
        restored = checkpointer.restore(template).state
    assert_identical(restored['params'], make_state(1).params)
    np.testing.assert_array_equal(restored['array'], np.arange(4.0))


def test_latest_best_and_older_ones_are_kept(tmp_path):
    accuracies = [0.1, 0.9, 0.3, 0.9, float('nan'), 0.2, None, 0.4]
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        for step, accuracy in enumerate(accuracies):
            checkpointer.save(step, make_state(step), {}, accuracy=accuracy)
    assert saved_steps(tmp_path) == [1, 6, 7]
    with Checkpointer(tmp_path) as checkpointer:  # a new process knows as much
        assert checkpointer.restore(make_state()).step == 7
        assert checkpointer.restore(make_state(), which='best').step == 1
        assert checkpointer.restore(make_state(), which=6).step == 6
        with pytest.raises(InputError, match='no checkpoint of step 3 .*only of 1, 6, 7'):
            checkpointer.restore(make_state(), which=3)
        with pytest.raises(InputError, match="'newest' is not"):
            checkpointer.restore(make_state(), which='newest')
        checkpointer.save(8, make_state(8), {}, accuracy=0.95)
        assert checkpointer.restore(make_state(), which='best').step == 8
    assert saved_steps(tmp_path) == [8]


def test_an_accuracy_that_is_not_finite_is_never_best(tmp_path):
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        for step, accuracy in enumerate([float('nan'), float('inf'), None]):
            checkpointer.save(step, make_state(step), {}, accuracy=accuracy)
        with pytest.raises(RunError, match='finite accuracy'):
            checkpointer.restore(make_state(), which='best')


def test_saving_a_step_again_supersedes_it(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, make_state(1), {'epoch': 0}, accuracy=None)
        checkpointer.save(4, make_state(2), {'epoch': 1}, accuracy=0.5)
        restored = checkpointer.restore(make_state())
    assert_identical(restored.state, make_state(2))
    assert restored.meta == {'epoch': 1} and saved_steps(tmp_path) == [4]


def flip_array(path):
    flip_byte(data_file(path / 'state'))


def flip_accuracy(path):
    file = path / 'meta' / 'metadata'
    file.write_text(file.read_text().replace('"accuracy": 0.8', '"accuracy": 0.1'))


def truncate_array(path):
    file = data_file(path / 'state')
    file.write_bytes(file.read_bytes()[:-10])


DAMAGES = {
    'flipped byte of the arrays': (flip_array, 'state'),
    'another accuracy': (flip_accuracy, 'meta differs from its sha256'),
    'truncated arrays': (truncate_array, 'state'),
    'no manifest': (lambda path: (path / 'state' / 'manifest.ocdbt').unlink(), 'state cannot be read'),
    'no _METADATA': (lambda path: (path / 'state' / '_METADATA').unlink(), 'state cannot be read'),
    'no state': (lambda path: shutil.rmtree(path / 'state'), 'state cannot be read'),
    'no meta': (lambda path: shutil.rmtree(path / 'meta'), 'meta cannot be read'),
    'empty directory': (lambda path: [shutil.rmtree(path), path.mkdir()], 'meta cannot be read'),
    'a file': (lambda path: [shutil.rmtree(path), path.write_bytes(b'')], 'meta cannot be read'),
}


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # coroutines that orbax leaves behind
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_latest_falls_back_to_the_one_before_and_says_so(two_steps, caplog, damage):
    harm, reason = DAMAGES[damage]
    harm(step_path(two_steps, 2))
    with Checkpointer(two_steps) as checkpointer:
        restored = checkpointer.restore(make_state())
        assert restored.step == 1 and restored.meta == {'epoch': 1}
        assert_identical(restored.state, make_state(1))
        warning = [record.getMessage() for record in caplog.records if record.name == 'root']
        assert len(warning) == 1 and '_step_2 is damaged and skipped' in warning[0] and reason in warning[0]
        # The run continues and saves step 2 again.
        checkpointer.save(2, make_state(5), {'epoch': 2}, accuracy=0.8)
        assert_identical(checkpointer.restore(make_state()).state, make_state(5))
    assert saved_steps(two_steps) == [1, 2]
    assert 'deleting the damaged checkpoint' in caplog.text


def test_inspection_names_every_checkpoint(two_steps):
    with Checkpointer(two_steps) as checkpointer:
        checkpointer.save_masks(make_masks(1))
        flip_array(step_path(two_steps, 2))
        masks, first, second = checkpointer.inspect()
    assert masks.name == 'masks' and masks.state_sha256 == tree_digest(make_masks(1))
    assert first == ('000001_step_1', 1, 0.9, tree_digest(make_state(1)), None)
    assert second[:4] == ('000002_step_2', None, None, None) and 'state' in second.damage


def test_deleting_commit_files_harms_nothing(two_steps):
    for file in two_steps.rglob('commit_success.txt'):
        file.unlink()
    with Checkpointer(two_steps) as checkpointer:
        assert_identical(checkpointer.restore(make_state()).state, make_state(2))


def test_a_damaged_best_is_named(two_steps, caplog):
    flip_array(step_path(two_steps, 1))
    with Checkpointer(two_steps) as checkpointer:
        assert checkpointer.restore(make_state(), which='best').step == 2
    assert '_step_1 is damaged and skipped' in caplog.text


def test_a_best_with_an_unreadable_meta_is_named(two_steps, caplog):
    flip_byte(step_path(two_steps, 1) / 'meta' / 'metadata')
    with Checkpointer(two_steps) as checkpointer:
        assert checkpointer.restore(make_state(), which='best').step == 2
    assert '_step_1 is damaged and skipped' in caplog.text


def test_a_renamed_checkpoint_is_refused(two_steps, caplog):
    step_path(two_steps, 1).rename(two_steps / '000009_step_9')
    with Checkpointer(two_steps) as checkpointer:
        assert checkpointer.restore(make_state()).step == 2
    assert 'it is of step 1' in caplog.text


def test_all_damaged_is_an_error_and_never_a_fresh_start(two_steps):
    for step in (1, 2):
        flip_array(step_path(two_steps, step))
    with Checkpointer(two_steps) as checkpointer, pytest.raises(RunError, match='step_2: .*step_1: '):
        checkpointer.restore(make_state())
    assert saved_steps(two_steps) == [1, 2]


def test_a_checkpoint_of_another_configuration_names_the_leaf(two_steps):
    with Checkpointer(two_steps) as checkpointer:
        with pytest.raises(RunError, match=r'params.layer.bias is float32\[5\] instead of float32\[6\]'):
            checkpointer.restore(make_state(width=6))
        state = make_state()
        with pytest.raises(RunError, match='params.linear is missing'):
            checkpointer.restore(state.replace(params={**state.params, 'linear': jnp.zeros(2)}))
        with pytest.raises(RunError, match='batch_stats.mean is unknown'):
            checkpointer.restore(state.replace(batch_stats={}))


def test_leftovers_of_a_killed_process_are_removed_by_the_next_save(two_steps):
    leftover = two_steps / '000003_step_3.orbax-checkpoint-tmp'
    shutil.copytree(step_path(two_steps, 2), leftover)
    with Checkpointer(two_steps) as checkpointer:
        assert checkpointer.restore(make_state()).step == 2
        assert leftover.exists()  # reading changes nothing
        checkpointer.save(3, make_state(3), {}, accuracy=None)
    assert saved_steps(two_steps) == [1, 3] and not list(two_steps.glob('*tmp*'))


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """A real one where mounting is allowed, else a write that fails with its first file."""
    directory = tmp_path / 'disk'
    directory.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(directory)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    rng = np.random.default_rng(0)
    try:
        checkpointer = Checkpointer(directory / 'checkpoints')
        checkpointer.save(1, {'a': rng.normal(size=1000)}, {}, accuracy=None)
        checkpointer.wait()
        if not mounted:

            def full(path, *_):
                path.with_name(f'{path.name}.orbax-checkpoint-tmp').mkdir()
                raise OSError(28, 'No space left on device')

            checkpointer._orbax.save = full
        checkpointer.save(2, {'a': rng.normal(size=1_000_000)}, {}, accuracy=None)
        with pytest.raises(RunError, match='step 2 not written .*; the one of step 1 is untouched') as failure:
            checkpointer.wait()
        assert 'space' in str(failure.value).lower() or 'ENOSPC' in str(failure.value)
        expected = np.random.default_rng(0).normal(size=1000)
        np.testing.assert_array_equal(checkpointer.restore({'a': np.zeros(1000)}).state['a'], expected)
        assert not list(directory.rglob('*tmp*'))
        checkpointer.close()
    finally:
        if mounted:
            subprocess.run(['umount', str(directory)], check=True)


def test_the_digest_sees_every_part():
    state = make_state(1)
    digests = {tree_digest(state)}
    digests.add(tree_digest(state.replace(step=jnp.int32(2))))
    digests.add(tree_digest(state.replace(key=jax.random.key(2))))
    digests.add(tree_digest(state.replace(batch_stats={'mean': jnp.asarray([jnp.nan, 2.0])})))
    digests.add(tree_digest(state.replace(batch_stats={'var': state.batch_stats['mean']})))
    digests.add(tree_digest(jax.tree.map(lambda x: x, state).replace(opt_state=(state.params, ()))))
    digests.add(tree_digest({'a': np.zeros((2, 3))}))
    digests.add(tree_digest({'a': np.zeros((3, 2))}))
    digests.add(tree_digest({'a': np.zeros((3, 2), np.int64)}))
    digests.add(tree_digest({'a': np.asarray([0.0])}))
    digests.add(tree_digest({'a': np.asarray([-0.0])}))
    assert len(digests) == 11
    assert tree_digest(make_state(1)) == tree_digest(make_state(1, devices=4)) == tree_digest(state)


def make_masks(seed: int) -> dict:
    return {'layer': {'masks': jax.random.normal(jax.random.key(seed), (16, 16, 3))}}


def test_masks_are_saved_once_and_verified(tmp_path, caplog):
    expected = tree_digest(make_masks(1))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_masks(make_masks(1))
        written = data_file(tmp_path / 'masks').stat().st_mtime_ns
        checkpointer.save_masks(make_masks(1))
        assert data_file(tmp_path / 'masks').stat().st_mtime_ns == written
        # A library that draws other numbers today does no harm.
        assert_identical(checkpointer.load_masks(make_masks(2), expected), make_masks(1))
        with pytest.raises(RunError, match='was expected'):
            checkpointer.load_masks(make_masks(2), tree_digest(make_masks(3)))
        checkpointer.save(1, make_state(1), {}, accuracy=None)
        checkpointer.wait()
        with pytest.raises(RunError, match='other noise masks'):
            checkpointer.save_masks(make_masks(2))
        with pytest.raises(RunError, match=r'layer.masks is float32\[16, 16, 3\] instead of float32\[2\]'):
            checkpointer.load_masks({'layer': {'masks': jnp.zeros(2)}}, expected)


def test_a_checkpoint_that_a_run_replaces_while_it_is_looked_at_is_not_damaged(tmp_path, monkeypatch, caplog):
    with Checkpointer(tmp_path) as checkpointer, Checkpointer(tmp_path, read_only=True) as reader:
        checkpointer.save_masks({})
        checkpointer.save(1, make_state(1), {'fixed_digest': tree_digest({})}, accuracy=0.5)
        checkpointer.wait()
        listed = reader._entries()
        checkpointer.save(2, make_state(2), {'fixed_digest': tree_digest({})}, accuracy=0.6)
        checkpointer.wait()
        entries = reader._entries
        answers = iter([listed])
        monkeypatch.setattr(reader, '_entries', lambda: next(answers, None) or entries())
        assert reader.read('latest')[1]['step'] == 2
        answers = iter([listed])
        assert reader.read('best')[1]['step'] == 2
    assert 'damaged' not in caplog.text


def test_damaged_masks_are_refused_or_drawn_again(tmp_path, caplog):
    expected = tree_digest(make_masks(1))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_masks(make_masks(1))
        flip_array(tmp_path / 'masks')
        with pytest.raises(RunError, match='noise masks in .*masks cannot be used: state'):
            checkpointer.load_masks(make_masks(2), expected)
        with Checkpointer(tmp_path, read_only=True) as reader:
            assert_identical(reader.load_masks(make_masks(1), expected), make_masks(1))
        with pytest.raises(RunError):  # still damaged
            checkpointer.load_masks(make_masks(2), expected)
        assert_identical(checkpointer.load_masks(make_masks(1), expected), make_masks(1))
        assert 'drawn again' in caplog.text
        assert_identical(checkpointer.load_masks(make_masks(2), expected), make_masks(1))
        shutil.rmtree(tmp_path / 'masks')
        with pytest.raises(RunError, match='cannot be used'):
            checkpointer.load_masks(make_masks(2), expected)


def test_a_network_without_masks_has_none_to_save(tmp_path):
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        checkpointer.save_masks({})
        assert checkpointer.load_masks({}, tree_digest({})) == {}
        with pytest.raises(RunError, match='noise masks'):
            checkpointer.load_masks({}, tree_digest(make_masks(1)))
    assert not (tmp_path / 'checkpoints').exists()


def test_an_error_of_the_last_save_is_not_lost(tmp_path):
    (tmp_path / 'file').write_text('')
    checkpointer = Checkpointer(tmp_path / 'file' / 'checkpoints')
    checkpointer.save(1, make_state(1), {}, accuracy=None)
    with pytest.raises(RunError, match='step 1 not written .*there is no earlier one'):
        checkpointer.close()

    def save_and_fail():
        with Checkpointer(tmp_path / 'file' / 'checkpoints') as checkpointer:
            checkpointer.save(1, make_state(1), {}, accuracy=None)
            raise KeyError

    with pytest.raises(RunError) as failure:
        save_and_fail()
    assert isinstance(failure.value.__context__, KeyError)
