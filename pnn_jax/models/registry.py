"""The networks by name. All other code builds them with `create_model(config.model, num_classes)`.

To add a network, write a function that builds it from `config.model`, and add an entry to `MODELS`.

To add an option to a layer, declare it there with `option(...)` and add the field to `configs/default.py`. The builders
below pass every option of a layer by its name.

Which fields a network reads is observed, not listed: the network is built from a config that records every access. A
run warns where a user sets any other field, because a setting without effect would spoil an ablation unnoticed.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax

from pnn_jax.errors import InputError
from pnn_jax.models.noise_resnet import NoiseBlock, NoiseBottleneck, NoiseLayer
from pnn_jax.models.perturb_resnet import AnswerStem, PerturbationBlock, PooledStem
from pnn_jax.models.resnet import BasicBlock, ConvNormStem, ModuleDef, ResNet
from pnn_jax.models.small import SmallNet
from pnn_jax.nn.conv import CONV_PADDING, ConvLayer
from pnn_jax.nn.perturbation import NormalizedPerturbationLayer, PerturbationLayer, PerturbationUnit
from pnn_jax.nn.random_filters import RandomFilterLayer, ShiftLayer
from pnn_jax.options import Conflict, FieldRecorder, Option, conflicts_of, option, options_of

# The kinds of layer: values of config.model.layer and config.model.stem_layer.
LAYERS: Mapping[str, type[nn.Module]] = {
    'perturbation': PerturbationLayer,
    'random_filters': RandomFilterLayer,
    'shift': ShiftLayer,
    'conv': ConvLayer,
}


# --- builders ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Fields of `config.model` that the builders here read themselves; all others are options of a layer or block."""

    num_filters: int = option(128, at_least=1, pytorch='nfilters')
    layer: str = option('perturbation', choices=LAYERS, pytorch=('perturbation', 'conv'))
    stem_layer: str = option('perturbation', choices=LAYERS, pytorch=('perturbation', 'conv'))
    stem_kernel_size: int = option(3, choices=CONV_PADDING, pytorch=tuple(CONV_PADDING))
    stem_noise_scale: float = option(1.0, at_least=0, pytorch='scale_noise')
    freeze_stem: bool = option(False, pytorch=(False, True))


def configured(cls: type[nn.Module], config, **changes) -> ModuleDef:
    """`cls` with its options as `config.model` sets them, except for `changes`."""
    return partial(cls, **{name: getattr(config, name) for name in options_of(cls) if name not in changes}, **changes)


def inner_layer(config) -> ModuleDef:
    """Makes every layer but the first one from (features, name)."""
    if config.layer == 'conv':
        return configured(ConvLayer, config)
    layer = configured(LAYERS[config.layer], config)
    return configured(PerturbationUnit, config, layer=layer, activate_after_noise=True)


def stem_layer(config) -> ModuleDef:
    """Makes the first layer from (features, name). It has its own kind and level, and `activate_after_noise`."""
    if config.stem_layer == 'conv':
        return configured(ConvLayer, config, kernel_size=config.stem_kernel_size)
    kind = LAYERS[config.stem_layer]
    has_level = 'noise_level' in options_of(kind)
    level = {'noise_level': config.noise_level * config.stem_noise_scale} if has_level else {}
    return configured(PerturbationUnit, config, layer=configured(kind, config, **level))


def stem_is_pooled(config) -> bool:
    """Whether a pooling follows the first layer."""
    return config.stem_layer == 'conv' and config.stem_kernel_size == 7


def _resnet18(config, num_classes: int) -> nn.Module:
    stem = partial(ConvNormStem, features=config.num_filters)
    return ResNet(stem, BasicBlock, config.num_filters, num_classes)


def _perturb_resnet18(config, num_classes: int) -> nn.Module:
    first = partial(stem_layer(config), features=config.num_filters)
    stem = partial(PooledStem, layer=first, pooled=stem_is_pooled(config))
    block = configured(PerturbationBlock, config, layer=inner_layer(config))
    return ResNet(stem, block, config.num_filters, num_classes)


def _answer_resnet18(config, num_classes: int) -> nn.Module:
    """The first layer has three times the filters, five times as many masks and 20 times the level (jfu models.py)."""
    width = 3 * config.num_filters
    first: ModuleDef
    if config.stem_layer == 'conv':
        first = partial(ConvLayer, features=width, kernel_size=config.stem_kernel_size, activation='sigmoid')
    else:
        layer = configured(
            NormalizedPerturbationLayer,
            config,
            num_masks=5 * config.num_filters,
            noise_level=20 * config.noise_level * config.stem_noise_scale,
        )
        first = configured(
            PerturbationUnit, config, layer=layer, features=width, activation='sigmoid', activate_after_noise=True
        )
    stem = partial(
        AnswerStem,
        layer=first,
        features=config.num_filters,
        pooled=stem_is_pooled(config),
        activation=config.activation,
    )
    block = configured(PerturbationBlock, config, layer=inner_layer(config))
    return ResNet(stem, block, config.num_filters, num_classes)


def _noise_resnet(block: type[nn.Module], stage_sizes: tuple[int, ...], config, num_classes: int) -> nn.Module:
    stem = partial(
        ConvNormStem,
        features=config.num_filters,
        kernel_size=config.stem_kernel_size,
        frozen=config.freeze_stem,
    )
    noise_layer = configured(NoiseLayer, config)
    return ResNet(stem, partial(block, noise_layer=noise_layer), config.num_filters, num_classes, stage_sizes)


def _small(layers_per_group: tuple[int, ...], hidden_features: int, config, num_classes: int) -> nn.Module:
    make = configured(
        SmallNet,
        config,
        first_layer=stem_layer(config),
        layer=inner_layer(config),
        num_filters=config.num_filters,
        num_classes=num_classes,
        layers_per_group=layers_per_group,
        hidden_features=hidden_features,
    )
    return make()


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A network.

    Attributes:
        build: (config.model, num_classes) -> module.
        parts: the classes, besides layers, whose options and conflicts the network has.
    """

    build: Callable[..., nn.Module]
    parts: tuple[type, ...] = ()

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        """Every field of `config.model` that the network reads for some choice of its layers."""
        defaults = {name: field.default for name, field in OPTIONS.items()}
        choices = [{'layer': layer, 'stem_layer': stem} for layer, stem in itertools.product(LAYERS, LAYERS)]
        return frozenset().union(*(_fields_read(self, SimpleNamespace(**defaults | choice)) for choice in choices))


MODELS: Mapping[str, ModelEntry] = {
    'resnet18': ModelEntry(_resnet18),
    'perturb_resnet18': ModelEntry(_perturb_resnet18, (PerturbationBlock,)),
    'answer_resnet18': ModelEntry(_answer_resnet18, (PerturbationBlock, AnswerStem)),
    'noise_resnet18': ModelEntry(partial(_noise_resnet, NoiseBlock, (2, 2, 2, 2)), (ConvNormStem, NoiseLayer)),
    'noise_resnet34': ModelEntry(partial(_noise_resnet, NoiseBlock, (3, 4, 6, 3)), (ConvNormStem, NoiseLayer)),
    'noise_resnet50': ModelEntry(partial(_noise_resnet, NoiseBottleneck, (3, 4, 6, 3)), (ConvNormStem, NoiseLayer)),
    'noise_resnet101': ModelEntry(partial(_noise_resnet, NoiseBottleneck, (3, 4, 23, 3)), (ConvNormStem, NoiseLayer)),
    'noise_resnet152': ModelEntry(partial(_noise_resnet, NoiseBottleneck, (3, 8, 36, 3)), (ConvNormStem, NoiseLayer)),
    'lenet': ModelEntry(partial(_small, (1, 1, 1), 128), (SmallNet,)),
    'cifarnet': ModelEntry(partial(_small, (2, 2, 2), 256), (SmallNet,)),
}


def _all_options() -> dict[str, dataclasses.Field]:
    parts = [part for entry in MODELS.values() for part in entry.parts]
    classes: list[type] = [NetworkOptions, *LAYERS.values(), PerturbationUnit, *parts]
    return {name: field for cls in classes for name, field in options_of(cls).items()}


# Every field of `config.model` but `name` and `dtype`, as a dataclass field with its default and, in its metadata, its
# rules. A name that several classes use has the same rules in all of them.
OPTIONS: Mapping[str, dataclasses.Field] = _all_options()


def create_model(config, num_classes: int) -> nn.Module:
    """Builds the network of a `config.model`. Call it as model.apply(variables, images [b, h, w, c], train=False).

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(name='resnet18', num_filters=8)
    >>> create_model(config, num_classes=10).num_filters
    8

    Args:
        config: the section `model` of a config (`configs/default.py` explains every field), or any object with the
            fields that the network reads. `OPTIONS` has their defaults.
        num_classes: number of logits.

    Raises:
        InputError: one line for the name, or for each option that is not allowed.
    """
    check_model(config)
    return MODELS[config.name].build(config, num_classes)


def check_model(config) -> None:
    """Raises InputError as `create_model`."""
    if config.name not in MODELS:
        raise InputError(f'config.model.name={config.name!r}: must be one of {", ".join(MODELS)}')
    values = SimpleNamespace(**{name: getattr(config, name, field.default) for name, field in OPTIONS.items()})
    values.name = config.name
    rules: dict[str, Option] = {name: field.metadata['option'] for name, field in OPTIONS.items()}
    kinds = sorted({'layer', 'stem_layer'} & MODELS[config.name].fields)
    problems: list[Conflict] = [(name, rules[name].problem(getattr(values, name))) for name in kinds]
    if not any(problem for _, problem in problems):  # else it is not known what else is read
        problems = [(name, rules[name].problem(getattr(values, name))) for name in sorted(fields_read(values))]
        problems += conflicts(values)
    if lines := [f'config.model.{name}={getattr(values, name)!r}: {why}' for name, why in problems if why]:
        raise InputError('\n'.join(lines))


# --- facts about a config ---------------------------------------------------------------------------------------------


def _fields_read(entry: ModelEntry, config) -> set[str]:
    recorder = FieldRecorder(config)
    entry.build(recorder, 2)
    return recorder.fields_read


def fields_read(config) -> set[str]:
    """The fields of a valid `config.model` that its network, with its choice of layers, reads (besides `name`)."""
    return _fields_read(MODELS[config.name], config)


def conflicts(config) -> Iterator[Conflict]:
    """Options of `config.model` that do not go together in its network. Its `name` and kinds of layer must be known."""
    entry = MODELS[config.name]
    layers = [LAYERS[getattr(config, name)] for name in ('layer', 'stem_layer') if name in entry.fields]
    values = {name: getattr(config, name) for name in ('name', *OPTIONS)}
    found = itertools.chain.from_iterable(conflicts_of(cls, values) for cls in (*layers, *entry.parts))
    yield from dict.fromkeys(found)  # both kinds of layer may find the same


def pytorch_problems(config) -> list[str]:
    """A line for every option that the network of `config.model` reads and that PyTorch has no counterpart for."""
    problems = []
    for name in sorted(fields_read(config)):
        rules: Option = OPTIONS[name].metadata['option']
        if isinstance(rules.pytorch, str):
            allowed = rules.pytorch_choices
        else:
            allowed = (OPTIONS[name].default,) if rules.pytorch is None else rules.pytorch
        if allowed and getattr(config, name) not in allowed:
            choices = ', '.join(map(str, allowed))
            problems.append(
                f'config.model.{name}={getattr(config, name)!r} has no PyTorch counterpart; allowed: {choices}'
            )
    return problems


def count_variables(variables) -> dict[str, int]:
    """Numbers of values in a network's variables, or in their shapes.

    Returns:
        `trained` (what the optimizer updates), `masks` (fixed or trained) and `frozen` (the kernel of a frozen stem).
        Trained masks count in both of the first two, as in the audit's table.
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
