"""Configs: every field has rules, and all broken ones are reported at once."""

import math

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from pnn_jax.errors import InputError
from pnn_jax.validate import check_fits_data, check_platform, ineffective_overrides, validate_config


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
        ('model__activation', 'gelu', 'relu, lrelu'),
        ('model__noise_type', 'cauchy', 'uniform, normal'),
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
        ('optimizer__name', 'adamw', "did you mean 'adam'"),
        ('optimizer__learning_rate', -1.0, 'above 0'),
        ('schedule__milestones', (5, 5), 'rising'),
        ('schedule__milestones', (True, 2), 'rising'),
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
    ):
        with pytest.raises(InputError, match=part):
            validate_config(config_with(**changes))


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
    model = config_with(model__name='resnet18').model
    (line,) = ineffective_overrides(model, ['num_masks', 'num_filters'])
    assert line.startswith('config.model.num_masks=1 has no effect')
    model = config_with(model__layer='conv', model__stem_layer='conv').model
    assert len(ineffective_overrides(model, ['num_masks', 'kernel_size'])) == 1
    assert ineffective_overrides(default.get_config().model, ['num_masks', 'noise_level']) == []


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
