"""Variables of ours and state_dicts of PyTorch, exact in both directions, without importing torch.

A state_dict is a dict of NumPy arrays here. `names.py` says what a tensor is called in PyTorch, `layouts.py` how its
values are ordered. For the reverse direction the shapes come from the JAX network (`variable_shapes`).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from pnn_jax.errors import InputError
from pnn_jax.models import create_model
from pnn_jax.models.variables import variable_shapes as shapes_of_model
from pnn_jax.pytorch.layouts import layout_of, torch_shape, undo_level
from pnn_jax.pytorch.names import TABLES, check_supported, torch_names

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TorchTensors:
    """The tensors of a PyTorch network.

    Attributes:
        state_dict: as PyTorch's, with NumPy arrays. A tensor that two modules share is there under both names.
        noise_masks: of `noise_resnet` only: `layer1.0.layers.0.noise` -> [c, h, w], already multiplied by the level.
            On a GPU, PyTorch keeps them out of the state_dict (michaelklachko/pnn.pytorch@08865db models.py:340), so a
            saved state_dict has lost them.
    """

    state_dict: Arrays
    noise_masks: Arrays = dataclasses.field(default_factory=dict)


def variable_shapes(config, num_classes: int, image_size: int, channels: int) -> dict:
    """The shapes of a network's variables. Nothing is computed or allocated.

    Args:
        config: `config.model`.
        num_classes, image_size, channels: of the data; images are [image_size, image_size, channels].
    """
    return shapes_of_model(create_model(config, num_classes), (image_size, image_size, channels))


def to_torch(variables: Mapping, config, *, num_steps: int | None = None, aliases: bool = True) -> TorchTensors:
    """Variables, or any part of them, in PyTorch's names and layouts; dtypes are kept.

    Args:
        variables: the collections `params`, `batch_stats`, `noise_masks` and `frozen`; each may be absent. Gradients
            are converted as {'params': gradients}.
        config: `config.model`.
        num_steps: written as `num_batches_tracked` of every batch norm. None leaves these out, as PyTorch before 0.4.1.
        aliases: whether a tensor with several names in PyTorch gets all of them, as in a state_dict, or only the first,
            as in `named_parameters`.

    Raises:
        InputError: PyTorch has no counterpart of a field of `config`.
    """
    check_supported(config)
    table = TABLES[config.name](config)
    state_dict, noise_masks = {}, {}
    for collection in variables.values():
        for path, value in traverse_util.flatten_dict(collection).items():
            value = np.asarray(value)
            names = torch_names(path, table)
            tensor = np.ascontiguousarray(layout_of(path, value.ndim).to_torch(value))
            if _is_added_noise(path, value):
                noise_masks[names[0]] = tensor * tensor.dtype.type(config.noise_level)
            else:
                state_dict.update(dict.fromkeys(names if aliases else names[:1], tensor))
    if num_steps is not None:
        for name in [name for name in state_dict if name.endswith('.running_mean')]:
            state_dict[name.removesuffix('running_mean') + 'num_batches_tracked'] = np.asarray(num_steps, np.int64)
    return TorchTensors(state_dict, noise_masks)


def from_torch(tensors: TorchTensors, config, shapes: Mapping) -> tuple[dict, int | None]:
    """The inverse of `to_torch`.

    Args:
        tensors: float32 (float64 stays float64, which verification uses).
        config: `config.model`.
        shapes: `variable_shapes` of the network.

    Returns:
        Variables as NumPy arrays, and the number of training steps behind the batch statistics (None where the
        state_dict does not count them).

    Raises:
        InputError: names the first key that is missing, superfluous, of a wrong shape or dtype, or that differs from
            another name of the same tensor; or says that the noise masks are lost.
    """
    check_supported(config)
    table = TABLES[config.name](config)
    flat_shapes = {name: traverse_util.flatten_dict(collection) for name, collection in shapes.items()}
    needs_noise = any(_is_added_noise(*item) for collection in flat_shapes.values() for item in collection.items())
    if needs_noise and not tensors.noise_masks:
        raise InputError(
            'the noise masks of this network are lost: PyTorch keeps those of noiseresnet out of the state_dict, so '
            'without a file of masks its outputs cannot be reproduced'
        )
    remaining = {**tensors.state_dict, **tensors.noise_masks}
    num_steps = _take_num_steps(remaining)
    variables = {
        name: traverse_util.unflatten_dict(
            {path: _take_variable(remaining, path, leaf, table, config) for path, leaf in collection.items()}
        )
        for name, collection in flat_shapes.items()
    }
    if remaining:
        raise InputError(
            f'{min(remaining)} is not part of {config.name} as configured; number of superfluous keys: {len(remaining)}'
        )
    return variables, num_steps


def _is_added_noise(path: tuple[str, ...], value) -> bool:
    """Whether a variable is the noise of `noise_resnet`, [h, w, c]; masks of all other networks have four axes."""
    return path[-1] == 'masks' and len(value.shape) == 3


def _take_variable(remaining: Arrays, path: tuple[str, ...], expected, table: Mapping, config) -> np.ndarray:
    """One variable of shape `expected.shape`; all names of its tensor are removed from `remaining`."""
    layout = layout_of(path, len(expected.shape))
    owner, *aliases = torch_names(path, table)
    tensor = _take(remaining, owner, torch_shape(layout, expected.shape))
    for alias in aliases:
        if not np.array_equal(_take(remaining, alias, tensor.shape), tensor, equal_nan=True):
            raise InputError(f'{alias} differs from {owner}, of which it is another name')
    if _is_added_noise(path, expected):
        tensor = undo_level(owner, tensor, config.noise_level)
    return np.ascontiguousarray(layout.from_torch(tensor, expected.shape))


def _take(remaining: Arrays, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key not in remaining:
        raise InputError(f'{key} is missing')
    tensor = remaining.pop(key)
    if tensor.shape != shape:
        raise InputError(f'{key} has shape {list(tensor.shape)}, the network needs {list(shape)}')
    if tensor.dtype not in (np.float32, np.float64):
        raise InputError(f'{key} is {tensor.dtype}; only float32 is converted without loss')
    return tensor


def _take_num_steps(remaining: Arrays) -> int | None:
    keys = [key for key in remaining if key.endswith('.num_batches_tracked')]
    counters = set()
    for key in keys:
        counter = remaining.pop(key)
        if counter.size != 1 or counter.dtype.kind not in 'iu':
            raise InputError(f'{key} is {counter.dtype}{list(counter.shape)}; it must be one integer')
        counters.add(counter.item())
    if any(not 0 <= count < 2**31 for count in counters):
        raise InputError(f'{keys[0]} is {max(counters, key=abs)}; it must be at least 0 and below 2**31')
    if len(counters) > 1:
        raise InputError(f'num_batches_tracked differs between batch norms: {sorted(counters)}')
    return counters.pop() if counters else None
