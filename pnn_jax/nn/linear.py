"""The fully connected layer."""

import flax.linen as nn
import jax

from pnn_jax.nn.channels import along_channels
from pnn_jax.nn.initializers import fan_in_uniform


class Linear(nn.Module):
    """`torch.nn.Linear` with its default initialisation. x [b, in] -> [b, features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', fan_in_uniform, (x.shape[-1], self.features), x.shape[-1])
        bias = self.param('bias', fan_in_uniform, (self.features,), x.shape[-1])
        return x @ kernel.astype(x.dtype) + along_channels(bias, x)
