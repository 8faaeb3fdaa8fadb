"""PyTorch state_dicts and this project's variables, exact in both directions and without importing torch.

State_dicts are dicts of numpy arrays here; `convert.py` reads and writes the files. What the tensors of a network are
called in PyTorch is declared in one table per family; layouts and shapes follow from the JAX side.

`mk` stands for michaelklachko/pnn.pytorch@08865db, `jf` for juefeix/pnn.pytorch@12fdc44 and `jfu` for
juefeix/pnn.pytorch.update@b9513ff.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pnn_jax.errors import InputError
from pnn_jax.models import MODELS, create_model
from pnn_jax.models.registry import stem_is_pooled

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TorchTensors:
    """What PyTorch knows of a network.

    Attributes:
        state_dict: as torch's, with numpy arrays, duplicate names of shared tensors included.
        noise_masks: of `noise_resnet` only: `layer1.0.layers.0.noise` -> [c, h, w] with the level multiplied in. torch
            keeps them out of the state_dict on a GPU (mk models.py:340), so a saved state_dict has lost them.
    """

    state_dict: Arrays
    noise_masks: Arrays = dataclasses.field(default_factory=dict)


# --- names ------------------------------------------------------------------------------------------------------------
# A table maps a name of ours to (names in PyTorch, table of what is inside). Where PyTorch has several names for one
# tensor, all are listed, the owner first. A name that is in no table is a leaf and renamed by LEAVES.

LEAVES = {
    'kernel': 'weight',
    'bias': 'bias',
    'scale': 'weight',
    'slope': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
    'masks': 'noise',
}


def _as(*names: str, inside: Mapping | None = None) -> tuple[tuple[str, ...], Mapping]:
    return names, inside or {}


def _layer(kind: str, config) -> dict:
    """PerturbLayer, with noise or as a convolution (mk models.py:15-101). Its one activation module has many names."""
    mixing = ('mix_layers.2',) if kind == 'perturbation' and config.mix_channels else ()
    return {
        'kernel': _as('layers.0.weight'),
        'bias': _as('layers.0.bias'),
        'conv': _as('layers.0'),
        'norm': _as('layers.1'),
        'activation': _as('act', 'layers.2', *mixing),
        'mix': _as('mix_layers.0'),
        'mix_norm': _as('mix_layers.1'),
    }


# PerturbLayerFirst with noise (jfu models.py:15-104); as a convolution it equals a PerturbLayer.
ANSWER_LAYER = {
    'kernel': _as('layers.2.weight'),
    'bias': _as('layers.2.bias'),
    'perturbed_norm': _as('layers.0'),
    'norm': _as('layers.3'),
    'mix': _as('mix_layers.0'),
    'mix_norm': _as('mix_layers.1'),
}
SHORTCUT = {'shortcut': _as('shortcut', inside={'conv': _as('0'), 'norm': _as('1')})}
BASELINE_BLOCK = {'conv1': _as('conv1'), 'norm1': _as('bn1'), 'conv2': _as('conv2'), 'norm2': _as('bn2'), **SHORTCUT}
NOISE_LAYER = {'norm': _as('layers.1'), 'conv': _as('layers.2')}
NOISE_BLOCK = {
    'noise1': _as('layers.0', inside=NOISE_LAYER),
    'norm1': _as('layers.2'),
    'noise2': _as('layers.4', inside=NOISE_LAYER),
    'norm2': _as('layers.5'),
    **SHORTCUT,
}
NOISE_BOTTLENECK = {
    'conv1': _as('layers.0'),
    'norm1': _as('layers.1'),
    'noise': _as('layers.3', inside=NOISE_LAYER),
    'norm2': _as('layers.5'),
    'conv2': _as('layers.7'),
    'norm3': _as('layers.8'),
    **SHORTCUT,
}


def _stages(block: Mapping, depths: tuple[int, ...] = (2, 2, 2, 2)) -> dict:
    return {
        f'stage{stage}_block{index + 1}': _as(f'layer{stage}.{index}', inside=block)
        for stage, depth in enumerate(depths, start=1)
        for index in range(depth)
    }


def _baseline(config) -> dict:
    stem = _as('', inside={'conv': _as('conv1'), 'norm': _as('bn1')})
    return {'stem': stem, **_stages(BASELINE_BLOCK), 'linear': _as('linear')}


def _perturb_stages(config) -> dict:
    layer = _layer(config.layer, config)
    return _stages({'layer1': _as('layers.0', inside=layer), 'layer2': _as('layers.2', inside=layer), **SHORTCUT})


def _perturb(config) -> dict:
    stem = _as('pre_layers', inside={'layer': _as('0', inside=_layer(config.stem_layer, config))})
    return {'stem': stem, **_perturb_stages(config), 'linear': _as('linear')}


def _answer(config) -> dict:
    first = _layer('conv', config) if config.stem_layer == 'conv' else ANSWER_LAYER
    next_index = 2 if stem_is_pooled(config) else 1
    stem = {
        'first': _as('pre_layers', inside={'layer': _as('0', inside=first)}),
        'conv': _as(f'pre_layers.{next_index}'),
        'norm': _as(f'pre_layers.{next_index + 1}'),
        'activation': _as('act', f'pre_layers.{next_index + 2}'),
    }
    return {'stem': _as('', inside=stem), **_perturb_stages(config), 'linear': _as('linear')}


def _noise(block: Mapping, *depths: int) -> Callable[[Any], dict]:
    stem = _as('pre_layers', inside={'conv': _as('0'), 'norm': _as('1')})
    return lambda config: {'stem': stem, **_stages(block, depths), 'linear': _as('linear')}


def _small(*positions: int) -> Callable[[Any], dict]:
    """LeNet and CifarNet: positions of their layers, between which the poolings stand (mk models.py:224-243)."""

    def table(config) -> dict:
        kinds = (config.stem_layer,) + (config.layer,) * (len(positions) - 1)
        return {
            **{
                f'layer{number}': _as(f'first_layers.{position}', inside=_layer(kind, config))
                for number, (position, kind) in enumerate(zip(positions, kinds, strict=True), start=1)
            },
            'linear1': _as('linear1', 'last_layers.1'),
            'norm': _as('batch_norm', 'last_layers.2'),
            'activation': _as('act', 'last_layers.3'),
            'linear2': _as('linear2', 'last_layers.5'),
        }

    return table


TABLES: dict[str, Callable[[Any], dict]] = {
    'resnet18': _baseline,
    'perturb_resnet18': _perturb,
    'answer_resnet18': _answer,
    'noise_resnet18': _noise(NOISE_BLOCK, 2, 2, 2, 2),
    'noise_resnet34': _noise(NOISE_BLOCK, 3, 4, 6, 3),
    'noise_resnet50': _noise(NOISE_BOTTLENECK, 3, 4, 6, 3),
    'noise_resnet101': _noise(NOISE_BOTTLENECK, 3, 4, 23, 3),
    'noise_resnet152': _noise(NOISE_BOTTLENECK, 3, 8, 36, 3),
    'lenet': _small(0, 2, 4),
    'cifarnet': _small(0, 1, 3, 4, 6, 7),
}


def _torch_names(path: tuple[str, ...], table: Mapping) -> list[str]:
    """All names in PyTorch of the leaf at `path` ('stem', 'layer', 'norm', 'scale'), the owner first."""
    names = ['']
    for part in path:
        theirs, table = table.get(part) or _as(LEAVES[part])
        names = ['.'.join(filter(None, (name, their))) for name in names for their in theirs]
    return names


# --- layouts ----------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # (tensor, our shape)


SAME = Layout(lambda a: a, lambda a, shape: a)
LINEAR = Layout(lambda a: a.T, lambda a, shape: a.T)
POINTWISE = Layout(lambda a: a.T[:, :, None, None], lambda a, shape: a[:, :, 0, 0].T)
CONVOLUTION = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a, shape: a.transpose(2, 3, 1, 0))
# Ours [in, masks, out // in]; theirs [out, masks, 1, 1] with output o in the group of input o // (out // in).
GROUPED = Layout(
    lambda a: a.transpose(0, 2, 1).reshape(-1, a.shape[1], 1, 1),
    lambda a, shape: a.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1),
)
MASKS = Layout(lambda a: a.transpose(2, 3, 0, 1)[None], lambda a, shape: a[0].transpose(2, 3, 0, 1))
ADDED_NOISE = Layout(lambda a: a.transpose(2, 0, 1), lambda a, shape: a.transpose(1, 2, 0))


def _layout(path: tuple[str, ...], ndim: int) -> Layout:
    if path[-1] == 'masks':
        return MASKS if ndim == 4 else ADDED_NOISE
    if path[-1] != 'kernel':
        return SAME
    if path[0].startswith('linear'):
        return LINEAR
    return {2: POINTWISE, 3: GROUPED, 4: CONVOLUTION}[ndim]


def _torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    return layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def _undo_level(key: str, scaled: np.ndarray, level: float) -> np.ndarray:
    """The raw mask whose product with `level`, rounded, is `scaled` bit for bit.

    In double precision, which only verification uses, the quotient is enough.

    Raises:
        InputError: there is none, because `scaled` was made at another level.
    """
    level = scaled.dtype.type(level)
    quotient = np.divide(scaled, level, out=np.zeros_like(scaled), where=scaled != 0) if level else scaled
    if scaled.dtype == np.float64:
        return quotient
    raw = quotient
    for neighbour in (np.nextafter(quotient, -np.inf), np.nextafter(quotient, np.inf)):
        raw = np.where(raw * level == scaled, raw, neighbour)
    if not np.array_equal(raw * level, scaled):
        raise InputError(f'{key} is not {level} times any mask: model.noise_level must be that of the saved network')
    return raw


# --- conversion -------------------------------------------------------------------------------------------------------


def check_supported(config) -> None:
    """Raises InputError where `config.model` asks for something that the PyTorch repositories do not have."""
    for field, allowed in (
        ('layer', ('perturbation', 'conv')),
        ('stem_layer', ('perturbation', 'conv')),
        ('redraw_masks', (False,)),
    ):
        value = getattr(config, field)
        if field in MODELS[config.name].fields and value not in allowed:
            raise InputError(
                f'model.{field}={value!r} has no PyTorch counterpart; allowed: {", ".join(map(str, allowed))}'
            )


def variable_shapes(config, num_classes: int, image_size: int, channels: int) -> dict:
    """The variables of `config.model` as shapes, nothing allocated. `channels` is the images'."""
    model = create_model(config, num_classes)
    key = jax.random.key(0)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init({'params': key, 'noise_masks': key}, x), image)


def to_torch(variables: Mapping, config, *, num_steps: int | None = None, aliases: bool = True) -> TorchTensors:
    """Variables, or any part of them, in PyTorch's names and layouts; dtypes are kept.

    Args:
        variables: collections `params`, `batch_stats`, `noise_masks`, `frozen`; each may be absent. Gradients go
            through as {'params': gradients}.
        config: `config.model`.
        num_steps: written as the batch norms' `num_batches_tracked`; None leaves these
            out, as PyTorch before 0.4.1 did.
        aliases: a tensor that PyTorch lists under several names gets all of them, as in a state_dict; otherwise the
            first, as in `named_parameters`.
    """
    check_supported(config)
    table = TABLES[config.name](config)
    state_dict, noise_masks = {}, {}
    for collection in variables.values():
        for path, value in traverse_util.flatten_dict(collection).items():
            value = np.asarray(value)
            names = _torch_names(path, table)
            tensor = np.ascontiguousarray(_layout(path, value.ndim).to_torch(value))
            if path[-1] == 'masks' and value.ndim == 3:
                noise_masks[names[0]] = tensor * tensor.dtype.type(config.noise_level)
            else:
                state_dict.update(dict.fromkeys(names if aliases else names[:1], tensor))
    if num_steps is not None:
        for name in [name for name in state_dict if name.endswith('.running_mean')]:
            state_dict[name.removesuffix('running_mean') + 'num_batches_tracked'] = np.asarray(num_steps, np.int64)
    return TorchTensors(state_dict, noise_masks)


def from_torch(tensors: TorchTensors, config, shapes: Mapping) -> tuple[dict, int | None]:
    """The inverse of `to_torch`.

    Args:
        tensors: state_dict and, for `noise_resnet`, noise masks; float32 (float64 stays float64, for verification).
        config: `config.model`.
        shapes: `variable_shapes` of the network.

    Returns:
        Variables of numpy arrays, and the number of training steps behind the batch statistics (None where the
        state_dict does not count them).

    Raises:
        InputError: names the first key that is missing, superfluous, of a wrong shape or dtype, or that differs from
            another name of the same tensor; says so where noise masks are lost.
    """
    check_supported(config)
    table = TABLES[config.name](config)
    remaining = {**tensors.state_dict, **tensors.noise_masks}
    if _needs_noise(shapes) and not tensors.noise_masks:
        raise InputError(
            'the noise masks of this network are lost: PyTorch keeps those of noiseresnet out of the state_dict, so '
            'without a file of masks its outputs cannot be reproduced'
        )
    counters = {remaining.pop(key).item() for key in list(remaining) if key.endswith('.num_batches_tracked')}
    if len(counters) > 1:
        raise InputError(f'num_batches_tracked differs between batch norms: {sorted(counters)}')

    def convert(path: tuple[str, ...], expected) -> np.ndarray:
        layout = _layout(path, len(expected.shape))
        owner, *aliases = _torch_names(path, table)
        tensor = _take(remaining, owner, _torch_shape(layout, expected.shape))
        for alias in aliases:
            if not np.array_equal(_take(remaining, alias, tensor.shape), tensor, equal_nan=True):
                raise InputError(f'{alias} differs from {owner}, of which it is another name')
        if path[-1] == 'masks' and len(expected.shape) == 3:
            tensor = _undo_level(owner, tensor, config.noise_level)
        return np.ascontiguousarray(layout.from_torch(tensor, expected.shape))

    variables = {
        name: traverse_util.unflatten_dict(
            {path: convert(path, leaf) for path, leaf in traverse_util.flatten_dict(collection).items()}
        )
        for name, collection in shapes.items()
    }
    if remaining:
        raise InputError(
            f'{min(remaining)} is not part of {config.name} as configured ({len(remaining)} superfluous keys)'
        )
    return variables, counters.pop() if counters else None


def _needs_noise(shapes: Mapping) -> bool:
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return any(path[-1].key == 'masks' and leaf.ndim == 3 for path, leaf in leaves)


def _take(tensors: Arrays, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key not in tensors:
        raise InputError(f'{key} is missing')
    tensor = tensors.pop(key)
    if tensor.shape != shape:
        raise InputError(f'{key} has shape {list(tensor.shape)}, the network needs {list(shape)}')
    if tensor.dtype not in (np.float32, np.float64):
        raise InputError(f'{key} is {tensor.dtype}; only float32 is converted without loss')
    return tensor


# --- constructor arguments --------------------------------------------------------------------------------------------


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
    fields = {'freeze_stem': authors_answer}
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
