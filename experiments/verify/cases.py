"""What is compared: a network with its tensors, its batches, and how it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np

from configs import default
from pnn_jax.pytorch.names import TABLES
from pnn_jax.pytorch.variables import Arrays, TorchTensors

AUDIT, ANSWER = 'michaelklachko/pnn.pytorch', 'juefeix/pnn.pytorch.update'
OPTIMIZERS = ('sgd', 'adam', 'rmsprop')

# In the order of the tables. A quantity of several tensors has keys such as 'grad/<parameter>'.
QUANTITIES = [
    'eval_logits',
    'train_logits',
    'loss',
    'grad',
    'bn1',
    'eval_logits_bn1',
    *(name + suffix for name in OPTIMIZERS for suffix in ('_losses', '', '_eval_logits')),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its tensors, its batches, and how it is trained.

    Attributes:
        model: `config.model`.
        optimizers: name -> `config.optimizer` of a trajectory.
        tensors: the initial state.
        x, y: the batch of the forward and backward pass; float [b, c, h, w], int [b].
        xs, ys: the batches of the trajectories [steps, b, ...].
        null_gradients: parameters whose true gradient is known to be 0; they are left out of Adam's trajectory.
        evaluation_only: only `eval_logits` can be compared, because training draws random numbers (rrelu).
        quantities: those that are known of PyTorch; None for all.
    """

    name: str
    model: ml_collections.ConfigDict
    optimizers: Mapping[str, ml_collections.ConfigDict]
    tensors: TorchTensors
    x: np.ndarray
    y: np.ndarray
    xs: np.ndarray
    ys: np.ndarray
    null_gradients: frozenset[str] = frozenset()
    evaluation_only: bool = False
    quantities: frozenset[str] | None = None

    def compares(self, key: str) -> bool:
        return self.quantities is None or key.partition('/')[0] in self.quantities


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a batch: `batch_size` images of `channels` x `image_size` x `image_size`, in `num_classes` classes."""

    num_classes: int
    image_size: int
    channels: int
    batch_size: int


def data_shape(config, batch_size: int) -> Shape:
    """The shape of a batch of the config's data set, which is not loaded."""
    channels = len(config.data.mean)
    size = config.data.image_size or (28 if channels == 1 else 32)
    return Shape(100 if config.data.name == 'cifar100' else 10, size, channels, batch_size)


def random_config(rng: np.random.Generator) -> tuple[ml_collections.ConfigDict, Shape]:
    """A small random network of any kind, with every option that PyTorch has, and a small batch of odd image sizes."""
    config = default.get_config()
    pick = lambda *values: values[rng.integers(len(values))]
    channels = pick(1, 3)
    config.optimizer.learning_rate = 1e-3
    config.model.update(
        name=pick(*(name for name in TABLES if not name.endswith(('101', '152')))),
        num_filters=int(channels * pick(1, 2)) if channels == 3 else pick(2, 3),
        layer=pick('perturbation', 'perturbation', 'conv'),
        kernel_size=pick(1, 3),
        stem_layer=pick('perturbation', 'conv'),
        stem_kernel_size=pick(3, 7),
        freeze_stem=pick(True, False),
        num_masks=pick(1, 2, 3),
        share_masks=pick(True, False),
        trainable_masks=pick(True, False),
        mix_channels=pick(True, False),
        noise_type=pick('uniform', 'normal'),
        stem_noise_scale=pick(1.0, 2.0),
        activate_after_noise=pick(True, False),
        activation=pick('relu', 'relu', 'lrelu', 'prelu', 'rrelu', 'elu', 'selu', 'tanh', 'sigmoid'),
        pooling=pick('max', 'avg'),
        dropout_rate=0.0,
    )
    if config.model.name.startswith('noise_resnet'):
        config.model.update(noise_type='uniform', trainable_masks=False)
    return config, Shape(
        num_classes=pick(3, 10), image_size=pick(16, 17, 19, 20), channels=channels, batch_size=pick(2, 3)
    )


def prefixed(prefix: str, arrays: Mapping) -> dict:
    """{'weight': a} -> {'grad/weight': a}."""
    return {f'{prefix}/{key}': value for key, value in arrays.items()}


def within(prefix: str, arrays: Mapping) -> Arrays:
    """The inverse of `prefixed`: {'grad/weight': a, 'loss': b} -> {'weight': a}."""
    return {key.removeprefix(prefix + '/'): value for key, value in arrays.items() if key.startswith(prefix + '/')}
