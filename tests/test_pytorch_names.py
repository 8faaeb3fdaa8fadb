"""Networks that PyTorch's repositories do not have are refused, also where a registry has grown since."""

import pytest

from configs import default
from pnn_jax.errors import InputError
from pnn_jax.pytorch.names import check_supported


@pytest.mark.parametrize('field, value', [('activation', 'gelu'), ('pooling', 'median'), ('noise_type', 'ramp')])
def test_values_that_pytorch_lacks_are_one_line(field, value):
    config = default.get_config().model
    config.name = 'lenet'
    check_supported(config)
    config[field] = value
    with pytest.raises(InputError) as error:
        check_supported(config)
    assert str(error.value).startswith(f'config.model.{field}={value!r} has no PyTorch counterpart; allowed: ')
    assert '\n' not in str(error.value)


def test_noise_that_pytorch_does_not_train_is_refused():
    config = default.get_config().model
    config.name, config.trainable_masks = 'noise_resnet18', True
    with pytest.raises(InputError, match='trainable_masks=True: the noise of noise_resnet is never trained'):
        check_supported(config)


def test_a_field_that_the_network_does_not_read_is_not_asked_for():
    config = default.get_config().model
    config.name, config.activation, config.noise_type = 'resnet18', 'gelu', 'ramp'
    check_supported(config)
