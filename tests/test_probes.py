"""The probes of trained networks: what each change must do to networks whose answer is known."""

import json
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import no_noise, noise_masks
from experiments.command import exit_code
from experiments.probes import __main__ as command
from experiments.probes import changes, position
from experiments.probes.network import ProbedNetwork
from experiments.probes.results import read_probes
from pnn_jax.data.dataset import Dataset, Split
from pnn_jax.errors import InputError
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import init_variables
from pnn_jax.run.load import Run

SHAPE, CLASSES = (8, 8, 1), 3
IMAGES = np.random.default_rng(0).integers(0, 256, (24, *SHAPE), dtype=np.uint8)
SPLIT = Split(IMAGES, np.arange(24, dtype=np.int32) % CLASSES)
STAY = changes.unmoved(8, 8)
FAST = {'xla_backend_optimization_level': 0}  # these programs compile longer than they run


def small_config(masks: bool):
    config = (noise_masks if masks else no_noise).get_config()
    config.model.update(num_filters=8, num_masks=1, mix_channels=False)
    config.data.update(mean=(0.5,), std=(0.25,))
    return config


def small_network(masks: bool, stages: int = 2):
    """An untrained residual network with one block a stage."""
    model = create_model(small_config(masks).model, CLASSES).clone(stage_sizes=(1,) * stages)
    network = ProbedNetwork(model, (0.5,), (0.25,))
    return network, jax.device_get(init_variables(model, SHAPE, key=jax.random.key(0), mask_key=jax.random.key(1)))


@pytest.fixture(scope='module')
def without_masks():
    return small_network(masks=False)


@pytest.fixture(scope='module')
def with_masks():
    return small_network(masks=True)


@pytest.fixture(scope='module')
def logits():
    """logits(network, variables, positions), compiled once per network."""
    compiled = {}

    def compute(network, variables, positions=STAY):
        program = compiled.setdefault(id(network), jax.jit(network.logits, compiler_options=FAST))
        return np.asarray(program((variables, positions), IMAGES))

    return compute


# --- positions that are moved -----------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_permuted_tiles_are_whole_tiles(down, across, tile, seed):
    height, width = down * tile, across * tile
    positions = changes.permuted_tiles(height, width, tile, np.random.default_rng(seed))
    assert sorted(positions) == list(range(height * width))
    rows, columns = np.divmod(positions.reshape(height, width), width)
    for image in (rows, columns):  # within a tile, all pixels come from one tile and keep their place in it
        offsets = image - image[::tile, ::tile].repeat(tile, 0).repeat(tile, 1)
        place = np.indices((height, width))[0 if image is rows else 1] % tile
        assert (offsets == place).all()
    assert (positions == np.arange(height * width)).all() == (down * across == 1)


def test_a_map_is_moved_down_and_right():
    moved = changes.rolled(3, 4, 1).reshape(3, 4)
    assert moved[1, 1] == 0 and moved[0, 0] == 11


def test_without_masks_a_network_does_not_notice_where_a_tile_is(without_masks, logits):
    network, variables = without_masks
    before = logits(network, variables)
    for positions in (
        changes.permuted_tiles(8, 8, network.tile, np.random.default_rng(0)),
        changes.rolled(8, 8, network.tile),
    ):
        np.testing.assert_allclose(logits(network, variables, positions), before, atol=1e-6)
    # Smaller moves change which pixels are pooled together. So the probe does reach the map.
    assert np.abs(logits(network, variables, changes.rolled(8, 8, 1)) - before).max() > 1e-2


def test_with_masks_a_network_notices_where_a_tile_is(with_masks, logits):
    network, variables = with_masks
    positions = changes.permuted_tiles(8, 8, network.tile, np.random.default_rng(0))
    assert np.abs(logits(network, variables, positions) - logits(network, variables)).max() > 1e-2


# --- masks ------------------------------------------------------------------------------------------------------------


def test_zeroing_the_masks_of_a_network_without_masks_changes_nothing(without_masks):
    _, variables = without_masks
    assert not changes.has_masks(variables)
    zeroed = changes.replace_masks(variables, np.zeros_like)
    for ours, expected in zip(jax.tree.leaves(zeroed), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_the_same_masks_change_nothing_and_others_do(with_masks, logits):
    network, variables = with_masks
    draw = lambda seed: jax.device_get(
        init_variables(network.model, SHAPE, key=jax.random.key(5), mask_key=jax.random.key(seed))
    )
    before = logits(network, variables)
    same = changes.replace_masks(variables, lambda old, new: new, draw(1))
    np.testing.assert_array_equal(logits(network, same), before)
    other = changes.replace_masks(variables, lambda old, new: new, draw(2))
    zeroed = changes.replace_masks(variables, np.zeros_like)
    for changed in (other, zeroed):
        assert np.abs(logits(network, changed) - before).max() > 1e-2
        assert jax.tree.structure(changed) == jax.tree.structure(variables)
        np.testing.assert_array_equal(changed['params']['linear']['kernel'], variables['params']['linear']['kernel'])


def test_every_change_is_made_once_a_draw(with_masks, without_masks):
    made = lambda variables: [
        (change.name, change.draw) for change in changes.all_changes(variables, lambda draw: variables, (8, 8), 2, 2)
    ]
    moved = [('tiles permuted', 0), ('tiles permuted', 1), ('moved by 1 pixel', 0), ('moved by 2 pixels', 0)]
    masks = [('other masks', 0), ('other masks', 1), ('masks zeroed', 0)]
    assert made(without_masks[1]) == [('as trained', 0), *moved]
    assert made(with_masks[1]) == [('as trained', 0), *masks, *moved]


# --- batch norm -------------------------------------------------------------------------------------------------------


def test_recalibrated_statistics_are_those_of_training_mode(with_masks, logits):
    """On the images of one batch, evaluation then equals training mode, except for torch's unbiased variance."""
    network, variables = with_masks
    zeroed = changes.replace_masks(variables, np.zeros_like)
    first, second = (network.recalibrate(zeroed, STAY, part, batch_size=12) for part in (IMAGES[:12], IMAGES[12:]))
    training = lambda variables, images: network.model.apply(
        variables, network.inputs(images), train=True, mutable=['batch_stats']
    )
    expected = np.asarray(jax.jit(training, compiler_options=FAST)(zeroed, IMAGES[:12])[0])
    np.testing.assert_allclose(logits(network, first)[:12], expected, atol=5e-3)
    assert np.abs(logits(network, zeroed)[:12] - expected).max() > 0.1
    both = network.recalibrate(zeroed, STAY, IMAGES, batch_size=12)['batch_stats']
    mean = jax.tree.map(lambda one, other: (one + other) / 2, first['batch_stats'], second['batch_stats'])
    for ours, of_halves in zip(jax.tree.leaves(both), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(ours, of_halves, rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match='24 images'):
        network.recalibrate(zeroed, STAY, IMAGES, batch_size=25)


# --- the read-out of position -----------------------------------------------------------------------------------------


def test_one_position_of_every_tile_is_drawn():
    rows, columns = np.indices((4, 6))
    features = np.stack([rows, columns], axis=-1)[None].repeat(5, axis=0)
    drawn = position.one_per_tile(features, (2, 3), np.random.default_rng(0))
    assert drawn.shape == (5, 6, 2)
    assert (drawn // 2 == np.stack(np.divmod(np.arange(6), 3), axis=-1)).all()
    assert len(np.unique(drawn[:, 0], axis=0)) > 1


@given(st.integers(2, 20), st.integers(1, 5), st.floats(-100, 100), st.integers(1, 6))
def test_features_that_never_change_are_read_at_chance(tiles, channels, value, images):
    features = np.full((images, tiles, channels), value, np.float32)
    found = position.read_out('map', features, features)
    assert (found.correct, found.count, found.tiles) == (images, images * tiles, tiles)


def test_a_ramp_is_read_without_error():
    """Tiles along one line, of which least squares on indicators would never name the middle ones."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 16)[:, None] * np.array([1.0, -0.5, 0.2])
    noisy = lambda count: ramp + 0.005 * rng.normal(size=(count, 16, 3))
    found = position.read_out('map', noisy(200), noisy(100))
    assert found.correct == found.count == 1600
    unrelated = position.read_out('map', rng.normal(size=(2000, 16, 3)), rng.normal(size=(1000, 16, 3)))
    assert abs(unrelated.correct / unrelated.count - 1 / 16) < 0.01  # five standard errors


def test_the_masks_of_a_network_tell_the_position_of_constant_images(with_masks, without_masks):
    """The images equal the mean, so that the border of the first convolution is not seen either."""
    constant = np.full((6, *SHAPE), 128, np.uint8)
    for (network, variables), correct in ((without_masks, 1 / 16), (with_masks, 1.0)):
        network = ProbedNetwork(network.model, (128 / 255,), (0.25,))
        batches = list(network.feature_batches(variables, constant, batch_size=3))
        assert [batch['stem'].shape for batch in batches] == [(3, 8, 8, 8)] * 2
        sampled = position.sampled(({'last': batch['stage2_block1']} for batch in batches), (4, 4), seed=0)
        found = position.read_out('last', sampled['last'], sampled['last'])
        assert found.correct == correct * found.count


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path, with_masks, monkeypatch):
    """A finished run, as far as the command reads it."""
    network, variables = with_masks
    dataset = Dataset('noise', SPLIT, SPLIT, ('a', 'b', 'c'), digest='d' * 64)
    config = ml_collections.ConfigDict(small_config(masks=True).to_dict())
    folder = tmp_path / 'one_mask_seed0'
    folder.mkdir()
    (folder / 'result.json').write_text(json.dumps({'dataset': {'digest': 'd' * 64}}))
    run = SimpleNamespace(path=folder, config=config, model=network.model, variables=variables, num_classes=CLASSES)
    run.load_data = lambda: dataset
    monkeypatch.setattr(command, 'load_run', lambda path: run)
    monkeypatch.setattr(command, 'ProbedNetwork', lambda *args: network)
    assert set(vars(run)) - {'load_data'} <= set(Run.__dataclass_fields__)
    return folder


def flags(run_dir):
    numbers = (
        '--draws=1',
        '--batch_size=12',
        '--recalibration_images=24',
        '--fitted_images=24',
        '--held_out_images=24',
    )
    return [str(run_dir), f'--json={run_dir.parent}/probes.json', *numbers]


def test_counts_of_a_run_are_those_of_its_network(run_dir, with_masks, logits, capsys):
    assert exit_code(command.main, flags(run_dir)) == 0
    probes = read_probes(run_dir.parent / 'probes.json')
    (run,) = probes.runs.values()
    network, variables = with_masks
    expected = int((logits(network, variables).argmax(axis=1) == SPLIT.labels).sum())
    assert run.counts[0] == ('as trained', 0, 'stored', expected, 24)
    assert run.accuracy('as trained', 'stored') == pytest.approx(100 * expected / 24)
    assert np.isnan(run.accuracy('no such change', 'stored'))
    assert len(run.counts) == 2 * 6 and [one.map for one in run.position] == network.maps
    assert 'other masks' in capsys.readouterr().out


def test_runs_that_were_probed_are_kept(run_dir, capsys):
    assert exit_code(command.main, flags(run_dir)) == 0
    before = (run_dir.parent / 'probes.json').read_bytes()
    assert exit_code(command.main, flags(run_dir)) == 0
    assert 'probed before' in capsys.readouterr().out
    assert (run_dir.parent / 'probes.json').read_bytes() == before
    assert exit_code(command.main, [*flags(run_dir), '--draws=2']) == 2
    assert 'other settings' in capsys.readouterr().err
    (run_dir.parent / 'probes.json').write_bytes(before[:-30])
    assert exit_code(command.main, flags(run_dir)) == 2
    assert 'cut short' in capsys.readouterr().err


@pytest.mark.parametrize(
    'result, names', [(None, 'only finished runs'), ('{', 'not the result'), ('{"dataset": {"digest": "e"}}', 'digest')]
)
def test_a_run_that_cannot_be_probed_is_one_line(run_dir, result, names, capsys):
    path = run_dir / 'result.json'
    path.unlink() if result is None else path.write_text(result)
    assert exit_code(command.main, flags(run_dir)) == 2
    message = capsys.readouterr().err
    assert names in message and message.count('\n') == 1
    assert not (run_dir.parent / 'probes.json').exists()


def test_networks_that_cannot_be_probed_are_one_line(with_masks):
    network, variables = with_masks
    assert network.map_shape(variables, IMAGES) == (8, 8)
    lenet = small_config(masks=True)
    lenet.model.name = 'lenet'
    with pytest.raises(InputError, match='SmallNet'):
        ProbedNetwork(create_model(lenet.model, 3), (0.5,), (0.25,))
