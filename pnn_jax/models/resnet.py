"""The residual network that all ResNets here share, with the stem and the block of the baseline.

The networks differ in their stem (the first layer and what follows it) and in their residual block: see also
`perturb_resnet.py` (the audit's) and `noise_resnet.py` (the authors'). In these files `mk` is
michaelklachko/pnn.pytorch@08865db and `jfu` is juefeix/pnn.pytorch.update@b9513ff.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from pnn_jax.errors import InputError
from pnn_jax.nn.conv import Conv
from pnn_jax.nn.linear import Linear
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.nn.pool import pool
from pnn_jax.options import Conflict

ModuleDef = Callable[..., nn.Module]


class ResNet(nn.Module):
    """Stem, four stages of blocks, mean over the map, linear classifier. x [b, h, w, c] -> logits [b, num_classes].

    Stage i, counted from 0, has num_filters * 2**i filters. The first block of every stage but the first has stride 2.
    On 32x32 images the mean over the map equals the 4x4 average pooling of the PyTorch code; it also fits other sizes.

    Attributes:
        stem: makes the first layer, called as module(x, train).
        block: makes a residual block from (features, stride), called as module(x, train).
        num_filters: filters of the first stage.
        num_classes: width of the logits.
        stage_sizes: blocks per stage.
    """

    stem: ModuleDef
    block: ModuleDef
    num_filters: int
    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Raises InputError where the images are so small that nothing is left of the map."""
        x = self.stem(name='stem')(x, train)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f'stage{stage + 1}_block{index + 1}'
                x = self.block(features=self.num_filters * 2**stage, stride=stride, name=name)(x, train)
        if x.shape[1] == 0 or x.shape[2] == 0:
            raise InputError('the images are too small for this network: nothing is left after its four stages')
        return Linear(self.num_classes, name='linear')(x.mean((1, 2)))


class Shortcut(nn.Module):
    """The identity where shapes agree, else a strided 1x1 convolution and batch norm.

    x [b, h, w, c] -> [b, h', w', features], with the height and width of `like`. On odd maps a strided convolution
    rounds up where pooling rounds down, so its last row and column are dropped. The PyTorch code fails there; on even
    maps nothing is dropped.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, like: jax.Array, train: bool) -> jax.Array:
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, stride=self.stride, name='conv')(x)
            x = x[:, : like.shape[1], : like.shape[2]]
            x = TorchBatchNorm(name='norm')(x, train)
        return x


class ConvNormStem(nn.Module):
    """Convolution, batch norm, ReLU. With kernel size 7: stride 2, and a 3x3 max pooling (mk models.py:385-401)."""

    features: int
    kernel_size: int = 3
    frozen: bool = False

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        if values['stem_kernel_size'] not in (3, 7):
            yield 'stem_kernel_size', f'{values["name"]} takes 3 or 7'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        stride = 2 if self.kernel_size == 7 else 1
        x = Conv(self.features, self.kernel_size, stride, frozen=self.frozen, name='conv')(x)
        x = nn.relu(TorchBatchNorm(name='norm')(x, train))
        return pool(x, 'max', 3, 2, 1) if self.kernel_size == 7 else x


class BasicBlock(nn.Module):
    """The baseline's block: two 3x3 convolutions, the first one strided (mk models.py:441-464)."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.features, 3, self.stride, name='conv1')(x)
        y = nn.relu(TorchBatchNorm(name='norm1')(y, train))
        y = TorchBatchNorm(name='norm2')(Conv(self.features, 3, name='conv2')(y), train)
        return nn.relu(y + Shortcut(self.features, self.stride, name='shortcut')(x, y, train))
