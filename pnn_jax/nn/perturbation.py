"""The perturbation layer: add fixed noise masks, activate, combine with learned weights.

`PerturbationLayer` is that alone, for networks of your own. `PerturbationUnit` adds batch norm, an activation and,
optionally, a second 1x1 convolution: `PerturbLayer` of the audit. `NormalizedPerturbationLayer` is the variant in the
first layer of the authors' answer.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax import ops
from pnn_jax.errors import InputError
from pnn_jax.nn.activations import ACTIVATIONS, Activation, check_activation
from pnn_jax.nn.channels import along_channels
from pnn_jax.nn.conv import Conv
from pnn_jax.nn.initializers import conv_kernel_init, fan_in_uniform
from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS, PYTORCH_NOISE, stored_masks
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.options import Conflict, check_options, option


class PerturbationLayer(nn.Module):
    """Perturb, activate, combine: section 3 of the paper, mk models.py:56-84 without its batch norm.

    x [b, h, w, c] -> [b, h, w, features], in the dtype of x. Each channel is perturbed by `num_masks` masks of the size
    of the map. With one mask, every output reads all channels. With several, the combination is grouped: output o reads
    only the masks of input channel o // (features // c).

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from pnn_jax.nn.perturbation import PerturbationLayer
    >>> class Network(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = PerturbationLayer(features=8, num_masks=4, activation=nn.gelu)(x)
    ...         return nn.Dense(10)(x.mean((1, 2)))
    >>> keys = {'params': jax.random.key(0), 'noise_masks': jax.random.key(1)}
    >>> variables = Network().init(keys, jnp.ones((1, 16, 16, 2)))
    >>> jax.tree.map(jnp.shape, variables['noise_masks'])
    {'PerturbationLayer_0': {'masks': (16, 16, 2, 4)}}
    >>> Network().apply(variables, jnp.ones((5, 16, 16, 2))).shape
    (5, 10)

    Variables: `kernel` [c, features], or [c, num_masks, features // c] when grouped; `bias` [features];
    `activation/slope` [1] with prelu; `masks` [h, w, c, num_masks], or [h, w, 1, num_masks] when shared, in the
    collection `noise_masks`, or in `params` when trained.

    Attributes:
        features: output channels; a multiple of the input channels where num_masks > 1.
        num_masks: masks per input channel (the paper's fanout, section 3.2).
        share_masks: one set of masks for all channels.
        trainable_masks: masks are parameters. They start at the same values as fixed ones.
        redraw_masks: new masks at every training step, from the random stream `redraw`; evaluation uses the stored
            ones.
        noise_level: factor of the masks. They are stored without it.
        noise_type: a name in `NOISE_DISTRIBUTIONS`.
        activation: between perturbation and combination. A name in `ACTIVATIONS`, an elementwise function such as
            `nn.gelu`, an `Activation` that the caller uses too, or None.
        use_bias: adds a bias to every output channel.
    """

    features: int
    num_masks: int = option(1, at_least=1, pytorch='nmasks')
    share_masks: bool = option(False, pytorch=(False, True))
    trainable_masks: bool = option(False, pytorch='train_masks')
    redraw_masks: bool = option(False)
    noise_level: float = option(0.5, at_least=0, pytorch='level')
    noise_type: str = option(
        'uniform', choices=NOISE_DISTRIBUTIONS, pytorch='noise_type', pytorch_choices=PYTORCH_NOISE
    )
    activation: str | Callable[[jax.Array], jax.Array] | None = 'relu'
    use_bias: bool = True

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        if values['redraw_masks'] and values['trainable_masks']:
            yield 'redraw_masks', 'masks that are trained cannot be redrawn at every step'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the layer; `train` matters to `redraw_masks` and to rrelu, which need the streams named above.

        Raises:
            InputError: an option is not allowed; x is no floating [b, h, w, c]; `features` does not fit its channels;
                stored masks do not fit its size; initialisation without a key for `noise_masks`.
        """
        check_options(self)
        self.check_input(x)
        channels = x.shape[-1]
        shape: tuple[int, ...]
        if self.num_masks == 1:
            shape, fan_in = (channels, self.features), channels
        else:
            shape, fan_in = (channels, self.num_masks, self.features // channels), self.num_masks
        kernel = self.param('kernel', conv_kernel_init, shape, self.features)
        y = self.respond(x, kernel.astype(x.dtype), train).reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            y = y + along_channels(self.param('bias', fan_in_uniform, (self.features,), fan_in), y)
        return y

    def check_input(self, x: jax.Array) -> None:
        """Raises InputError where the layer cannot be applied to x."""
        name = '/'.join(self.path) or type(self).__name__
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f'{name}: needs a floating [batch, height, width, channels], got {x.dtype}{list(x.shape)}')
        channels = x.shape[-1]
        if self.features < 1:
            raise InputError(f'{name}: features={self.features}: must be at least 1')
        if self.num_masks > 1 and self.features % channels:
            raise InputError(
                f'{name}: with num_masks={self.num_masks}, features={self.features} must be a multiple of the '
                f'{channels} input channels'
            )

    def shared_activation(self) -> Activation | None:
        """The activation as a module: the caller's, one of this layer's own, or None."""
        if self.activation is None or isinstance(self.activation, Activation):
            return self.activation
        check_activation(self.activation)  # before flax sees it, which would adopt a module and its name
        return Activation(self.activation, name='activation')

    def masks(self, shape: tuple[int, ...], train: bool) -> jax.Array:
        """Raw masks of the given shape: stored, or new ones where they are redrawn."""
        sampler = NOISE_DISTRIBUTIONS[self.noise_type]
        stored = stored_masks(self, shape, sampler, trainable=self.trainable_masks)
        if self.redraw_masks and train and not self.is_initializing():
            return sampler(self.make_rng('redraw'), shape)
        return stored

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        """[h, w, c or 1, num_masks]."""
        _, height, width, channels = x.shape
        return height, width, 1 if self.share_masks else channels, self.num_masks

    def respond(self, x: jax.Array, kernel: jax.Array, train: bool) -> jax.Array:
        """The combined responses to the masks: [b, h, w, features], or [b, h, w, c, features // c] when grouped."""
        activation = self.shared_activation()
        kind = None if activation is None else activation.kind
        slope = None if activation is None else activation.slope()
        options: dict[str, Any] = {
            'noise_level': self.noise_level,
            'activation': kind,
            'slope': slope if slope is None else slope.astype(x.dtype),
            'key': self.make_rng('activation') if kind == 'rrelu' and train else None,
        }
        masks = self.masks(self.mask_shape(x), train).astype(x.dtype)
        if self.num_masks == 1:
            return ops.perturb_combine_dense(x, masks, kernel, **options)
        return ops.perturb_combine(x, masks, kernel, **options)


def combine_responses(responses: jax.Array, kernel: jax.Array) -> jax.Array:
    """Combines responses [b, h, w, c, num_masks] that are in memory.

    Args:
        responses: [b, h, w, c, m].
        kernel: [c, features] where m is 1, else [c, m, features // c].

    Returns:
        [b, h, w, features], or [b, h, w, c, features // c] when grouped.
    """
    if kernel.ndim == 2:
        return ops.combine_channels(responses[..., 0], kernel)
    return jnp.einsum('bhwgm,gmk->bhwgk', responses, kernel)


class NormalizedPerturbationLayer(PerturbationLayer):
    """A `PerturbationLayer` with a batch norm on every perturbed map, before the activation (jfu models.py:75-84).

    x [b, h, w, c] -> [b, h, w, features]. The batch norm needs the perturbed maps themselves, so an array of num_masks
    times the size of the input is in memory.
    """

    def respond(self, x: jax.Array, kernel: jax.Array, train: bool) -> jax.Array:
        activation = self.shared_activation()
        masks = self.masks(self.mask_shape(x), train).astype(x.dtype)
        # A NumPy number would make the sum float32.
        perturbed = x[..., None] + float(self.noise_level) * masks[None]
        flat = perturbed.reshape(*x.shape[:-1], math.prod(perturbed.shape[-2:]))  # -1 would not do for no images
        flat = TorchBatchNorm(name='perturbed_norm')(flat, train)
        if activation is not None:
            flat = activation(flat, train)
        return combine_responses(flat.reshape(perturbed.shape), kernel)


class PerturbationUnit(nn.Module):
    """A perturbation layer, then batch norm and activation: `PerturbLayer` of the audit (mk models.py:56-84).

    x [b, h, w, c] -> [b, h, w, features]. The variables of the layer (`kernel`, `bias`, `masks`) and of the unit
    (`norm`, `mix`, `mix_norm`, `activation`) are at one level. As in torch all activations are one module, so that
    prelu learns one slope per unit.

    Attributes:
        layer: `PerturbationLayer` or a subclass, not an instance of it. The unit calls it with features and activation;
            set other options with functools.partial: `partial(PerturbationLayer, num_masks=4)`.
        features: output channels.
        activation: a name or a function, as in `PerturbationLayer`; not None, and not an `Activation`.
        activate_after_noise: use the activation between perturbation and combination too. The audit's first layer does
            not (mk models.py:158-165).
        mix_channels: adds a 1x1 convolution over all channels, batch norm and activation (`mix_maps` in mk).
    """

    layer: Callable[..., PerturbationLayer]
    features: int
    activation: str = option('relu', choices=ACTIVATIONS, pytorch='act')
    activate_after_noise: bool = option(True, pytorch='use_act')
    mix_channels: bool = option(False, pytorch='mix_maps')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        activation = Activation(self.activation, name='activation')
        layer = self.layer(features=self.features, activation=activation if self.activate_after_noise else None)
        nn.share_scope(self, layer)
        y = layer(x, train)
        y = activation(TorchBatchNorm(name='norm')(y, train), train)
        if self.mix_channels:
            y = Conv(self.features, kernel_size=1, use_bias=True, name='mix')(y)
            y = activation(TorchBatchNorm(name='mix_norm')(y, train), train)
        return y
