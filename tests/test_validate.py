"""Configs: every field has rules, and all broken ones are reported at once."""

import math

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from pnn_jax.errors import InputError
from pnn_jax.models import MODELS, create_model
from pnn_jax.models.registry import (
    LAYERS,
    OPTIONS,
    NetworkOptions,
    fields_read,
    inner_layer,
    pytorch_problems,
    stem_layer,
)
from pnn_jax.nn.perturbation import PerturbationLayer, PerturbationUnit
from pnn_jax.options import Option, options_of
from pnn_jax.pytorch.names import TABLES
from pnn_jax.validate import (
    RULES,
    check_batch_norms,
    check_fits_data,
    check_platform,
    ineffective_overrides,
    validate_config,
)


def config_with(**changes) -> ml_collections.ConfigDict:
    config = default.get_config()
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
    return config


def test_default_is_valid():
    validate_config(default.get_config())


@pytest.mark.parametrize(
    'field, value, allowed',
    [
        ('model__name', 'perturb_resnet81', "did you mean 'perturb_resnet18'"),
        ('model__activation', 'rellu', 'relu, lrelu'),
        ('model__noise_type', 'unifrom', 'uniform, normal, flat, ramp'),
        ('model__pooling', 'min', 'max, avg'),
        ('model__layer', 'perturb', "'perturbation'"),
        ('model__stem_kernel_size', 2, '1, 3, 5, 7'),
        ('model__num_masks', 0, 'at least 1'),
        ('model__dropout_rate', 1.0, 'below 1'),
        ('model__noise_level', math.nan, 'at least 0'),
        ('model__dtype', 'float16', 'bfloat16'),
        ('data__source', 'tdfs', "did you mean 'tfds'"),
        ('data__augment', 'cutout', 'crop_flip'),
        ('data__std', (0.0, 1.0, 1.0), 'above 0'),
        ('data__mean', (0.5,), 'one value per channel'),
        ('optimizer__name', 'adamm', "did you mean 'adam'"),
        ('optimizer__learning_rate', -1.0, 'above 0'),
        ('schedule__milestones', (5, 5), 'increasing order'),
        ('schedule__milestones', (True, 2), 'increasing order'),
        ('schedule__name', 'cosin', "did you mean 'cosine'"),
        ('schedule__warmup_epochs', -0.5, 'at least 0'),
        ('schedule__warmup_epochs', 150.0, 'must be below config.num_epochs=150'),
        ('batch_size', 0, 'at least 1'),
        ('num_epochs', -1, 'at least 1'),
        ('platform', 'npu', 'cpu, gpu, tpu'),
        ('log__every_steps', 0, 'at least 1'),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(InputError) as error:
        validate_config(config_with(**{field: value}))
    (line,) = str(error.value).splitlines()
    assert f'config.{field.replace("__", ".")}=' in line
    assert allowed in line


def test_every_problem_is_reported_at_once():
    with pytest.raises(InputError) as error:
        validate_config(config_with(batch_size=0, model__name='x', optimizer__name='y', data__source='z'))
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize('values', [('a',), (float('nan'),), (float('inf'),)])
def test_means_and_deviations_are_finite_numbers(values):
    for field in ('mean', 'std'):
        with pytest.raises(InputError, match='every value must be a finite number'):
            validate_config(config_with(**{f'data__{field}': values * 3}))


def test_combinations_that_cannot_work():
    for changes, part in (
        ({'model__layer': 'conv', 'model__kernel_size': 5}, 'residual blocks'),
        ({'model__name': 'noise_resnet18', 'model__stem_kernel_size': 1}, 'takes 3 or 7'),
        ({'model__redraw_masks': True, 'model__trainable_masks': True}, 'redraw_masks'),
        ({'model__redraw_masks': True, 'model__stem_layer': 'random_filters'}, 'redraw_masks=True: only noise masks'),
        ({'model__name': 'answer_resnet18', 'model__stem_layer': 'random_filters'}, "takes 'perturbation' or 'conv'"),
        ({'seeds_at_once': 2, 'num_seeds': 2, 'log__wandb': True}, 'seeds_at_once=2: must be 1 with config.log.wandb'),
    ):
        with pytest.raises(InputError, match=part):
            validate_config(config_with(**changes))


def test_fields_that_are_missing_are_named():
    """A copy of an older configs/default.py has not all of them."""
    config = default.get_config()
    del config.seeds_at_once, config.data.pad
    with pytest.raises(InputError) as error:
        validate_config(config)
    lines = str(error.value).splitlines()
    assert [line.partition(':')[0] for line in lines] == ['config.seeds_at_once', 'config.data.pad']


def test_images_must_fit():
    with pytest.raises(InputError, match='1 channel'):
        check_fits_data(default.get_config(), (28, 28, 1))
    with pytest.raises(InputError, match='multiple of the 3 image channels'):
        check_fits_data(config_with(model__num_masks=4), (32, 32, 3))
    check_fits_data(config_with(model__num_masks=4, model__num_filters=126), (32, 32, 3))


def test_a_missing_accelerator_is_refused():
    with pytest.raises(InputError, match="found only 'cpu'"):
        check_platform('tpu')
    check_platform('cpu')


def test_overrides_without_effect_are_named():
    config = config_with(model__name='resnet18')
    (line,) = ineffective_overrides(config, ['model.num_masks', 'model.num_filters'])
    assert line.startswith('config.model.num_masks=1 has no effect')
    config = config_with(model__layer='conv', model__stem_layer='conv')
    assert len(ineffective_overrides(config, ['model.num_masks', 'model.kernel_size'])) == 1
    assert ineffective_overrides(default.get_config(), ['model.num_masks', 'model.noise_level', 'data.pad']) == []


def test_overrides_of_optimizer_and_schedule_without_effect_are_named():
    overrides = ['optimizer.momentum', 'optimizer.beta1', 'optimizer.weight_decay', 'optimizer.decay_masks']
    overrides += ['optimizer.learning_rate', 'schedule.name', 'schedule.warmup_epochs', 'schedule.milestones']
    assert ineffective_overrides(config_with(), overrides) == [
        "config.optimizer.beta1=0.9 has no effect: optimizer.name='sgd' does not read it"
    ]
    config = config_with(optimizer__name='adamw', schedule__name='cosine')
    assert ineffective_overrides(config, overrides) == [
        "config.optimizer.momentum=0.9 has no effect: optimizer.name='adamw' does not read it",
        "config.schedule.milestones=(59, 89, 119) has no effect: schedule.name='cosine' does not read it",
    ]


def test_a_warm_up_may_take_nearly_the_whole_run():
    config = config_with(num_epochs=1, schedule__name='cosine', schedule__warmup_epochs=0.6)
    assert ineffective_overrides(config, ['schedule.warmup_epochs']) == []


def test_a_conflict_is_reported_once_and_only_where_the_layer_is_used():
    changes = {'model__redraw_masks': True, 'model__trainable_masks': True}
    with pytest.raises(InputError) as error:
        validate_config(config_with(**changes))  # two layers of this kind
    assert len(str(error.value).splitlines()) == 1
    validate_config(config_with(**changes, model__name='noise_resnet18'))
    validate_config(config_with(**changes, model__layer='conv', model__kernel_size=1, model__stem_layer='conv'))


def test_notes_name_the_kinds_of_layer_that_matter():
    config = config_with(model__layer='random_filters', model__stem_layer='random_filters')
    assert ineffective_overrides(config, ['model.noise_level', 'model.noise_type']) == [
        "config.model.noise_level=0.5 has no effect: perturb_resnet18 with layer='random_filters', "
        "stem_layer='random_filters' does not read it"
    ]
    config = config_with(model__name='noise_resnet18')
    assert ineffective_overrides(config, ['model.dtype', 'model.num_masks']) == [
        'config.model.num_masks=1 has no effect: noise_resnet18 does not read it'
    ]


# --- options are declared once ----------------------------------------------------------------------------------------


def test_every_field_of_the_config_is_an_option_with_rules():
    assert set(default.get_config().model) == {'name', 'dtype', *OPTIONS}
    assert {f'model.{name}' for name in default.get_config().model} <= set(RULES)


def test_classes_that_share_an_option_agree_on_its_rules():
    parts = {part for entry in MODELS.values() for part in entry.parts}
    for cls in {NetworkOptions, PerturbationUnit, *LAYERS.values(), *parts}:
        for name, field in options_of(cls).items():
            assert field.metadata == OPTIONS[name].metadata, (cls, name)


def other_value(name):
    """A value that the rules of an option allow and that is not its default."""
    rules, value = OPTIONS[name].metadata['option'], OPTIONS[name].default
    candidates = (not value,) if isinstance(value, bool) else rules.choices or (value + 1, value / 2)
    return next(other for other in candidates if other != value and not rules.problem(other))


@pytest.mark.parametrize('name', sorted(options_of(PerturbationLayer)))
def test_every_option_of_the_layer_reaches_it_from_the_config(name):
    """One that the builders dropped would silently train another network."""
    value = other_value(name)
    model = config_with(**{f'model__{name}': value}).model
    for unit in (inner_layer(model)(features=4), stem_layer(model)(features=4)):
        assert getattr(unit.layer(features=4), name) == value


@pytest.mark.parametrize('name', sorted(MODELS))
def test_fields_of_a_network_are_those_that_some_choice_of_layers_reads(name):
    fields = MODELS[name].fields
    assert fields <= set(OPTIONS)
    assert fields_read(config_with(model__name=name).model) <= fields
    assert ('num_masks' in fields) == bool({'layer', 'stem_layer'} & fields)


@pytest.mark.parametrize('name', sorted(TABLES))
def test_fields_of_the_networks_of_the_repositories(name):
    fields = MODELS[name].fields
    assert ('num_masks' in fields) == (name in ('perturb_resnet18', 'answer_resnet18', 'lenet', 'cifarnet'))
    assert ('freeze_stem' in fields) == name.startswith('noise_resnet')
    assert ('dropout_rate' in fields) == (name in ('lenet', 'cifarnet'))


def test_what_pytorch_does_not_have_is_listed():
    problems = lambda **changes: pytorch_problems(config_with(**changes).model)
    assert problems() == []
    assert problems(model__redraw_masks=True, model__stem_layer='random_filters') == [
        'config.model.redraw_masks=True has no PyTorch counterpart; allowed: False',
        "config.model.stem_layer='random_filters' has no PyTorch counterpart; allowed: perturbation, conv",
    ]
    assert problems(model__name='resnet18', model__redraw_masks=True) == []
    assert problems(model__num_masks=7, model__share_masks=True, model__noise_type='normal') == []


@given(value=st.floats() | st.integers() | st.text(), low=st.integers(-3, 3), width=st.integers(1, 5))
def test_a_rule_accepts_what_lies_inside_its_bounds(value, low, width):
    is_number = not isinstance(value, str) and math.isfinite(value)
    assert (Option(at_least=low).problem(value) == '') == (is_number and value >= low)
    assert (Option(above=low).problem(value) == '') == (is_number and value > low)
    between = Option(at_least=low, below=low + width).problem(value)
    assert (between == '') == (is_number and low <= value < low + width)
    assert Option().problem(value) == ''


# --- batch norm over one value ----------------------------------------------------------------------------------------


def batch_norm_problem(batch_size, num_train, size=32, **changes):
    model = create_model(config_with(model__num_filters=4, **changes).model, 10)
    try:
        check_batch_norms(model, (size, size, 3), batch_size=batch_size, num_train=num_train)
    except InputError as error:
        return str(error)
    return ''


def test_batches_of_one_are_refused_where_a_batch_norm_sees_one_value():
    """As torch: LeNet has a batch norm behind a linear layer, and 7x7 stems leave maps of one pixel (32 -> 8 -> 1)."""
    line = batch_norm_problem(1, 160, model__name='lenet')
    assert line == (
        "config.batch_size=1: batch norm 'norm' needs more than one value per channel in training, got an input of "
        'shape (1, 128); use 2 or more'
    )
    assert batch_norm_problem(1, 160, model__name='cifarnet') == line.replace('128', '256')
    assert "batch norm 'stage4_block1/norm1' " in batch_norm_problem(
        1, 160, model__name='noise_resnet18', model__stem_kernel_size=7
    )
    assert batch_norm_problem(1, 160, model__name='resnet18') == ''  # the last maps have 4x4 pixels
    assert 'more than one value' in batch_norm_problem(1, 160, size=8, model__name='resnet18')


def test_a_last_batch_of_one_is_refused_with_a_batch_size_that_works():
    line = batch_norm_problem(16, 161, model__name='lenet')
    assert line.startswith(
        'config.batch_size=16: the last batch of an epoch has 1 of the 161 training images, and batch'
    )
    assert line.endswith('use another batch size, for example 17, or another config.data.train_examples')
    assert batch_norm_problem(17, 161, model__name='lenet') == ''
    assert batch_norm_problem(16, 160, model__name='lenet') == ''
    assert 'for example 7,' in batch_norm_problem(4, 61, model__name='lenet')  # 61 = 12 * 5 + 1 = 10 * 6 + 1
    assert batch_norm_problem(16, 161, model__name='resnet18') == ''
    line = batch_norm_problem(16, 1, model__name='lenet')
    assert line.startswith('config.data.train_examples: there is 1 training image, and batch norm')


_FIELDS = {
    name: value
    for name, value in default.get_config().to_dict(preserve_field_references=False).items()
    if isinstance(value, int)
} | {f'model.{name}': value for name, value in default.get_config().model.items()}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(_FIELDS)), st.data())
def test_any_value_is_accepted_or_named(field, data):
    """No value of a field's type makes validation fail in any other way than by one clear line."""
    kind = type(_FIELDS[field])
    values = {int: st.integers(), float: st.floats(), str: st.text(), bool: st.booleans()}[kind]
    config = default.get_config()
    try:
        config.update_from_flattened_dict({field: data.draw(values)})
        validate_config(config)
    except InputError as error:
        assert all(line.startswith('config.') for line in str(error).splitlines() if line)
        assert field.rsplit('.', 1)[-1] in str(error)
