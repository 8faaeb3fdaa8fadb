"""Every config builds, trains one step and evaluates at small size; its docstring says what it stands for."""

import importlib
import pathlib

import jax
import numpy as np
import pytest
from tiny_runs import shortened

from configs import default
from pnn_jax import trainer
from pnn_jax.data import Dataset, Split
from pnn_jax.models.variables import variable_shapes
from pnn_jax.train_step import all_variables, create_train_state, fixed_collections
from pnn_jax.validate import check_fits_data, validate_config

NAMES = sorted(
    path.stem for path in pathlib.Path(default.__file__).parent.glob('*.py') if path.stem not in ('__init__', 'default')
)


def small(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    config.batch_size = config.eval_batch_size = 4
    config.model.num_filters = 6 if config.model.name == 'answer_resnet18' else 4
    config.model.num_masks = min(config.model.num_masks, 2)
    # So that weight decay alone moves the weights behind a dead unit, of which so small a network may have some.
    config.optimizer.learning_rate = 0.01
    return config


def kernels(params):
    """Copies of all weights by name; biases in front of a batch norm have no gradient and may stay where they are."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if path[-1].key == 'kernel'}


@pytest.fixture
def short_networks(monkeypatch):
    """Networks have one block of each kind, and NumPy draws their initial values: nothing is compiled for these."""
    create, rng = trainer.create_model, np.random.default_rng(0)

    def draw(made):
        variables = variable_shapes(made.model, made.feed.image_shape)
        drawn = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), variables)
        drawn |= {'batch_stats': jax.tree.map(np.abs, drawn['batch_stats'])}
        fixed = fixed_collections(drawn)
        return lambda init_key, mask_key, run_key: (create_train_state(drawn, made.optimizer, run_key), fixed)

    monkeypatch.setattr(trainer, 'create_model', lambda *arguments: shortened(create(*arguments)))
    monkeypatch.setattr(trainer.Trainer, '_draw', property(draw))


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation', 'short_networks')
@pytest.mark.parametrize('name', NAMES)
def test_config_trains_a_step_and_evaluates(name):
    config = small(name)
    validate_config(config)
    channels = len(config.data.mean)
    size = {1: 28, 3: 32}[channels]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, size, size, channels), dtype=np.uint8)
    split = Split(images=images, labels=np.arange(4, dtype=np.int32))
    dataset = Dataset(name='random', train=split, test=split, class_names=tuple('abcd'), digest='')
    check_fits_data(config, images.shape[1:])
    made = trainer.Trainer.create(config, dataset)
    state, fixed = made.init(0, 0)
    before = kernels(state.params)
    (batches,) = made.feed.batches(state.key, epoch=0)
    state = made.train_steps(state, fixed, batches)
    assert int(state.step) == 1
    assert int(state.diverged_at) == -1
    unmoved = [name for name, kernel in kernels(state.params).items() if (kernel == before[name]).all()]
    assert not unmoved
    evaluation = made.evaluate(all_variables(state, fixed))
    assert evaluation.count == 4
    assert np.isfinite(evaluation.loss)


@pytest.mark.parametrize('name', NAMES)
def test_config_says_what_it_stands_for(name):
    text = importlib.import_module(f'configs.{name}').__doc__
    assert 'Claim:' in text
    assert f'python -m pnn_jax.main --config=configs/{name}.py' in text
    if name not in ('quickstart', 'imagenet'):
        assert 'python main.py' in text
        assert 'Published:' in text or name == 'cvpr_original' or '(the authors' in text


@pytest.mark.parametrize(
    'name, batch_size, learning_rate, optimizer, level, epochs',
    [
        ('baseline', 10, 1e-3, 'sgd', 0.5, 150),
        ('original', 10, 1e-4, 'sgd', 0.5, 150),
        ('original_stem3', 10, 1e-4, 'sgd', 0.5, 150),
        ('no_noise', 16, 1e-3, 'sgd', 0.5, 150),
        ('noise_everywhere', 16, 1e-3, 'sgd', 0.5, 150),
        ('noise_masks', 16, 1e-3, 'sgd', 0.5, 150),
        ('shared_masks', 16, 1e-3, 'sgd', 0.5, 150),
        ('trained_masks', 16, 1e-3, 'sgd', 0.5, 150),
        ('authors_answer', 10, 1e-4, 'adam', 0.1, 450),
        ('authors_all_layers', 20, 1e-4, 'adam', 0.1, 450),
        ('cvpr_original', 64, 1e-3, 'adam', 0.1, 500),
    ],
)
def test_config_repeats_the_published_command(name, batch_size, learning_rate, optimizer, level, epochs):
    config = importlib.import_module(f'configs.{name}').get_config()
    assert config.batch_size == batch_size
    assert config.optimizer.learning_rate == learning_rate
    assert config.optimizer.name == optimizer
    assert config.model.noise_level == level
    assert config.num_epochs == epochs
