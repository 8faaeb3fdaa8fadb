"""What the registry concludes about networks that are added later."""

import pytest

from configs import default
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
