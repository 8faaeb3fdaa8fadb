"""Rules that a config must follow. They are checked before anything is written, and all problems are reported at once.

The rules of `config.model` are declared by the layers and networks (`pnn_jax/options.py`). All others are here.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.data import SOURCES
from pnn_jax.data.augment import AUGMENTATIONS
from pnn_jax.data.images import RESIZES
from pnn_jax.data.streams import STREAMS
from pnn_jax.errors import InputError
from pnn_jax.models.perturb_resnet import AnswerStem
from pnn_jax.models.registry import LAYERS, MODELS, OPTIONS, conflicts, fields_read
from pnn_jax.nn.norm import SingleValueError
from pnn_jax.nn.perturbation import PerturbationLayer
from pnn_jax.optim import OPTIMIZERS, SCHEDULES, create_optimizer, learning_rate_schedule
from pnn_jax.options import FieldRecorder, Option

DTYPES = ('float32', 'bfloat16')
PLATFORMS = ('any', 'cpu', 'gpu', 'tpu')

RULES: Mapping[str, Option] = {
    'seed': Option(at_least=0),
    'mask_seed': Option(at_least=0),
    'num_seeds': Option(at_least=1),
    'seeds_at_once': Option(at_least=1),
    'num_epochs': Option(at_least=1),
    'batch_size': Option(at_least=1),
    'eval_batch_size': Option(at_least=1),
    'steps_per_dispatch': Option(at_least=0),
    'platform': Option(choices=PLATFORMS),
    'model.name': Option(choices=tuple(MODELS)),
    'model.dtype': Option(choices=DTYPES),
    **{f'model.{name}': field.metadata['option'] for name, field in OPTIONS.items()},
    'data.source': Option(choices=(*SOURCES, *STREAMS)),
    'data.augment': Option(choices=tuple(AUGMENTATIONS)),
    'data.resize': Option(choices=tuple(RESIZES)),
    'data.image_size': Option(at_least=0),
    'data.pad': Option(at_least=0),
    'data.train_examples': Option(at_least=0),
    'data.validation_examples': Option(at_least=0),
    'optimizer.name': Option(choices=tuple(OPTIMIZERS)),
    'optimizer.learning_rate': Option(above=0),
    'optimizer.momentum': Option(at_least=0, below=1),
    'optimizer.beta1': Option(at_least=0, below=1),
    'optimizer.beta2': Option(at_least=0, below=1),
    'optimizer.eps': Option(at_least=0),
    'optimizer.weight_decay': Option(at_least=0),
    'schedule.name': Option(choices=tuple(SCHEDULES)),
    'schedule.warmup_epochs': Option(at_least=0),
    'schedule.factor': Option(above=0),
    'checkpoint.every_steps': Option(at_least=0),
    'checkpoint.keep': Option(at_least=0),
    'log.every_steps': Option(at_least=1),
}


def validate_config(config) -> None:
    """Checks every field, and fields that must go together.

    Raises:
        InputError: one line per problem, with the field, its value and what is allowed.
    """
    if missing := [field for field in RULES if _value(config, field) is None]:
        raise InputError(
            '\n'.join(f'config.{field}: is missing; configs/default.py has its default' for field in missing)
        )
    problems = {field: _problem(config, field) for field in RULES}
    lines = [line for line in problems.values() if line]
    for field in ('seed', 'mask_seed'):
        if config[field] + config.num_seeds > 2**31:
            lines.append(
                f'config.{field}={config[field]}, config.num_seeds={config.num_seeds}: every seed must be below 2**31'
            )
    if not any(problems[f'model.{field}'] for field in ('name', 'layer', 'stem_layer')):
        lines += [f'config.model.{name}={config.model[name]!r}: {reason}' for name, reason in conflicts(config.model)]
    lines += [*_data_problems(config.data), *_schedule_problems(config)]
    if config.seeds_at_once > 1 and config.log.wandb:  # it takes one run a process
        lines.append(f'config.seeds_at_once={config.seeds_at_once}: must be 1 with config.log.wandb=True')
    if lines:
        raise InputError('\n'.join(lines))


def _value(config, field: str) -> Any:
    """The value of a field such as 'model.name'; None where the config has no such field."""
    for part in field.split('.'):
        config = config.get(part) if hasattr(config, 'get') else None
    return config


def _problem(config, field: str) -> str:
    value = _value(config, field)
    problem = RULES[field].problem(value)
    return f'config.{field}={value!r}: {problem}' if problem else ''


def _data_problems(data) -> list[str]:
    lines = []
    if 0 < data.pad < data.image_size:
        lines.append(f'config.data.pad={data.pad}: must be at least config.data.image_size={data.image_size}, or 0')
    both = f'config.data.mean={data.mean}, config.data.std={data.std}'
    if len(data.mean) != len(data.std) or not data.mean:
        lines.append(f'{both}: each must have one value per channel')
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (*data.mean, *data.std)):
        lines.append(f'{both}: every value must be a finite number')
    elif any(value <= 0 for value in data.std):
        lines.append(f'config.data.std={data.std}: every value must be above 0')
    return lines


def _schedule_problems(config) -> list[str]:
    lines, schedule = [], config.schedule
    milestones = list(schedule.milestones)
    if any(type(epoch) is not int or epoch < 1 for epoch in milestones) or milestones != sorted(set(milestones)):
        lines.append(
            f'config.schedule.milestones={schedule.milestones}: must be epochs in increasing order, each 1 or more'
        )
    numbers = (schedule.warmup_epochs, config.num_epochs)
    if all(isinstance(number, int | float) for number in numbers) and 0 < config.num_epochs <= schedule.warmup_epochs:
        lines.append(
            f'config.schedule.warmup_epochs={schedule.warmup_epochs}: must be below '
            f'config.num_epochs={config.num_epochs}'
        )
    return lines


def check_fits_data(config, image_shape: tuple[int, ...]) -> None:
    """Checks a valid config against images of shape [h, w, c].

    Raises:
        InputError: one line per field that does not fit the number of channels.
    """
    lines = []
    channels = image_shape[-1]
    model, entry = config.model, MODELS[config.model.name]
    if len(config.data.mean) != channels:
        lines.append(
            f'config.data.mean={config.data.mean}: needs one value per channel; the images have {channels} channel(s)'
        )
    stem_is_grouped = (
        model.num_masks > 1
        and 'stem_layer' in entry.fields
        and issubclass(LAYERS[model.stem_layer], PerturbationLayer)
        and AnswerStem not in entry.parts  # has its own numbers of masks and of filters
    )
    if stem_is_grouped and model.num_filters % channels:
        lines.append(
            f'config.model.num_filters={model.num_filters}: with num_masks={model.num_masks} in the first layer it '
            f'must be a multiple of the {channels} image channels'
        )
    if lines:
        raise InputError('\n'.join(lines))


def check_batch_norms(model: nn.Module, image_shape: tuple[int, ...], *, batch_size: int, num_train: int) -> None:
    """Checks that no batch norm sees a single value per channel in training, of which there is no variance.

    That takes a batch of one image and a map of one pixel (or a linear layer), so only batches of one are traced.
    Nothing is computed.

    Args:
        model: as `create_model` makes it.
        image_shape: [h, w, c].
        batch_size: images per training step, over all devices.
        num_train: training images per epoch; the last batch of an epoch has what is left.

    Raises:
        InputError: names config.batch_size, the size of the batch, the batch norm, and what to do.
    """
    last = num_train % batch_size
    if 1 not in (batch_size, last):
        return
    key = jax.random.key(0)
    image = jnp.zeros((1, *image_shape), jnp.float32)
    keys = dict.fromkeys(('params', 'noise_masks', 'dropout', 'activation', 'redraw'), key)

    def train_on_one_image():
        variables = model.init(keys, image)
        return model.apply(variables, image, train=True, rngs=keys, mutable=['batch_stats'])

    try:
        jax.eval_shape(train_on_one_image)
    except SingleValueError as error:
        if num_train == 1:
            raise InputError(f'config.data.train_examples: there is 1 training image, and {error}') from None
        if batch_size == 1:
            raise InputError(f'config.batch_size=1: {error}; use 2 or more') from None
        larger = next(size for size in itertools.count(batch_size + 1) if num_train % size != 1)
        raise InputError(
            f'config.batch_size={batch_size}: the last batch of an epoch has 1 of the {num_train} training images, and '
            f'{error}; use another batch size, for example {larger}, or another config.data.train_examples'
        ) from None


def check_platform(platform: str) -> None:
    """Checks that jax runs on `platform`, a name in `PLATFORMS`.

    Raises:
        InputError: jax runs on something else, or cannot start.
    """
    try:
        found = jax.default_backend()
    except (AssertionError, RuntimeError) as error:
        raise InputError(f'jax cannot start on the requested platform: {error or "no such device"}') from None
    if platform not in ('any', found):
        raise InputError(
            f'config.platform={platform!r}: jax found only {found!r} (is the extra cuda or tpu installed?)'
        )


def check_fits_memory(config, variables) -> None:
    """Raises InputError where a network with these variables (or their shapes) is larger than this machine's memory."""
    needed = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(variables))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > memory:
        raise InputError(
            f'config.model.num_filters={config.model.num_filters}, config.model.num_masks={config.model.num_masks}: '
            f'the network takes {needed / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}'
        )


def ineffective_overrides(config, overridden: Sequence[str]) -> list[str]:
    """A line for every field of a valid config that is in `overridden` and that nothing reads.

    Args:
        overridden: whole names of fields, such as 'model.num_masks'. Only the sections `model`, `optimizer` and
            `schedule` are looked at.
    """
    model = config.model
    read = {f'model.{name}' for name in fields_read(model) | {'name', 'dtype'}}
    kinds = [f'{name}={model[name]!r}' for name in ('layer', 'stem_layer') if f'model.{name}' in read]
    readers = {
        'model': f'{model.name} with {", ".join(kinds)}' if kinds else model.name,
        'optimizer': f'optimizer.name={config.optimizer.name!r}',
        'schedule': f'schedule.name={config.schedule.name!r}',
    }
    optimizer, schedule = FieldRecorder(config.optimizer), FieldRecorder(config.schedule)
    create_optimizer(optimizer, learning_rate_schedule(schedule, optimizer.learning_rate, 1, config.num_epochs))
    read |= {f'optimizer.{name}' for name in optimizer.fields_read}
    read |= {f'schedule.{name}' for name in schedule.fields_read}
    lines = []
    for field in overridden:
        section, _, name = field.partition('.')
        if section in readers and field not in read:
            value = config[section][name]
            lines.append(f'config.{field}={value!r} has no effect: {readers[section]} does not read it')
    return lines
