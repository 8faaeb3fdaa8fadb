"""All networks by name, and one constructor from `config.model`."""

from pnn_jax.models.registry import MODELS, create_model

__all__ = ['MODELS', 'create_model']
