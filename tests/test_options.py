"""The rules of a layer's options: which values they take, and the line for one that they refuse."""

import dataclasses

import numpy as np
import pytest

from pnn_jax.errors import InputError
from pnn_jax.options import check_options, option


@dataclasses.dataclass
class Layer:
    masks: int = option(1, at_least=1)
    level: float = option(0.5, at_least=0)
    rate: float = option(0.5, at_least=0, below=1)
    shared: bool = option(False)


@pytest.mark.parametrize(
    'values', [{'masks': 2}, {'masks': np.int64(2)}, {'level': 1}, {'level': np.float32(0.1)}, {'shared': True}]
)
def test_allowed_values_pass(values):
    check_options(Layer(**values))


@pytest.mark.parametrize(
    'values, problem',
    [
        ({'masks': 1.5}, 'Layer.masks=1.5: must be an integer of at least 1'),
        ({'masks': 2.0}, 'Layer.masks=2.0: must be an integer of at least 1'),
        ({'masks': '2'}, "Layer.masks='2': must be an integer of at least 1"),
        ({'masks': 0}, 'Layer.masks=0: must be finite and at least 1'),
        ({'level': -1}, 'Layer.level=-1: must be finite and at least 0'),
        ({'level': float('nan')}, 'Layer.level=nan: must be finite and at least 0'),
        ({'rate': 1}, 'Layer.rate=1: must be at least 0 and below 1'),
    ],
)
def test_other_values_are_refused_by_name(values, problem):
    with pytest.raises(InputError) as error:
        check_options(Layer(**values))
    assert str(error.value) == problem
