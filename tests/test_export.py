"""The training and evaluation steps of every config lower for TPU, CUDA and CPU; no such hardware is needed."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import default
from pnn_jax.data.augment import preprocess
from pnn_jax.models.registry import create_model
from pnn_jax.optim import create_optimizer
from pnn_jax.train import make_update
from pnn_jax.train_state import create_train_state

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
    model = create_model(config.model, num_classes=10)
    optimizer = create_optimizer(config.optimizer, lambda step: 0.1)
    state = jax.eval_shape(lambda: create_train_state(model, optimizer, shape, seed=0, mask_seed=0))
    images, labels = jax.ShapeDtypeStruct((8, *shape), jnp.uint8), jax.ShapeDtypeStruct((8,), jnp.int32)

    def evaluate(variables, images):
        inputs = preprocess(images, config.data.mean, config.data.std, augment='none', dtype=dtype)
        return model.apply(variables, inputs, train=False)

    update = jax.jit(make_update(model, optimizer, config.data, dtype))
    exported = jax.export.export(update, platforms=PLATFORMS)(state.replace(fixed={}), state.fixed, images, labels)
    assert exported.platforms == PLATFORMS
    assert jax.tree.map(lambda x: x.shape, exported.out_tree.unflatten(exported.out_avals)) == jax.tree.map(
        lambda x: x.shape, state.replace(fixed={})
    )
    exported = jax.export.export(jax.jit(evaluate), platforms=PLATFORMS)(state.variables, images)
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape == (8, 10)
