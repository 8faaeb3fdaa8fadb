"""What the registry concludes about networks that are added later."""

from types import SimpleNamespace

import pytest

from configs import default
from pnn_jax.errors import InputError
from pnn_jax.models import registry
from pnn_jax.models.registry import ModelEntry


def model_with(**changes):
    model = default.get_config().model
    model.update(**changes)
    return model


@pytest.mark.parametrize('kind', ['layer', 'stem_layer'])
def test_conflicts_are_found_in_a_network_that_has_one_kind_of_layer(monkeypatch, kind):
    make = {'layer': registry.inner_layer, 'stem_layer': registry.stem_layer}[kind]
    monkeypatch.setitem(registry.MODELS, 'shallow', ModelEntry(lambda config, classes: make(config)(features=classes)))
    other = {'layer': 'stem_layer', 'stem_layer': 'layer'}[kind]
    changes = {'name': 'shallow', 'redraw_masks': True, kind: 'random_filters', other: 'perturbation'}
    assert list(registry.conflicts(model_with(**changes))) == [
        ('redraw_masks', 'only noise masks can be redrawn, not filters')
    ]
    assert list(registry.conflicts(model_with(**changes | {kind: 'perturbation', other: 'random_filters'}))) == []


@pytest.mark.parametrize(
    ('changes', 'lines'),
    [
        ({'name': 'lenet', 'pooling': 'Max'}, ["pooling='Max': must be one of max, avg (did you mean 'max'?)"]),
        ({'name': 'lenet', 'dropout_rate': 1.5}, ['dropout_rate=1.5: must be at least 0 and below 1']),
        ({'name': 'noise_resnet18', 'noise_level': -1.0}, ['noise_level=-1.0: must be finite and at least 0']),
        ({'name': 'noise_resnet18', 'noise_type': 'unifrom'}, ["noise_type='unifrom': must be one of "]),
        ({'name': 'perturb_resnet18', 'layer': 'con'}, ["layer='con': must be one of "]),
        ({'name': 'answer_resnet18', 'stem_layer': 'shift'}, ["stem_layer='shift': "]),
        ({'name': 'lenet', 'num_masks': 0, 'activation': 'rel'}, ["activation='rel': ", 'num_masks=0: ']),
    ],
)
def test_options_that_are_not_allowed_build_no_network(changes, lines):
    with pytest.raises(InputError) as error:
        registry.create_model(model_with(**changes), 10)
    found = str(error.value).splitlines()
    assert len(found) == len(lines)
    assert all(line.startswith(f'config.model.{start}') for line, start in zip(found, lines, strict=True)), found


def test_what_a_network_does_not_read_may_be_anything():
    registry.create_model(SimpleNamespace(name='resnet18', num_filters=8, num_masks=0, layer='none'), 10)
