"""All networks by name, and `create_model(config.model, num_classes)`, which builds one."""

from pnn_jax.models.registry import MODELS, create_model

__all__ = ['MODELS', 'create_model']
