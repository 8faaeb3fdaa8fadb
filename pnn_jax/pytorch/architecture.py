"""Which network a PyTorch checkpoint is of: fields of `config.model` from names, shapes and saved modules."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pnn_jax.errors import InputError
from pnn_jax.models import MODELS
from pnn_jax.pytorch.files import Module
from pnn_jax.pytorch.names import ACTIVATION_KINDS, POOLING_KINDS
from pnn_jax.pytorch.variables import TorchTensors


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a checkpoint tells of its network.

    Attributes:
        fields: of `config.model`; the file does not tell the others.
        num_classes: of the classifier.
        image_size: height and width of the images.
        channels: of the images, or None where shared masks hide them.
    """

    fields: dict[str, Any]
    num_classes: int
    image_size: int
    channels: int | None


DEPTHS = {  # (blocks in stage 3, bottleneck) -> network
    (2, False): 'noise_resnet18',
    (6, False): 'noise_resnet34',
    (6, True): 'noise_resnet50',
    (23, True): 'noise_resnet101',
    (36, True): 'noise_resnet152',
}
# Networks of PerturbLayers: names of (the first layer, one later layer).
LAYER_PREFIXES = {
    'perturb_resnet18': ('pre_layers.0', 'layer1.0.layers.0'),
    'answer_resnet18': ('pre_layers.0', 'layer1.0.layers.0'),
    'lenet': ('first_layers.0', 'first_layers.2'),
    'cifarnet': ('first_layers.0', 'first_layers.1'),
}
SMALL_NETWORKS = {128: 'lenet', 256: 'cifarnet'}  # by the width of the hidden linear layer


def network_name(state_dict: Mapping[str, np.ndarray]) -> str:
    """The network that a state_dict is of, by the names of its tensors; '' if it is of none."""
    if 'linear1.bias' in state_dict:
        return SMALL_NETWORKS.get(state_dict['linear1.bias'].size, '')
    if 'conv1.weight' in state_dict:
        return 'resnet18'
    if 'pre_layers.0.weight' in state_dict:
        blocks = {key.split('.')[1] for key in state_dict if key.startswith('layer3.')}
        return DEPTHS.get((len(blocks), 'layer1.0.layers.7.weight' in state_dict), '')
    if 'pre_layers.0.layers.0.weight' in state_dict:
        answers = any(f'pre_layers.{index}.weight' in state_dict for index in (1, 2))
        return 'answer_resnet18' if answers else 'perturb_resnet18'
    return ''


def architecture_of(tensors: TorchTensors, known: Mapping[str, Any], path: Path) -> Architecture:
    """The network of a file: from the names and shapes of its tensors, and from its saved modules, if it has any.

    Args:
        known: `fields_of_modules`, or {} for a state_dict.
        path: for error messages.

    Raises:
        InputError: the tensors are of no network that is known.
    """
    state = tensors.state_dict
    name = network_name(state)
    if not name:
        raise InputError(f'{path} is of no network that is known; its first key is {next(iter(state), "")!r}')
    try:
        if name in LAYER_PREFIXES:
            fields, image_size, channels = _of_layers(name, state)
        elif name == 'resnet18':
            width, channels, _, _ = state['conv1.weight'].shape
            fields, image_size = {'num_filters': width}, 32
        else:
            fields, image_size, channels = _of_noise_resnet(tensors)
        num_classes = len(state['linear2.bias' if name in SMALL_NETWORKS.values() else 'linear.bias'])
    except KeyError as error:
        raise InputError(f'{path}: {error.args[0]} is missing') from None
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        raise InputError(f'{path} is of no network that is known: its tensors have unexpected shapes') from None
    fields = {key: value for key, value in (fields | dict(known)).items() if key in MODELS[name].fields}
    return Architecture({'name': name, **fields}, num_classes, image_size, channels)


def _of_noise_resnet(tensors: TorchTensors) -> tuple[dict[str, Any], int, int]:
    width, channels, kernel_size, _ = tensors.state_dict['pre_layers.0.weight'].shape
    size = next(iter(tensors.noise_masks.values())).shape[-1] if tensors.noise_masks else 8
    image_size = size * (4 if kernel_size == 7 else 1)
    return {'num_filters': width, 'stem_kernel_size': kernel_size}, image_size, channels


def _of_layers(name: str, state: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int, int | None]:
    """Fields of config.model, size and channels of the images for a network of PerturbLayers.

    A layer with noise tells the size of its input by its masks. Where all layers are convolutions, the first linear
    layer of a small network, behind three poolings, fits several sizes: the multiple of 8 is taken. A ResNet works with
    any size.
    """
    first, later = LAYER_PREFIXES[name]
    width = len(state[f'{later}.layers.0.weight'])
    fields: dict[str, Any] = {'num_filters': width, 'mix_channels': any('.mix_layers.' in key for key in state)}
    if any(key.endswith('.act.weight') for key in state):
        fields['activation'] = 'prelu'
    channels = None
    map_sizes: dict[str, int] = {}  # of the inputs of layers with noise
    for prefix, kind, kernel in ((later, 'layer', 'kernel_size'), (first, 'stem_layer', 'stem_kernel_size')):
        weight = state[f'{prefix}.layers.0.weight']
        if f'{prefix}.noise' not in state:
            fields |= {kind: 'conv', kernel: weight.shape[-1]}
            channels = weight.shape[1]
            continue
        _, owners, masks, map_sizes[prefix], _ = state[f'{prefix}.noise'].shape
        fields[kind] = 'perturbation'
        if prefix == later or name != 'answer_resnet18':  # whose first layer has its own number of masks
            fields['num_masks'] = masks
        if prefix == later or owners > 1:  # one set of masks may also mean one channel
            fields['share_masks'] = owners == 1
        channels = owners if owners > 1 else weight.shape[1] if masks == 1 else None
    if first in map_sizes:
        image_size = map_sizes[first]
    elif later in map_sizes:
        image_size = _size_before_stem(name, fields['stem_kernel_size'], map_sizes[later])
    elif name in SMALL_NETWORKS.values():
        image_size = 8 * round((state['linear1.weight'].shape[1] / width) ** 0.5)
    else:
        image_size = 32
    return fields, image_size, channels


def _size_before_stem(name: str, kernel_size: int, map_size: int) -> int:
    """The size of images from that of the maps at the later layer of `LAYER_PREFIXES`, behind a convolution.

    The 5x5 convolution makes a map two pixels smaller and the 7x7 one halves it (`CONV_PADDING`). A pooling halves the
    map as well: that of LeNet, and that which ResNets have behind a 7x7 convolution.
    """
    if name == 'lenet' or (kernel_size == 7 and name not in SMALL_NETWORKS.values()):
        map_size *= 2
    return {5: map_size + 2, 7: map_size * 2}.get(kernel_size, map_size)


def fields_of_modules(model: Module) -> dict[str, Any]:
    """Fields of config.model from the attributes of a saved model of the PyTorch repositories.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, StopIteration: the model is of another structure.
    """
    modules = dict(model.modules())
    if model.kind == 'NoiseResNet':
        first_noise = next(module for module in modules.values() if module.kind == 'NoiseLayer')
        stem = model.tensors()['pre_layers.0.weight']
        return {'noise_level': first_noise['level'], 'freeze_stem': not stem.requires_grad}
    stem = modules.get('pre_layers.0') or modules.get('first_layers.0')
    if stem is None:
        return {}
    later = next(module for module in modules.values() if module.kind == 'PerturbLayer' and module is not stem)
    answers = stem.kind == 'PerturbLayerFirst'  # it multiplies the level by 20 and always has a sigmoid
    return {
        'noise_level': later['level'],
        'stem_noise_scale': quotient(stem['level'], later['level'] * (20 if answers else 1)),
        'noise_type': later['noise_type'],
        'share_masks': not later['unique_masks'],
        'trainable_masks': bool(later['train_masks']),
        'activate_after_noise': bool(stem['use_act']),
        'activation': ACTIVATION_KINDS[(model if answers else later)['_modules']['act'].kind],
        # Behind a 7x7 stem there is a max pooling whatever the option says.
        'pooling': next(
            POOLING_KINDS[module.kind]
            for name, module in modules.items()
            if module.kind in POOLING_KINDS and not name.startswith('pre_layers.')
        ),
        'dropout_rate': next((m['p'] for m in modules.values() if m.kind == 'Dropout'), 0.0),
    }


def quotient(one: float, other: float) -> float:
    """one / other without what rounding added: 0.1 * 3 / 0.1 is 3. It is 1 where `other` is 0."""
    return round(one / other, 12) if other else 1.0


# Fields that change the outputs and cannot be seen in a state_dict, by the part of the network that reads them.
UNSEEN_ALWAYS = ('activation', 'pooling')
UNSEEN_WITH_NOISE = ('noise_level',)
UNSEEN_WITH_NOISY_STEM = ('stem_noise_scale', 'activate_after_noise')


def unseen(architecture: Architecture) -> list[str]:
    """Fields of config.model that change this network's outputs and that its file does not tell."""
    fields = architecture.fields
    noisy_stem = fields.get('stem_layer') == 'perturbation'
    noisy = noisy_stem or fields.get('layer') == 'perturbation' or fields['name'] in DEPTHS.values()
    matter = UNSEEN_ALWAYS + UNSEEN_WITH_NOISE * noisy + UNSEEN_WITH_NOISY_STEM * noisy_stem
    return [field for field in matter if field in MODELS[fields['name']].fields and field not in fields]
