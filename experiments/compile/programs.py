"""The programs of a run, lowered for devices that are not there. Nothing is computed, and no data are read."""

import runpy
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from experiments.compile import targets
from experiments.compile.measure import Request
from pnn_jax.config_flag import bind_neighbours, find_config
from pnn_jax.data.feeds import BATCH_AXIS, LoadedBatch, ResidentBatches, batch_sharding
from pnn_jax.errors import InputError
from pnn_jax.evaluate import make_eval_step
from pnn_jax.models.registry import create_model
from pnn_jax.optim import create_optimizer, learning_rate_schedule
from pnn_jax.trainer import STEPS_PER_DISPATCH, Trainer

# (image shape, classes, training examples) of the data sets that the configs name; the programs depend on nothing else.
DATA_SHAPES = {
    'cifar10': ((32, 32, 3), 10, 50_000),
    'cifar100': ((32, 32, 3), 100, 50_000),
    'mnist': ((28, 28, 1), 10, 60_000),
    'digits': ((16, 16, 1), 10, 1_440),
    'imagenet2012': ((224, 224, 3), 1000, 1_281_167),
}


def lower(request: Request) -> Any:
    """The program of a request, lowered for its target."""
    config = load_config(request)
    image_shape, num_classes, num_train = DATA_SHAPES[config.data.name]
    devices = targets.open_devices(request.target, request.devices)
    mesh = Mesh(np.array(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
    schedule = learning_rate_schedule(
        config.schedule, config.optimizer.learning_rate, num_train // config.batch_size, config.num_epochs
    )
    trainer = Trainer(
        config=config,
        model=create_model(config.model, num_classes),
        mesh=mesh,
        feed=SimpleNamespace(image_shape=image_shape, num_train=num_train),
        data=None,
        schedule=schedule,
        optimizer=create_optimizer(config.optimizer, schedule),
    )
    if request.program == 'evaluate':
        return lower_evaluation(trainer, devices)
    num_steps = STEPS_PER_DISPATCH if request.program == 'train' else 1
    state, fixed = on(trainer.replicated, trainer.shapes)
    return trainer.train_steps.lower(state, fixed, batches(trainer, num_steps))


def check_config(name: str) -> None:
    """Raises InputError where there is no such config, or where the shape of its images is not known here."""
    data = load_config(Request('', '', name)).data
    if data.name not in DATA_SHAPES:
        raise InputError(f'--config={name}: config.data.name={data.name!r} must be one of {", ".join(DATA_SHAPES)}')


def load_config(request: Request) -> Any:
    """The config of a request, with the fields that the request changes."""
    file = find_config(request.config)
    bind_neighbours(file)
    config = runpy.run_path(str(file))['get_config']()
    if request.batch_size:
        config.batch_size = config.eval_batch_size = request.batch_size
    config.model.dtype = request.dtype or config.model.dtype
    return config


def batches(trainer: Trainer, num_steps: int) -> ResidentBatches | LoadedBatch:
    """The shapes of what one dispatch takes: a data set on the devices, or one batch of a stream."""
    size, feed = trainer.config.batch_size, trainer.feed
    sharding = batch_sharding(trainer.mesh, size)
    array = lambda shape, dtype, where: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    if trainer.config.data.source.startswith('stream'):
        return LoadedBatch(array((size, *feed.image_shape), jnp.uint8, sharding), array((size,), jnp.int32, sharding))
    whole = trainer.replicated
    return ResidentBatches(
        images=array((feed.num_train, *feed.image_shape), jnp.uint8, whole),
        labels=array((feed.num_train,), jnp.int32, whole),
        order=array((feed.num_train,), jnp.int32, whole),
        start=0,
        batch_size=size,
        num_steps=num_steps,
        sharding=sharding,
    )


def lower_evaluation(trainer: Trainer, devices: list[jax.Device]) -> Any:
    """One batch of the evaluation."""
    state, fixed = trainer.shapes
    variables = {'params': state.params, 'batch_stats': state.batch_stats, **fixed}
    per_device = -(-trainer.config.eval_batch_size // len(devices))
    shape = len(devices), per_device
    batch = {
        'image': jax.ShapeDtypeStruct((*shape, *trainer.feed.image_shape), jnp.uint8),
        'label': jax.ShapeDtypeStruct(shape, jnp.int32),
        'index': jax.ShapeDtypeStruct(shape, jnp.int32),
        'batch_mask': jax.ShapeDtypeStruct(shape, jnp.bool_),
    }
    return make_eval_step(trainer.predict, devices).lower(variables, batch)


def on(sharding: NamedSharding, tree: Any) -> Any:
    """The shapes and types of a tree's leaves, as arrays that lie where `sharding` says."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
