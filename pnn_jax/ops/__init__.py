"""The perturbation operation."""

from pnn_jax.ops.perturbation import (
    combine_channels,
    perturb_combine,
    perturb_combine_dense,
    perturb_combine_reference,
)

__all__ = ['combine_channels', 'perturb_combine', 'perturb_combine_dense', 'perturb_combine_reference']
