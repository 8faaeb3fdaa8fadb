"""One residual network; what differs between the baseline, the audit's PNN and the authors' is the stem and the block.

`mk` stands for michaelklachko/pnn.pytorch@08865db and `jfu` for juefeix/pnn.pytorch.update@b9513ff.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from pnn_jax.errors import InputError
from pnn_jax.nn.layers import Activation, Conv, Linear, TorchBatchNorm, pool

ModuleDef = Callable[..., nn.Module]


class ResNet(nn.Module):
    """Stem, four stages of blocks, mean over the map, linear classifier. x [b, h, w, c] -> logits [b, num_classes].

    Stage i has num_filters * 2**i filters; the first block of every stage but the first has stride 2. The mean equals
    the reference's 4x4 average pooling on 32x32 images and extends it to other sizes.

    Attributes:
        stem: makes the first layer, called as module(x, train).
        block: makes a residual block from (features, stride), called as module(x, train).
    """

    stem: ModuleDef
    block: ModuleDef
    num_filters: int
    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
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
    """Identity where shapes agree, else a strided 1x1 convolution and batch norm.

    Cut to the size of the other branch, because on odd maps pooling rounds down where a strided convolution rounds up
    (the PyTorch code stops there; on even maps nothing is cut).
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
    """Convolution, batch norm, ReLU; kernel 7 has stride 2 and a 3x3 max pooling (mk models.py:385-401)."""

    features: int
    kernel_size: int = 3
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        stride = 2 if self.kernel_size == 7 else 1
        x = Conv(self.features, self.kernel_size, stride, frozen=self.frozen, name='conv')(x)
        x = nn.relu(TorchBatchNorm(name='norm')(x, train))
        return pool(x, 'max', 3, 2, 1) if self.kernel_size == 7 else x


class BasicBlock(nn.Module):
    """The baseline's block: two 3x3 convolutions, the first strided (mk models.py:441-464)."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.features, 3, self.stride, name='conv1')(x)
        y = nn.relu(TorchBatchNorm(name='norm1')(y, train))
        y = TorchBatchNorm(name='norm2')(Conv(self.features, 3, name='conv2')(y), train)
        return nn.relu(y + Shortcut(self.features, self.stride, name='shortcut')(x, y, train))


class PerturbationBlock(nn.Module):
    """Layer, pooling, layer, then the shortcut and always a ReLU (mk models.py:104-136). The layer is injected."""

    layer: ModuleDef
    features: int
    stride: int
    pooling: str = 'max'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
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


class PooledStem(nn.Module):
    """An injected first layer; behind kernel 7 a 3x3 max pooling (mk models.py:150-157)."""

    layer: ModuleDef
    pooled: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.layer(name='layer')(x, train)
        return pool(x, 'max', 3, 2, 1) if self.pooled else x


class AnswerStem(nn.Module):
    """First layer of the authors' answer: three times the filters under a sigmoid, then a 1x1 convolution to
    `features`, batch norm, activation (jfu models.py:244-266)."""

    layer: ModuleDef
    features: int
    pooled: bool
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = PooledStem(self.layer, self.pooled, name='first')(x, train)
        x = TorchBatchNorm(name='norm')(Conv(self.features, kernel_size=1, name='conv')(x), train)
        return Activation(self.activation, name='activation')(x, train)


class NoiseLayer(nn.Module):
    """The authors' layer: add one noise mask, ReLU, batch norm, 1x1 convolution (mk models.py:337-353).

    One mask per channel, U(-1, 1) and fixed in their code, which multiplies it by the level when it draws it, ours when
    it adds it.
    """

    features: int
    noise_level: float
    trainable_masks: bool
    sample: Callable[[jax.Array, tuple[int, ...]], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        collection = 'params' if self.trainable_masks else 'noise_masks'
        draw = lambda: self.sample(self.make_rng('noise_masks'), x.shape[1:])
        masks = self.variable(collection, 'masks', draw).value
        if masks.shape != x.shape[1:]:
            raise InputError(f'masks of shape {masks.shape} do not fit an input that needs {x.shape[1:]}')
        x = nn.relu(x + self.noise_level * masks.astype(x.dtype)[None])
        x = TorchBatchNorm(name='norm')(x, train)
        return Conv(self.features, kernel_size=1, use_bias=True, name='conv')(x)


class NoiseBlock(nn.Module):
    """The authors' basic block (mk models.py:356-379)."""

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
    """The authors' bottleneck, four times wider outside (juefeix/pnn.pytorch@12fdc44 models/naiveresnet.py:62-88)."""

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
