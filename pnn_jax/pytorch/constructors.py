"""Arguments of the constructors in the PyTorch repositories, and the fields of `config.model` that they stand for."""

from collections.abc import Mapping
from typing import Any

from pnn_jax.errors import InputError
from pnn_jax.models.registry import MODELS, OPTIONS
from pnn_jax.pytorch.names import TABLES, check_supported

# Constructor argument (mk models.py:507-554) -> the field of config.model that takes the same values. It is declared
# where the option is: option(..., pytorch='nfilters').
SAME_VALUES = {
    field.metadata['option'].pytorch: name
    for name, field in OPTIONS.items()
    if isinstance(field.metadata['option'].pytorch, str)
}
LAYER_SIZES = {'filter_size': ('layer', 'kernel_size'), 'first_filter_size': ('stem_layer', 'stem_kernel_size')}
DATA_ARGUMENTS = ('input_size', 'avgpool', 'nclasses')
OTHER_ARGUMENTS = ('unique_masks', 'debug')


def model_fields(network: str, arguments: Mapping[str, Any], *, authors_answer: bool = False) -> dict[str, Any]:
    """Fields of `config.model` for a network of the PyTorch repositories, only those that the network reads.

    Args:
        network: its name there, `net_type`.
        arguments: of its constructor. DATA_ARGUMENTS are allowed; they describe the data.
        authors_answer: whether it is the network of juefeix/pnn.pytorch.update.

    Raises:
        InputError: the network or an argument is unknown.
    """
    name = network.replace('noiseresnet', 'noise_resnet')
    name = {'perturb_resnet18': 'answer_resnet18'}.get(name, name) if authors_answer else name
    if name not in TABLES:
        raise InputError(f'network {network!r} is unknown; known: {", ".join(TABLES)}')
    unknown = set(arguments) - set(SAME_VALUES) - set(LAYER_SIZES) - set(OTHER_ARGUMENTS) - set(DATA_ARGUMENTS)
    if unknown:
        raise InputError(f'constructor argument {min(unknown)!r} of {network} is unknown')
    fields: dict[str, Any] = {'freeze_stem': authors_answer}
    for argument, value in arguments.items():
        if argument in SAME_VALUES:
            field = SAME_VALUES[argument]
            fields[field] = bool(value) if isinstance(OPTIONS[field].default, bool) else value
        elif argument in LAYER_SIZES:  # 0 means a layer with noise
            kind, size = LAYER_SIZES[argument]
            fields |= {kind: 'conv', size: value} if value else {kind: 'perturbation'}
        elif argument == 'unique_masks':
            fields['share_masks'] = not value
    read = {field: value for field, value in fields.items() if field in MODELS[name].fields}
    if name.startswith('noise_resnet'):
        # Their noise layers ignore these two arguments: always uniform, never trained (mk models.py:348-351).
        read |= {'noise_type': 'uniform', 'trainable_masks': False}
    return {'name': name, **read}


def constructor_arguments(config, num_classes: int, image_size: int) -> dict[str, Any]:
    """The inverse of `model_fields`: arguments with which the PyTorch constructor builds `config.model`."""
    check_supported(config)
    same = {argument: getattr(config, field) for argument, field in SAME_VALUES.items()}
    sizes = {
        argument: getattr(config, size) if getattr(config, kind) == 'conv' else 0
        for argument, (kind, size) in LAYER_SIZES.items()
    }
    data = {'input_size': image_size, 'avgpool': image_size // 8, 'nclasses': num_classes}
    return {**same, **sizes, 'unique_masks': not config.share_masks, 'debug': False, **data}
