"""All rules that a config must follow, checked before anything is written; every problem is reported at once."""

import difflib
import math
import os
from collections.abc import Iterable, Sequence

import jax

from pnn_jax.data import SOURCES
from pnn_jax.data.augment import AUGMENTATIONS
from pnn_jax.data.images import RESIZES
from pnn_jax.data.streams import STREAMS
from pnn_jax.errors import InputError
from pnn_jax.models.registry import LAYERS, MODELS, PERTURBING_LAYERS
from pnn_jax.nn.activations import ACTIVATIONS
from pnn_jax.nn.layers import CONV_PADDING, POOLINGS
from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS
from pnn_jax.optim import OPTIMIZERS

DTYPES = ('float32', 'bfloat16')
PLATFORMS = ('any', 'cpu', 'gpu', 'tpu')

# Fields that mean something only where noise masks (or filters in their place) are.
_MASK_FIELDS = frozenset(
    'num_masks share_masks trainable_masks redraw_masks mix_channels noise_level noise_type '
    'stem_noise_scale activate_after_noise'.split()
)


class _Problems(list):
    """Collects one line a problem: the field, its value, what is allowed."""

    def choice(self, field: str, value: str, allowed: Iterable[str]) -> None:
        allowed = list(allowed)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f' (did you mean {near[0]!r}?)' if near else ''
            self.append(f'config.{field}={value!r}: must be one of {", ".join(allowed)}{hint}')

    def at_least(self, field: str, value: float, minimum: float) -> None:
        if not (math.isfinite(value) and value >= minimum):
            self.append(f'config.{field}={value}: must be finite and at least {minimum}')

    def between(self, field: str, value: float, low: float, high: float) -> None:
        if not low <= value < high:
            self.append(f'config.{field}={value}: must be at least {low} and below {high}')


def validate_config(config) -> None:
    """Raises InputError with a line for every field whose value is not allowed."""
    problems = _Problems()
    for field, minimum in {
        'seed': 0,
        'mask_seed': 0,
        'num_seeds': 1,
        'num_epochs': 1,
        'batch_size': 1,
        'eval_batch_size': 1,
        'steps_per_dispatch': 0,
    }.items():
        problems.at_least(field, config[field], minimum)
    for field in ('seed', 'mask_seed'):
        if config[field] + config.num_seeds > 2**31:
            problems.append(
                f'config.{field}={config[field]}, config.num_seeds={config.num_seeds}: every seed must be below 2**31'
            )
    problems.choice('platform', config.platform, PLATFORMS)
    problems.at_least('checkpoint.every_steps', config.checkpoint.every_steps, 0)
    problems.at_least('checkpoint.keep', config.checkpoint.keep, 0)
    problems.at_least('log.every_steps', config.log.every_steps, 1)
    _check_model(config.model, problems)
    _check_data(config.data, problems)
    _check_optimizer(config, problems)
    if problems:
        raise InputError('\n'.join(problems))


def _check_model(model, problems: _Problems) -> None:
    problems.choice('model.name', model.name, MODELS)
    problems.choice('model.layer', model.layer, LAYERS)
    problems.choice('model.stem_layer', model.stem_layer, LAYERS)
    problems.choice('model.noise_type', model.noise_type, NOISE_DISTRIBUTIONS)
    problems.choice('model.activation', model.activation, ACTIVATIONS)
    problems.choice('model.pooling', model.pooling, POOLINGS)
    problems.choice('model.dtype', model.dtype, DTYPES)
    for field in ('kernel_size', 'stem_kernel_size'):
        if model[field] not in CONV_PADDING:
            problems.append(f'config.model.{field}={model[field]}: must be one of {", ".join(map(str, CONV_PADDING))}')
    problems.at_least('model.num_filters', model.num_filters, 1)
    problems.at_least('model.num_masks', model.num_masks, 1)
    problems.at_least('model.noise_level', model.noise_level, 0)
    problems.at_least('model.stem_noise_scale', model.stem_noise_scale, 0)
    problems.between('model.dropout_rate', model.dropout_rate, 0, 1)
    if model.redraw_masks and model.trainable_masks:
        problems.append('config.model.redraw_masks=True: masks that are trained cannot be drawn anew at every step')
    if model.redraw_masks and 'random_filters' in (model.layer, model.stem_layer):
        problems.append("config.model.redraw_masks=True: only for noise masks, not with layers of 'random_filters'")
    if model.name in ('perturb_resnet18', 'answer_resnet18') and model.layer == 'conv' and model.kernel_size in (5, 7):
        problems.append(
            f'config.model.kernel_size={model.kernel_size}: residual blocks need 1 or 3, '
            'because 5 shrinks a map by two pixels and 7 halves it'
        )
    if model.name == 'answer_resnet18' and model.stem_layer == 'random_filters':
        problems.append(f"config.model.stem_layer='random_filters': {model.name} takes 'perturbation' or 'conv'")
    if model.name.startswith('noise_resnet') and model.stem_kernel_size not in (3, 7):
        problems.append(f'config.model.stem_kernel_size={model.stem_kernel_size}: {model.name} takes 3 or 7')


def _check_data(data, problems: _Problems) -> None:
    problems.choice('data.source', data.source, (*SOURCES, *STREAMS))
    problems.choice('data.augment', data.augment, AUGMENTATIONS)
    problems.choice('data.resize', data.resize, RESIZES)
    for field in ('image_size', 'pad', 'train_examples', 'validation_examples'):
        problems.at_least(f'data.{field}', data[field], 0)
    if 0 < data.pad < data.image_size:
        problems.append(f'config.data.pad={data.pad}: must be at least config.data.image_size={data.image_size}, or 0')
    if len(data.mean) != len(data.std) or not data.mean:
        problems.append(f'config.data.mean={data.mean}, config.data.std={data.std}: one value per channel in each')
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (*data.mean, *data.std)):
        problems.append(
            f'config.data.mean={data.mean}, config.data.std={data.std}: every value must be a finite number'
        )
    elif any(value <= 0 for value in data.std):
        problems.append(f'config.data.std={data.std}: every value must be above 0')


def _check_optimizer(config, problems: _Problems) -> None:
    optimizer, schedule = config.optimizer, config.schedule
    problems.choice('optimizer.name', optimizer.name, OPTIMIZERS)
    if not (math.isfinite(optimizer.learning_rate) and optimizer.learning_rate > 0):
        problems.append(f'config.optimizer.learning_rate={optimizer.learning_rate}: must be finite and above 0')
    for field in ('momentum', 'beta1', 'beta2'):
        problems.between(f'optimizer.{field}', optimizer[field], 0, 1)
    problems.at_least('optimizer.eps', optimizer.eps, 0)
    problems.at_least('optimizer.weight_decay', optimizer.weight_decay, 0)
    milestones = list(schedule.milestones)
    if any(type(epoch) is not int or epoch < 1 for epoch in milestones) or milestones != sorted(set(milestones)):
        problems.append(f'config.schedule.milestones={schedule.milestones}: must be rising epochs, 1 or more')
    if not (math.isfinite(schedule.factor) and schedule.factor > 0):
        problems.append(f'config.schedule.factor={schedule.factor}: must be finite and above 0')


def check_fits_data(config, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where a valid config and images of shape [h, w, c] do not go together."""
    problems = _Problems()
    channels = image_shape[-1]
    model = config.model
    if len(config.data.mean) != channels:
        problems.append(f'config.data.mean={config.data.mean}: the images have {channels} channel(s)')
    stem_is_grouped = (
        model.num_masks > 1
        and model.stem_layer in PERTURBING_LAYERS
        and model.name in ('perturb_resnet18', 'lenet', 'cifarnet')
    )
    if stem_is_grouped and model.num_filters % channels:
        problems.append(
            f'config.model.num_filters={model.num_filters}: with num_masks={model.num_masks} in the first layer it '
            f'must be a multiple of the {channels} image channels'
        )
    if problems:
        raise InputError('\n'.join(problems))


def check_platform(platform: str) -> None:
    """Raises InputError where `platform` was asked for and jax runs on something else."""
    try:
        found = jax.default_backend()
    except (AssertionError, RuntimeError) as error:
        raise InputError(f'jax cannot start on the platform that was asked for: {error or "no such device"}') from None
    if platform not in ('any', found):
        raise InputError(f'config.platform={platform!r}: jax found only {found!r} (is the right extra installed?)')


def check_builds(config, variables) -> None:
    """Raises InputError where a network with these variables (or their shapes) is larger than this machine's memory."""
    needed = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(variables))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > memory:
        raise InputError(
            f'config.model.num_filters={config.model.num_filters}, config.model.num_masks={config.model.num_masks}: '
            f'the network takes {needed / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}'
        )


def ineffective_overrides(model, overridden: Sequence[str]) -> list[str]:
    """A line for every overridden field of config.model that the chosen network does not read."""
    fields = MODELS[model.name].fields
    lines = []
    for name in overridden:
        reason = ''
        if name not in fields | {'name', 'dtype'}:
            reason = f'{model.name} does not read it'
        elif 'layer' in fields:
            kinds = (model.layer, model.stem_layer)
            if name in _MASK_FIELDS and not any(kind in PERTURBING_LAYERS for kind in kinds):
                reason = 'no layer perturbs its input'
            elif name == 'kernel_size' and model.layer != 'conv':
                reason = f"config.model.layer is {model.layer!r}, not 'conv'"
            elif name == 'stem_kernel_size' and model.stem_layer != 'conv':
                reason = f"config.model.stem_layer is {model.stem_layer!r}, not 'conv'"
        if reason:
            lines.append(f'config.model.{name}={model[name]} has no effect: {reason}')
    return lines
