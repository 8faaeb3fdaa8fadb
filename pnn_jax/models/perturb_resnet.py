"""What makes a `ResNet` the audit's perturbative network, or that of the authors' answer to it.

The layer is given to the block: a `PerturbationUnit`, or a `ConvLayer` for the controls without noise.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from pnn_jax.errors import InputError
from pnn_jax.models.resnet import ModuleDef, Shortcut
from pnn_jax.nn.activations import Activation
from pnn_jax.nn.conv import Conv
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.nn.pool import POOLINGS, pool
from pnn_jax.options import Conflict, option


class PooledStem(nn.Module):
    """The first layer; after a 7x7 convolution also a 3x3 max pooling of stride 2 (mk models.py:150-157).

    Attributes:
        layer: makes the first layer, called as module(x, train).
        pooled: adds the pooling.
    """

    layer: ModuleDef
    pooled: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.layer(name='layer')(x, train)
        return pool(x, 'max', 3, 2, 1) if self.pooled else x


class PerturbationBlock(nn.Module):
    """Layer, pooling, layer, then the shortcut and always a ReLU (mk models.py:104-136).

    x [b, h, w, c] -> [b, h // stride, w // stride, features].

    Attributes:
        layer: makes both layers from (features, name), called as module(x, train).
        features: output channels.
        stride: window and stride of the pooling.
        pooling: a name in `POOLINGS`.
    """

    layer: ModuleDef
    features: int
    stride: int
    pooling: str = option('max', choices=POOLINGS, pytorch='pool_type')

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        if values['layer'] == 'conv' and values['kernel_size'] in (5, 7):
            yield (
                'kernel_size',
                'residual blocks need 1 or 3, because 5 makes a map two pixels smaller and 7 halves it',
            )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Raises InputError where the layer changes the size of a map, so that the shortcut cannot be added."""
        y = self.layer(features=self.features, name='layer1')(x, train)
        if self.stride > 1:
            y = pool(y, self.pooling, self.stride, self.stride)
        y = self.layer(features=self.features, name='layer2')(y, train)
        residual = Shortcut(self.features, self.stride, name='shortcut')(x, y, train)
        if residual.shape != y.shape:
            raise InputError(
                f'a residual block needs layers that keep the size of a map; its layers turn '
                f'{x.shape[1:3]} into {y.shape[1:3]}'
            )
        return nn.relu(y + residual)


class AnswerStem(nn.Module):
    """The first layer of the authors' answer, then a 1x1 convolution, batch norm, activation (jfu models.py:244-266).

    Attributes:
        layer: makes the first layer, which has three times the filters and a sigmoid; called as module(x, train).
        features: output channels of the 1x1 convolution.
        pooled: as in `PooledStem`.
        activation: a name in `ACTIVATIONS`.
    """

    layer: ModuleDef
    features: int
    pooled: bool
    activation: str

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        if values['stem_layer'] not in ('perturbation', 'conv'):
            yield 'stem_layer', f"{values['name']} takes 'perturbation' or 'conv'"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = PooledStem(self.layer, self.pooled, name='first')(x, train)
        x = TorchBatchNorm(name='norm')(Conv(self.features, kernel_size=1, name='conv')(x), train)
        return Activation(self.activation, name='activation')(x, train)
