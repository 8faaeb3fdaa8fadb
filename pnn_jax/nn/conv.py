"""Convolutions as in PyTorch: the bare operation, and the unit that adds batch norm and activation."""

import flax.linen as nn
import jax

from pnn_jax import ops
from pnn_jax.nn.activations import ACTIVATIONS, Activation
from pnn_jax.nn.channels import along_channels
from pnn_jax.nn.initializers import conv_kernel_init, fan_in_uniform
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.ops.conv import conv
from pnn_jax.options import option

# Kernel size -> padding of a convolution, and its stride in a `ConvLayer` (mk models.py:39-48).
CONV_PADDING = {1: 0, 3: 1, 5: 1, 7: 3}
CONV_LAYER_STRIDE = {1: 1, 3: 1, 5: 1, 7: 2}


class Conv(nn.Module):
    """`torch.nn.Conv2d` with a square kernel and the padding of `CONV_PADDING`.

    x [b, h, w, c] -> [b, h', w', features]. A 1x1 convolution is computed as a (strided) slice and a product of two
    matrices. Initial values are those that the audit's `weights_init` leaves (mk utils.py:51-57).

    Attributes:
        features: output channels.
        kernel_size: 1, 3, 5 or 7.
        stride: in pixels.
        use_bias: adds a bias to every output channel.
        frozen: the kernel is drawn once and stored in the collection `frozen`, which gradients and weight decay do not
            reach (jfu models.py:513).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, x.shape[-1]
        shape = (channels, self.features) if size == 1 else (size, size, channels, self.features)
        fan_out = size * size * self.features
        if self.frozen:
            draw = lambda: conv_kernel_init(self.make_rng('params'), shape, fan_out)
            kernel = self.variable('frozen', 'kernel', draw).value
        else:
            kernel = self.param('kernel', conv_kernel_init, shape, fan_out)
        kernel = kernel.astype(x.dtype)
        if size == 1:
            y = ops.combine_channels(x, kernel, self.stride)
        else:
            y = conv(x, kernel, stride=self.stride, padding=CONV_PADDING[size])
        if self.use_bias:
            bias = self.param('bias', fan_in_uniform, (self.features,), channels * size * size)
            y = y + along_channels(bias, y)
        return y


class ConvLayer(nn.Module):
    """Convolution, batch norm, activation: `PerturbLayer` with filter_size > 0 (mk models.py:50-55).

    x [b, h, w, c] -> [b, h', w', features]. As there, kernel size 5 makes a map two pixels smaller, and kernel size 7
    halves it.
    """

    features: int
    kernel_size: int = option(3, choices=CONV_PADDING, pytorch=tuple(CONV_PADDING))
    activation: str = option('relu', choices=ACTIVATIONS, pytorch='act')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        size = self.kernel_size
        x = Conv(self.features, size, CONV_LAYER_STRIDE[size], use_bias=size == 1, name='conv')(x)
        return Activation(self.activation, name='activation')(TorchBatchNorm(name='norm')(x, train), train)
