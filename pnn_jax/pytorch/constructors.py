"""Arguments of the constructors in the PyTorch repositories, and the fields of `config.model` that they stand for."""

from collections.abc import Callable, Mapping
from typing import Any

from pnn_jax.errors import InputError
from pnn_jax.models import MODELS
from pnn_jax.pytorch.names import check_supported


def _fields(name: str) -> Callable[[Any], dict]:
    return lambda value: {name: value}


def _layer_kind(kind: str, size: str) -> Callable[[int], dict]:
    return lambda value: {kind: 'conv', size: value} if value else {kind: 'perturbation'}


# Arguments of the networks' constructors (mk models.py:507-554) -> fields of config.model. Those of the data follow.
ARGUMENTS: dict[str, Callable[[Any], dict]] = {
    'nfilters': _fields('num_filters'),
    'nmasks': _fields('num_masks'),
    'unique_masks': lambda value: {'share_masks': not value},
    'level': _fields('noise_level'),
    'filter_size': _layer_kind('layer', 'kernel_size'),
    'first_filter_size': _layer_kind('stem_layer', 'stem_kernel_size'),
    'act': _fields('activation'),
    'scale_noise': _fields('stem_noise_scale'),
    'noise_type': _fields('noise_type'),
    'use_act': _fields('activate_after_noise'),
    'dropout': _fields('dropout_rate'),
    'train_masks': _fields('trainable_masks'),
    'pool_type': _fields('pooling'),
    'mix_maps': lambda value: {'mix_channels': bool(value)},
    'debug': lambda value: {},
}
DATA_ARGUMENTS = ('input_size', 'avgpool', 'nclasses')


def model_fields(network: str, arguments: Mapping[str, Any], *, authors_answer: bool = False) -> dict[str, Any]:
    """Fields of `config.model` for a network of the PyTorch repositories, only those that the network reads.

    Args:
        network: their name, `net_type`.
        arguments: of its constructor; DATA_ARGUMENTS are allowed and describe data instead.
        authors_answer: the network of juefeix/pnn.pytorch.update.

    Raises:
        InputError: unknown network or argument.
    """
    name = network.replace('noiseresnet', 'noise_resnet')
    name = {'perturb_resnet18': 'answer_resnet18'}.get(name, name) if authors_answer else name
    if name not in MODELS:
        raise InputError(f'network {network!r} is unknown; known: {", ".join(MODELS)}')
    unknown = set(arguments) - set(ARGUMENTS) - set(DATA_ARGUMENTS)
    if unknown:
        raise InputError(f'constructor argument {min(unknown)!r} of {network} is unknown')
    fields: dict[str, Any] = {'freeze_stem': authors_answer}
    for argument, convert in ARGUMENTS.items():
        if argument in arguments:
            fields |= convert(arguments[argument])
    read = {field: value for field, value in fields.items() if field in MODELS[name].fields}
    if name.startswith('noise_resnet'):
        # Their noise layers ignore these two arguments: always uniform, never trained (mk models.py:348-351).
        read |= {'noise_type': 'uniform', 'trainable_masks': False}
    return {'name': name, **read}


def constructor_arguments(config, num_classes: int, image_size: int) -> dict[str, Any]:
    """The inverse of `model_fields`: arguments with which the PyTorch constructor builds `config.model`."""
    check_supported(config)
    return {
        'nfilters': config.num_filters,
        'nmasks': config.num_masks,
        'unique_masks': not config.share_masks,
        'level': config.noise_level,
        'filter_size': config.kernel_size if config.layer == 'conv' else 0,
        'first_filter_size': config.stem_kernel_size if config.stem_layer == 'conv' else 0,
        'act': config.activation,
        'scale_noise': config.stem_noise_scale,
        'noise_type': config.noise_type,
        'use_act': config.activate_after_noise,
        'dropout': config.dropout_rate,
        'train_masks': config.trainable_masks,
        'pool_type': config.pooling,
        'mix_maps': config.mix_channels,
        'debug': False,
        'input_size': image_size,
        'avgpool': image_size // 8,
        'nclasses': num_classes,
    }
