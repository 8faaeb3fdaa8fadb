"""The training and evaluation steps of every config lower for TPU, CUDA and CPU; no such hardware is needed."""

import importlib
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import shortened

from configs import default
from pnn_jax.data.augment import preprocess
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import variable_shapes
from pnn_jax.optim import create_optimizer
from pnn_jax.train_step import all_variables, create_train_state, fixed_collections, train_step

pytestmark = pytest.mark.slow

PLATFORMS = ('tpu', 'cuda', 'cpu')
NAMES = sorted(
    path.stem for path in pathlib.Path(default.__file__).parent.glob('*.py') if path.stem not in ('__init__', 'default')
)


@pytest.mark.parametrize('name', NAMES)
def test_steps_lower_for_every_platform(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    config.model.num_filters = 6 if config.model.name == 'answer_resnet18' else 4
    config.model.num_masks = min(config.model.num_masks, 4)
    size = config.data.image_size or (28 if len(config.data.mean) == 1 else 32)
    shape = (size, size, len(config.data.mean))
    dtype = jnp.dtype(config.model.dtype)
    model = shortened(create_model(config.model, num_classes=10))
    optimizer = create_optimizer(config.optimizer, lambda step: 0.1)
    key = jax.random.key(0)
    variables = variable_shapes(model, shape)
    state = jax.eval_shape(lambda variables: create_train_state(variables, optimizer, key), variables)
    fixed = fixed_collections(variables)
    images, labels = jax.ShapeDtypeStruct((8, *shape), jnp.uint8), jax.ShapeDtypeStruct((8,), jnp.int32)

    def prepare(key, images, augment=config.data.augment):
        return preprocess(images, config.data.mean, config.data.std, augment=augment, key=key, dtype=dtype)

    def evaluate(variables, images):
        return model.apply(variables, prepare(None, images, augment='none'), train=False)

    step = jax.jit(partial(train_step, model=model, optimizer=optimizer, preprocess=prepare))
    exported = jax.export.export(step, platforms=PLATFORMS)(state, fixed, images, labels)
    assert exported.platforms == PLATFORMS
    assert jax.tree.map(lambda x: x.shape, exported.out_tree.unflatten(exported.out_avals)) == jax.tree.map(
        lambda x: x.shape, state
    )
    exported = jax.export.export(jax.jit(evaluate), platforms=PLATFORMS)(all_variables(state, fixed), images)
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape == (8, 10)
