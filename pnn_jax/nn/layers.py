"""Building blocks: `PerturbationLayer` and `ConvLayer` (one call signature), and the PyTorch-faithful pieces below.

Arrays are NHWC. The compute dtype is the input's: parameters are stored in float32 and cast to it, so a network runs in
bfloat16 or float64 when it is fed such images. Batch statistics are never computed below float32.

`mk` stands for michaelklachko/pnn.pytorch@08865db and `jfu` for juefeix/pnn.pytorch.update@b9513ff.

Random streams: `params` (weights), `noise_masks` (masks); in training also `dropout`, `activation` (rrelu's slopes) and
`redraw` (masks that are drawn anew at every step).
"""

import math
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError
from pnn_jax.nn.activations import ACTIVATIONS, LRELU_SLOPE, PRELU_INITIAL_SLOPE, RRELU_BOUNDS, RRELU_EVAL_SLOPE
from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS
from pnn_jax.ops import combine_channels, perturb_combine, perturb_combine_dense

POOLINGS = ('max', 'avg')

# Padding of a convolution of each supported kernel size, and its stride in a `ConvLayer` (mk models.py:39-48).
CONV_PADDING = {1: 0, 3: 1, 5: 1, 7: 3}
CONV_LAYER_STRIDE = {1: 1, 3: 1, 5: 1, 7: 2}


def conv_kernel_init(key: jax.Array, shape: tuple[int, ...], fan_out: int) -> jax.Array:
    """N(0, sqrt(2 / fan_out)) with fan_out = kernel area x output channels, groups ignored (mk utils.py:51-54)."""
    return math.sqrt(2.0 / fan_out) * jax.random.normal(key, shape, jnp.float32)


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for convolution biases and for both tensors of a Linear."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)


def along_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes a [c] vector to broadcast against x [..., c], in x's dtype."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def pool(x: jax.Array, kind: str, window: int, stride: int, padding: int = 0) -> jax.Array:
    """`torch.nn.MaxPool2d` or `AvgPool2d` (padding zeros count in the average) on [b, h, w, c]; windows that do not fit
    are dropped."""
    if kind == 'max' and window == stride and padding == 0:
        return _max_pool_tiles(x, window)
    shape, strides, pads = (window, window), (stride, stride), ((padding, padding), (padding, padding))
    if kind == 'max':
        return nn.max_pool(x, shape, strides, pads)
    return nn.avg_pool(x, shape, strides, pads)


def _tiles(x: jax.Array, size: int) -> list[jax.Array]:
    """The size x size values of every tile as as many arrays [b, h // size, w // size, c], in reading order."""
    height, width = x.shape[1] // size * size, x.shape[2] // size * size
    return [x[:, i:height:size, j:width:size] for i in range(size) for j in range(size)]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_tiles(x: jax.Array, size: int) -> jax.Array:
    """Max pooling without overlap. XLA's own gradient of it is a scatter, 50 times slower on CPU than this."""
    return reduce(jnp.maximum, _tiles(x, size))


def _max_pool_forward(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    return _max_pool_tiles(x, size), x


def _max_pool_backward(size: int, x: jax.Array, y_bar: jax.Array) -> tuple[jax.Array]:
    """The gradient goes to the first of equal maxima, as in torch."""
    tiles = _tiles(x, size)
    y = reduce(jnp.maximum, tiles)
    winner = jnp.full(y.shape, len(tiles) - 1, jnp.int8)
    for index in range(len(tiles) - 2, -1, -1):
        winner = jnp.where(tiles[index] == y, jnp.int8(index), winner)
    # Without the barrier XLA:CPU computes the winner again for every pixel, 20 times slower.
    winner, y_bar = jax.lax.optimization_barrier((winner, y_bar))
    batch, height, width, channels = y.shape
    split, whole = (batch, height, size, width, size, channels), (batch, height * size, width * size, channels)
    spread = lambda pooled: jnp.broadcast_to(pooled[:, :, None, :, None], split).reshape(whole)
    row, column = (jax.lax.broadcasted_iota(jnp.int8, whole, axis) % size for axis in (1, 2))
    x_bar = jnp.where(spread(winner) == row * size + column, spread(y_bar), 0)
    rest = ((0, 0), (0, x.shape[1] - height * size), (0, x.shape[2] - width * size), (0, 0))
    return (jnp.pad(x_bar, rest),)


_max_pool_tiles.defvjp(_max_pool_forward, _max_pool_backward)


def _standardize(x: jax.Array, mean: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) * gain + bias along the channels of x [..., c], computed in float32 or wider, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - along_channels(mean, wide)
    return (centred * along_channels(gain, wide) + along_channels(bias, wide)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [..., c] by the statistics of all its axes but the last.

    Returns y, of x's shape and dtype, and the mean [c] and biased variance [c] of x, which carry no gradient. The
    gradient is written out, because it needs fewer passes over x than the derivative of mean and variance.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.square(wide - along_channels(mean, wide)).mean(axes)
    inverse = jax.lax.rsqrt(var + epsilon)
    return (_standardize(x, mean, inverse * scale, bias), mean, var), (x, mean, inverse, scale)


def _batch_norm_backward(epsilon, residuals, cotangents):
    del epsilon
    x, mean, inverse, scale = residuals
    wide = x.astype(mean.dtype)
    y_bar = cotangents[0].astype(mean.dtype)
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    bias_bar = y_bar.sum(axes)
    # The same mean, but XLA cannot know: it would keep the centred values of the forward pass for this one.
    mean = jnp.where(bias_bar == bias_bar, mean, jnp.nan)
    centred = wide - along_channels(mean, wide)
    scale_bar = (y_bar * centred).sum(axes) * inverse
    slope = along_channels(inverse * scale_bar / count, wide)
    # In torch's order: of few values, nearly all of y_bar cancels.
    x_bar = along_channels(inverse * scale, wide) * (y_bar - along_channels(bias_bar / count, wide) - centred * slope)
    return x_bar.astype(x.dtype), scale_bar.astype(scale.dtype), bias_bar.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class TorchBatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d/2d` over all axes of x [..., c] but the last.

    Normalises with the biased batch variance and stores the unbiased one, as torch does; momentum is torch's (weight of
    the new value). Under jit with a sharded batch the statistics are those of the global batch.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        if not train:
            gain = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            return _standardize(x, running_mean.value, gain, bias)
        y, mean, var = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // channels
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = (1 - self.momentum) * running_mean.value + self.momentum * mean
            running_var.value = (1 - self.momentum) * running_var.value + self.momentum * unbiased
        return y


class Conv(nn.Module):
    """`torch.nn.Conv2d` with square kernels, initialised as the audit's `weights_init` leaves it.

    A 1x1 kernel is a (strided) slice and a product of matrices. With `frozen` the kernel is drawn once and kept in the
    `frozen` collection, where neither gradients nor weight decay reach it (jfu models.py:513).
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
            y = combine_channels(x, kernel, self.stride)
        else:
            padding = ((CONV_PADDING[size],) * 2,) * 2
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride, self.stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
        if self.use_bias:
            bias = self.param('bias', fan_in_uniform, (self.features,), channels * size * size)
            y = y + along_channels(bias, y)
        return y


class Linear(nn.Module):
    """`torch.nn.Linear` with its default initialisation, on x [b, in]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', fan_in_uniform, (x.shape[-1], self.features), x.shape[-1])
        bias = self.param('bias', fan_in_uniform, (self.features,), x.shape[-1])
        return x @ kernel.astype(x.dtype) + along_channels(bias, x)


class Activation(nn.Module):
    """One activation by name. As in torch it may be used several times and shares prelu's learned slope."""

    kind: str

    def setup(self):
        if self.kind == 'prelu':
            self.learned_slope = self.param('slope', nn.initializers.constant(PRELU_INITIAL_SLOPE), (1,), jnp.float32)

    def slope(self) -> jax.Array | None:
        """The scalar slope of the leaky family, None for the others. rrelu's is the mean that evaluation uses."""
        if self.kind == 'prelu':
            return self.learned_slope[0]
        constant = {'lrelu': LRELU_SLOPE, 'rrelu': RRELU_EVAL_SLOPE}.get(self.kind)
        return None if constant is None else jnp.float32(constant)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.kind == 'rrelu' and train:
            low, high = RRELU_BOUNDS
            slope = jax.random.uniform(self.make_rng('activation'), x.shape, x.dtype, low, high)
        else:
            slope = self.slope()
        return ACTIVATIONS[self.kind](x, slope if slope is None else slope.astype(x.dtype))


class ConvLayer(nn.Module):
    """Convolution, batch norm, activation: `PerturbLayer` with filter_size > 0 (mk models.py:50-55).

    x [b, h, w, c] -> [b, h', w', features]. Kernel 5 shrinks a map by two pixels and kernel 7 halves it, as there.
    """

    features: int
    kernel_size: int = 3
    activation: str = 'relu'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = self.kernel_size
        x = Conv(self.features, size, CONV_LAYER_STRIDE[size], use_bias=size == 1, name='conv')(x)
        return Activation(self.activation, name='activation')(TorchBatchNorm(name='norm')(x, train), train)


class PerturbationLayer(nn.Module):
    """Add fixed noise masks, activate, combine with learned 1x1 weights; then batch norm and activation.

    x [b, h, w, c] -> [b, h, w, features]. Each channel is perturbed by `num_masks` masks (the paper's fanout, section
    3.2), unique to the channel or one set for all. With one mask the combination is dense over channels; with several
    it is grouped: output o reads only the masks of input channel o // (features // c) (mk models.py:56-84).

    Attributes:
        features: output channels; a multiple of the input's where num_masks > 1.
        num_masks: masks per input channel.
        share_masks: one set of masks for every channel.
        trainable_masks: masks are parameters; otherwise they live in the `noise_masks` collection. Their values at
            initialisation are the same in both cases.
        redraw_masks: training draws new masks at every step; evaluation uses the stored ones.
        mix_channels: a second, dense 1x1 convolution with batch norm and activation.
        noise_level: factor of the raw masks, applied in the forward pass.
        noise_type: a name in `NOISE_DISTRIBUTIONS`.
        activate_after_noise: activation between noise and combination; the audit's first layer has none.
        activation: a name in `ACTIVATIONS`.
    """

    features: int
    num_masks: int = 1
    share_masks: bool = False
    trainable_masks: bool = False
    redraw_masks: bool = False
    mix_channels: bool = False
    noise_level: float = 0.5
    noise_type: str = 'uniform'
    activate_after_noise: bool = True
    activation: str = 'relu'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        if self.num_masks > 1 and self.features % channels:
            raise InputError(
                f'num_masks={self.num_masks} needs output channels that are a multiple of the input channels, '
                f'got {self.features} from {channels}'
            )
        activation = Activation(self.activation, name='activation')
        if self.num_masks == 1:
            shape, fan_in = (channels, self.features), channels
        else:
            shape, fan_in = (channels, self.num_masks, self.features // channels), self.num_masks
        kernel = self.param('kernel', conv_kernel_init, shape, self.features)
        bias = self.param('bias', fan_in_uniform, (self.features,), fan_in)
        y = self.respond(x, kernel.astype(x.dtype), activation, train)
        y = y.reshape(*x.shape[:-1], self.features)
        y = activation(TorchBatchNorm(name='norm')(y + along_channels(bias, y), train), train)
        if self.mix_channels:
            y = Conv(self.features, kernel_size=1, use_bias=True, name='mix')(y)
            y = activation(TorchBatchNorm(name='mix_norm')(y, train), train)
        return y

    def respond(self, x: jax.Array, kernel: jax.Array, activation: Activation, train: bool) -> jax.Array:
        """The combined responses to the masks: [b, h, w, features], or [b, h, w, c, features // c] when grouped."""
        random_slopes = self.activate_after_noise and self.activation == 'rrelu' and train
        slope = activation.slope()
        options = {
            'noise_level': self.noise_level,
            'activation': self.activation if self.activate_after_noise else None,
            'slope': slope if slope is None else slope.astype(x.dtype),
            'key': self.make_rng('activation') if random_slopes else None,
        }
        masks = self.noise_masks(x.shape, train).astype(x.dtype)
        if self.num_masks == 1:
            return perturb_combine_dense(x, masks, kernel, **options)
        return perturb_combine(x, masks, kernel, **options)

    def noise_masks(self, input_shape: tuple[int, ...], train: bool) -> jax.Array:
        """Raw masks [h, w, c or 1, num_masks]."""
        _, height, width, channels = input_shape
        shape = (height, width, 1 if self.share_masks else channels, self.num_masks)
        sample = NOISE_DISTRIBUTIONS[self.noise_type]
        collection = 'params' if self.trainable_masks else 'noise_masks'
        masks = self.variable(collection, 'masks', lambda: sample(self.make_rng('noise_masks'), shape)).value
        if masks.shape != shape:
            raise InputError(f'masks of shape {masks.shape} do not fit an input that needs {shape}')
        if self.redraw_masks and train and not self.is_initializing():
            return sample(self.make_rng('redraw'), shape)
        return masks


class NormalizedPerturbationLayer(PerturbationLayer):
    """The first layer of the authors' all-layer answer: noise, batch norm over every perturbed map, sigmoid, grouped
    combination (jfu models.py:75-84). The batch norm needs the perturbed maps themselves, num_masks times the input."""

    def respond(self, x, kernel, activation, train):
        perturbed = x[..., None] + self.noise_level * self.noise_masks(x.shape, train).astype(x.dtype)[None]
        flat = perturbed.reshape(*x.shape[:-1], -1)
        flat = activation(TorchBatchNorm(name='perturbed_norm')(flat, train), train)
        kernel = kernel.reshape(x.shape[-1], self.num_masks, -1)
        return jnp.einsum('bhwgm,gmk->bhwgk', flat.reshape(perturbed.shape), kernel)


class RandomFilterLayer(PerturbationLayer):
    """A control that neither side ran: fixed random 3x3 depthwise filters in the place of the noise masks.

    Same learned weights as a `PerturbationLayer` of the same arguments; what differs is that each fixed response sees
    the pixel's neighbours. Filters [3, 3, c or 1, num_masks] are a third of what `noise_type` draws; `noise_level` has
    no influence on them.
    """

    def respond(self, x, kernel, activation, train):
        filters = self.noise_masks((0, 3, 3, x.shape[-1]), train=False).astype(x.dtype) / 3
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[..., None]
        responses = sum(
            padded[:, i : i + height, j : j + width] * filters[None, None, None, i, j]
            for i in range(3)
            for j in range(3)
        )
        kernel = kernel.reshape(x.shape[-1], self.num_masks, -1)
        if self.activate_after_noise:
            responses = activation(responses, train)
        if self.num_masks == 1:
            return jnp.einsum('bhwgm,gmk->bhwk', responses, kernel)
        return jnp.einsum('bhwgm,gmk->bhwgk', responses, kernel)
