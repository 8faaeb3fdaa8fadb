"""LeNet and CifarNet of the audit (michaelklachko/pnn.pytorch@08865db models.py:200-333), with any kind of layer."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from pnn_jax.errors import InputError
from pnn_jax.models.resnet import ModuleDef
from pnn_jax.nn.activations import ACTIVATIONS, Activation
from pnn_jax.nn.linear import Linear
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.nn.pool import POOLINGS, pool
from pnn_jax.options import option


class SmallNet(nn.Module):
    """Groups of layers with a 3x3 pooling of stride 2 after each; then a hidden linear layer with dropout around it.

    x [b, h, w, c] -> logits [b, num_classes].

    Attributes:
        first_layer: makes the first layer from (features, name), called as module(x, train).
        layer: makes every other layer, likewise.
        num_filters: output channels of every layer.
        num_classes: width of the logits.
        layers_per_group: layers before each pooling.
        hidden_features: width of the hidden linear layer.
        pooling: a name in `POOLINGS`.
        activation: of the hidden linear layer, a name in `ACTIVATIONS`.
        dropout_rate: probability of dropping a value, before and after the hidden layer.
    """

    first_layer: ModuleDef
    layer: ModuleDef
    num_filters: int
    num_classes: int
    layers_per_group: Sequence[int]
    hidden_features: int
    pooling: str = option('max', choices=POOLINGS, pytorch='pool_type')
    activation: str = option('relu', choices=ACTIVATIONS, pytorch='act')
    dropout_rate: float = option(0.5, at_least=0, below=1, pytorch='dropout')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Raises InputError where the images are so small that nothing is left of the map."""
        index = 0
        for num_layers in self.layers_per_group:
            for _ in range(num_layers):
                layer = self.layer if index else self.first_layer
                index += 1
                x = layer(features=self.num_filters, name=f'layer{index}')(x, train)
            x = pool(x, self.pooling, 3, 2, 1)
        if 0 in x.shape[1:3]:
            raise InputError('the images are too small for this network: nothing is left after its poolings')
        # Flattened in torch's order (channel, row, column), so that linear weights need no reordering on conversion.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], math.prod(x.shape[1:]))
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name='dropout1')(x)
        x = TorchBatchNorm(name='norm')(Linear(self.hidden_features, name='linear1')(x), train)
        x = Activation(self.activation, name='activation')(x, train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name='dropout2')(x)
        return Linear(self.num_classes, name='linear2')(x)
