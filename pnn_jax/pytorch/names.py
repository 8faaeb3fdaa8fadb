"""What tensors and modules are called in PyTorch: one table for each family of networks.

A table maps a name of ours to (its names in PyTorch, the table of what is inside it). PyTorch lists a tensor that two
modules share under the name of each; all of them are in the table, the owner first. A name that is in no table is a
leaf and is renamed by `LEAVES`.

`mk` stands for michaelklachko/pnn.pytorch@08865db, `jf` for juefeix/pnn.pytorch@12fdc44 and `jfu` for
juefeix/pnn.pytorch.update@b9513ff.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pnn_jax.errors import InputError
from pnn_jax.models.registry import fields_read, pytorch_problems, stem_is_pooled

LEAVES = {
    'kernel': 'weight',
    'bias': 'bias',
    'scale': 'weight',
    'slope': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
    'masks': 'noise',
}
# PyTorch's modules -> values of config.model.activation and config.model.pooling.
ACTIVATION_KINDS = {
    'ReLU': 'relu',
    'LeakyReLU': 'lrelu',
    'PReLU': 'prelu',
    'RReLU': 'rrelu',
    'ELU': 'elu',
    'SELU': 'selu',
    'Tanh': 'tanh',
    'Sigmoid': 'sigmoid',
}
POOLING_KINDS = {'MaxPool2d': 'max', 'AvgPool2d': 'avg'}


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


def torch_names(path: tuple[str, ...], table: Mapping) -> list[str]:
    """All names in PyTorch of one of our leaves; the first is the one in `named_parameters`.

    Args:
        path: of the leaf in a collection: ('stem', 'layer', 'norm', 'scale').
        table: TABLES[config.name](config).
    """
    names = ['']
    for part in path:
        theirs, table = table.get(part) or _as(LEAVES[part])
        names = ['.'.join(filter(None, (name, their))) for name in names for their in theirs]
    return names


def check_supported(config) -> None:
    """Raises InputError where the network or an option of `config.model` does not exist in the PyTorch repositories."""
    if config.name not in TABLES:
        raise InputError(f'config.model.name={config.name!r} has no PyTorch counterpart; allowed: {", ".join(TABLES)}')
    problems = pytorch_problems(config)
    for field, kinds in (('activation', ACTIVATION_KINDS), ('pooling', POOLING_KINDS)):
        if field in fields_read(config) and (value := getattr(config, field)) not in kinds.values():
            allowed = ', '.join(kinds.values())
            problems.append(f'config.model.{field}={value!r} has no PyTorch counterpart; allowed: {allowed}')
    if config.name.startswith('noise_resnet') and config.trainable_masks:  # mk models.py:348-351
        problems.append('config.model.trainable_masks=True: the noise of noise_resnet is never trained in PyTorch')
    if problems:
        raise InputError('\n'.join(problems))
