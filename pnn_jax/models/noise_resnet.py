"""What makes a `ResNet` the authors' own network: their noise layer and their two residual blocks.

`mk` is michaelklachko/pnn.pytorch@08865db and `jf` is juefeix/pnn.pytorch@12fdc44.
"""

import flax.linen as nn
import jax

from pnn_jax.models.resnet import ModuleDef, Shortcut
from pnn_jax.nn.conv import Conv
from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS, PYTORCH_NOISE, stored_masks
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.nn.pool import pool
from pnn_jax.options import option


class NoiseLayer(nn.Module):
    """Add one noise mask per channel, ReLU, batch norm, 1x1 convolution (mk models.py:337-353).

    x [b, h, w, c] -> [b, h, w, features]. The masks are the variable `masks` [h, w, c]. Their code multiplies a mask by
    the level when it draws it; here the raw mask is stored and the level multiplies it in the forward pass.

    Attributes:
        features: output channels.
        noise_level: factor of the masks.
        noise_type: a name in `NOISE_DISTRIBUTIONS`; always uniform in their code.
        trainable_masks: masks are parameters; never in their code.
    """

    features: int
    noise_level: float = option(0.5, at_least=0, pytorch='level')
    noise_type: str = option(
        'uniform', choices=NOISE_DISTRIBUTIONS, pytorch='noise_type', pytorch_choices=PYTORCH_NOISE
    )
    trainable_masks: bool = option(False, pytorch='train_masks')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        masks = stored_masks(self, x.shape[1:], NOISE_DISTRIBUTIONS[self.noise_type], trainable=self.trainable_masks)
        x = nn.relu(x + float(self.noise_level) * masks.astype(x.dtype)[None])  # a NumPy number would make it float32
        x = TorchBatchNorm(name='norm')(x, train)
        return Conv(self.features, kernel_size=1, use_bias=True, name='conv')(x)


class NoiseBlock(nn.Module):
    """The authors' basic block (mk models.py:356-379). `noise_layer` makes a `NoiseLayer` from (features, name)."""

    noise_layer: ModuleDef
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.noise_layer(features=self.features, name='noise1')(x, train)
        if self.stride > 1:
            y = pool(y, 'max', self.stride, self.stride)
        y = nn.relu(TorchBatchNorm(name='norm1')(y, train))
        y = self.noise_layer(features=self.features, name='noise2')(y, train)
        y = TorchBatchNorm(name='norm2')(y, train)
        return nn.relu(y + Shortcut(self.features, self.stride, name='shortcut')(x, y, train))


class NoiseBottleneck(nn.Module):
    """The authors' bottleneck, with 4 * features output channels (jf models/naiveresnet.py:62-88)."""

    noise_layer: ModuleDef
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.features, kernel_size=1, name='conv1')(x)
        y = nn.relu(TorchBatchNorm(name='norm1')(y, train))
        y = self.noise_layer(features=self.features, name='noise')(y, train)
        if self.stride > 1:
            y = pool(y, 'max', self.stride, self.stride)
        y = nn.relu(TorchBatchNorm(name='norm2')(y, train))
        y = Conv(4 * self.features, kernel_size=1, name='conv2')(y)
        y = TorchBatchNorm(name='norm3')(y, train)
        return nn.relu(y + Shortcut(4 * self.features, self.stride, name='shortcut')(x, y, train))
