"""name -> network. `create_model(config.model, num_classes)` is the only constructor that the rest of the project uses.

To add a network, write its builder from a model config and add a line to `MODELS`, naming the fields it reads: a run
says so where a user sets any other, because a setting that silently does nothing is how ablations go wrong.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax

from pnn_jax.models.resnet import (
    AnswerStem,
    BasicBlock,
    ConvNormStem,
    ModuleDef,
    NoiseBlock,
    NoiseBottleneck,
    NoiseLayer,
    PerturbationBlock,
    PooledStem,
    ResNet,
)
from pnn_jax.models.small import SmallNet
from pnn_jax.nn.layers import ConvLayer, NormalizedPerturbationLayer, PerturbationLayer, RandomFilterLayer
from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS

PERTURBING_LAYERS: Mapping[str, type[PerturbationLayer]] = {
    'perturbation': PerturbationLayer,
    'random_filters': RandomFilterLayer,
}
LAYERS = (*PERTURBING_LAYERS, 'conv')


def _perturbing(module: type[PerturbationLayer], config, **changes) -> ModuleDef:
    return partial(
        module,
        **{
            'num_masks': config.num_masks,
            'share_masks': config.share_masks,
            'trainable_masks': config.trainable_masks,
            'redraw_masks': config.redraw_masks,
            'mix_channels': config.mix_channels,
            'noise_level': config.noise_level,
            'noise_type': config.noise_type,
            'activation': config.activation,
            **changes,
        },
    )


def inner_layer(config) -> ModuleDef:
    """The layer of everything but the stem: makes a module from (features, name)."""
    if config.layer == 'conv':
        return partial(ConvLayer, kernel_size=config.kernel_size, activation=config.activation)
    return _perturbing(PERTURBING_LAYERS[config.layer], config)


def stem_layer(config) -> ModuleDef:
    """The first layer: its own kind, noise level and, right after the noise, possibly no activation."""
    if config.stem_layer == 'conv':
        return partial(ConvLayer, kernel_size=config.stem_kernel_size, activation=config.activation)
    return _perturbing(
        PERTURBING_LAYERS[config.stem_layer],
        config,
        noise_level=config.noise_level * config.stem_noise_scale,
        activate_after_noise=config.activate_after_noise,
    )


def stem_is_pooled(config) -> bool:
    return config.stem_layer == 'conv' and config.stem_kernel_size == 7


def _resnet18(config, num_classes: int) -> nn.Module:
    stem = partial(ConvNormStem, features=config.num_filters)
    return ResNet(stem, BasicBlock, config.num_filters, num_classes)


def _perturb_resnet18(config, num_classes: int) -> nn.Module:
    first = partial(stem_layer(config), features=config.num_filters)
    stem = partial(PooledStem, layer=first, pooled=stem_is_pooled(config))
    block = partial(PerturbationBlock, layer=inner_layer(config), pooling=config.pooling)
    return ResNet(stem, block, config.num_filters, num_classes)


def _answer_resnet18(config, num_classes: int) -> nn.Module:
    width = 3 * config.num_filters
    if config.stem_layer == 'conv':
        first = partial(ConvLayer, features=width, kernel_size=config.stem_kernel_size, activation='sigmoid')
    else:
        first = _perturbing(
            NormalizedPerturbationLayer,
            config,
            features=width,
            num_masks=5 * config.num_filters,
            noise_level=20 * config.noise_level * config.stem_noise_scale,
            activation='sigmoid',
        )
    stem = partial(
        AnswerStem,
        layer=first,
        features=config.num_filters,
        pooled=stem_is_pooled(config),
        activation=config.activation,
    )
    block = partial(PerturbationBlock, layer=inner_layer(config), pooling=config.pooling)
    return ResNet(stem, block, config.num_filters, num_classes)


def _noise_resnet(block: type[nn.Module], stage_sizes: tuple[int, ...], config, num_classes: int) -> nn.Module:
    stem = partial(
        ConvNormStem,
        features=config.num_filters,
        kernel_size=config.stem_kernel_size,
        frozen=config.freeze_stem,
    )
    noise_layer = partial(
        NoiseLayer,
        noise_level=config.noise_level,
        trainable_masks=config.trainable_masks,
        sample=NOISE_DISTRIBUTIONS[config.noise_type],
    )
    return ResNet(stem, partial(block, noise_layer=noise_layer), config.num_filters, num_classes, stage_sizes)


def _small(layers_per_group: tuple[int, ...], hidden_features: int, config, num_classes: int) -> nn.Module:
    return SmallNet(
        first_layer=stem_layer(config),
        layer=inner_layer(config),
        num_filters=config.num_filters,
        num_classes=num_classes,
        layers_per_group=layers_per_group,
        hidden_features=hidden_features,
        pooling=config.pooling,
        activation=config.activation,
        dropout_rate=config.dropout_rate,
    )


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A network's builder (config.model, num_classes) -> module, and the fields of config.model that it reads."""

    build: Callable[..., nn.Module]
    fields: frozenset[str]


_LAYER_FIELDS = frozenset(
    'num_filters num_masks share_masks trainable_masks redraw_masks mix_channels noise_level noise_type '
    'stem_noise_scale activation layer kernel_size stem_layer stem_kernel_size'.split()
)
_NOISE_FIELDS = frozenset('num_filters trainable_masks noise_level noise_type stem_kernel_size freeze_stem'.split())

MODELS: Mapping[str, ModelEntry] = {
    'resnet18': ModelEntry(_resnet18, frozenset({'num_filters'})),
    'perturb_resnet18': ModelEntry(_perturb_resnet18, _LAYER_FIELDS | {'pooling', 'activate_after_noise'}),
    'answer_resnet18': ModelEntry(_answer_resnet18, _LAYER_FIELDS | {'pooling'}),
    'noise_resnet18': ModelEntry(partial(_noise_resnet, NoiseBlock, (2, 2, 2, 2)), _NOISE_FIELDS),
    'noise_resnet34': ModelEntry(partial(_noise_resnet, NoiseBlock, (3, 4, 6, 3)), _NOISE_FIELDS),
    'noise_resnet50': ModelEntry(partial(_noise_resnet, NoiseBottleneck, (3, 4, 6, 3)), _NOISE_FIELDS),
    'noise_resnet101': ModelEntry(partial(_noise_resnet, NoiseBottleneck, (3, 4, 23, 3)), _NOISE_FIELDS),
    'noise_resnet152': ModelEntry(partial(_noise_resnet, NoiseBottleneck, (3, 8, 36, 3)), _NOISE_FIELDS),
    'lenet': ModelEntry(
        partial(_small, (1, 1, 1), 128), _LAYER_FIELDS | {'pooling', 'activate_after_noise', 'dropout_rate'}
    ),
    'cifarnet': ModelEntry(
        partial(_small, (2, 2, 2), 256), _LAYER_FIELDS | {'pooling', 'activate_after_noise', 'dropout_rate'}
    ),
}


def create_model(config, num_classes: int) -> nn.Module:
    """The network of a validated `config.model`. Call it as model.apply(variables, images [b, h, w, c], train)."""
    return MODELS[config.name].build(config, num_classes)


def count_variables(variables) -> dict[str, int]:
    """Numbers of values: `trained` (what the optimizer updates), `masks` (fixed or trained), `frozen` (a frozen stem).

    Works on shapes alone. Trained masks count in both of the first two, as in the audit's table.
    """
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    trained_masks = sum(
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params']) if path[-1].key == 'masks'
    )
    return {
        'trained': size(variables['params']),
        'masks': trained_masks + size(variables.get('noise_masks', {})),
        'frozen': size(variables.get('frozen', {})),
    }
