"""Finds the network in what people save: a state_dict or a model, bare or inside a training checkpoint.

Content that is unambiguous is accepted: the prefixes of DataParallel and torch.compile, one state_dict beside an epoch
and an optimizer's state, precisions other than float32. Anything else is refused with one line that names the key.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pnn_jax.data.pickles import PickleError
from pnn_jax.errors import InputError, one_line
from pnn_jax.pytorch.architecture import Architecture, architecture_of, fields_of_modules, network_name
from pnn_jax.pytorch.files import Module, Tensor, read_file
from pnn_jax.pytorch.variables import Arrays, TorchTensors

PREFIXES = ('module.', '_orig_mod.')  # of DataParallel and torch.compile


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The network of a file.

    Attributes:
        tensors: float32 (counters int64).
        architecture: what the file tells of the network.
        notes: what was converted, for the user.
    """

    tensors: TorchTensors
    architecture: Architecture
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a state_dict or a whole model, and the noise masks beside it (`noise_file`).

    Raises:
        InputError: one line that names the file, and the key where one is at fault.
    """
    notes: list[str] = []
    noise = {}
    if (noise_path := noise_file(path)).exists():
        noise = _arrays(_state_dict(read_file(noise_path), noise_path), noise_path)
    network = _network(read_file(path), path)
    fields: dict[str, Any] = {}
    if isinstance(network, Module):
        network, held, fields = _taken_apart(network, path)
        noise = noise or _arrays(held, path)
    arrays = _arrays(_without_prefix(network), path)
    if network_name(arrays).startswith('noise_resnet'):  # on a CPU, PyTorch keeps the noise in the state_dict
        held = {key: arrays.pop(key) for key in list(arrays) if key.endswith('.noise')}
        noise = noise or held
    _check_exact(noise, noise_path if noise_path.exists() else path)
    tensors = TorchTensors(_as_float32(arrays, path, notes), noise)
    return Checkpoint(tensors, architecture_of(tensors, fields, path), tuple(notes))


def noise_file(path: Path) -> Path:
    """Where the noise masks of model.pth are: model.noise.pth."""
    return path.with_suffix('.noise.pth')


def _network(content: Any, path: Path) -> Mapping[str, Any] | Module:
    """The only state_dict or model in `content`."""
    if isinstance(content, Module) or _is_state_dict(content):
        return content
    if not isinstance(content, Mapping) or not content:
        raise InputError(f'{path} holds a {type(content).__name__}, not a state_dict or a model')
    found = {key: value for key, value in content.items() if isinstance(value, Module) or _is_state_dict(value)}
    if not found:
        for key, value in content.items():
            if not _is_tensor(value):
                kind = type(value).__name__
                raise InputError(f'{path}: {key!r} is a {kind}, not a tensor; save a state_dict or a model by itself')
        raise InputError(f'{path} holds tensors under keys that are no names; save a state_dict or a model')
    others = [key for key, value in content.items() if key not in found and _may_be_network(value)]
    if len(found) + len(others) > 1:
        first, second = [*found, *others][:2]
        raise InputError(f'{path}: both {first!r} and {second!r} hold tensors; save one state_dict by itself')
    (network,) = found.values()
    return network


def _state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    network = _network(content, path)
    if isinstance(network, Module):
        raise InputError(f'{path} holds a model, not a dict of noise masks')
    return network


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and _is_tensor(tensor) for key, tensor in value.items())
    )


def _may_be_network(value: Any) -> bool:
    """Whether a dict that is no state_dict has weights somewhere in it, and is not the state of an optimizer."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping) and 'param_groups' not in value and id(value) not in seen:
            seen.add(id(value))
            if any(_is_weight(child) or isinstance(child, Module) for child in value.values()):
                return True
            pending += value.values()
    return False


def _is_weight(value: Any) -> bool:
    dtype = value.storage.dtype if isinstance(value, Tensor) else getattr(value, 'dtype', np.dtype(object))
    return _is_tensor(value) and jnp.issubdtype(dtype, np.floating) and value.shape not in ((), (1,))


def _without_prefix(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    for prefix in PREFIXES * 2:  # a compiled DataParallel has both, in either order
        if all(key.startswith(prefix) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def _taken_apart(model: Module, path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(state_dict, noise masks that only the modules hold, fields of config.model) of a saved model."""
    try:
        for _ in PREFIXES:  # as deep as `_without_prefix` goes; a file may hold a module that holds itself
            if model.kind == 'DataParallel':
                model = model['_modules']['module']
        modules = dict(model.modules())
        noise = {
            f'{name}.noise': module['noise']
            for name, module in modules.items()
            if module.kind == 'NoiseLayer' and 'noise' in module.attributes
        }
        state_dict = {key: value for key, value in model.tensors().items() if key not in noise}
        drawn = {key: value for key, value in noise.items() if 0 not in value.shape}
        return state_dict, drawn, fields_of_modules(model)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, StopIteration) as error:
        raise InputError(
            f'{path}: a saved model of unknown structure ({type(error).__name__}: {one_line(error)}); '
            'save its state_dict instead'
        ) from None


def _arrays(tensors: Mapping[str, Any], path: Path) -> Arrays:
    for key, tensor in tensors.items():
        if not _is_tensor(tensor) or not key.isprintable():
            raise InputError(f'{path}: {key[:80]!r} is a {type(tensor).__name__}, not a tensor with a name')
    try:
        return {
            key: tensor.array() if isinstance(tensor, Tensor) else np.asarray(tensor) for key, tensor in tensors.items()
        }
    except PickleError as error:
        raise InputError(f'{path} is damaged or no PyTorch file: {error}') from None


def _as_float32(arrays: Arrays, path: Path, notes: list[str]) -> Arrays:
    """Floating-point arrays as float32. A note says of which type they were and what rounding changed."""
    result: Arrays = {}
    converted: dict[str, list] = {}
    for key, array in arrays.items():
        if not jnp.issubdtype(array.dtype, np.floating):
            result[key] = array
            continue
        with np.errstate(over='ignore'):
            result[key] = array.astype(np.float32)
        _check_finite(key, array, result[key], path)
        if array.dtype != np.float32:
            converted.setdefault(array.dtype.name, []).append((array, result[key]))
    notes += [_conversion_note(name, pairs) for name, pairs in converted.items()]
    return result


def _check_finite(key: str, array: np.ndarray, converted: np.ndarray, path: Path) -> None:
    if not np.isfinite(array).all():
        raise InputError(f'{path}: {key} has values that are not finite')
    if not np.isfinite(converted).all():
        raise InputError(f'{path}: {key} is {array.dtype} with values up to {np.abs(array).max():.1e}, beyond float32')


def _conversion_note(dtype: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    lost = max((float(np.abs(old.astype(np.float64) - new).max(initial=0)) for old, new in pairs), default=0)
    change = f'rounded, the largest change is {lost:.1e}' if lost else 'with the same values'
    return f'{len(pairs)} tensors were {dtype} in the file; they are float32 now, {change}'


def _check_exact(noise: Arrays, path: Path) -> None:
    """Noise masks are divided by the level, which is exact in the precision that they were multiplied in."""
    for key, array in noise.items():
        if array.dtype != np.float32:
            raise InputError(f'{path}: {key} is {array.dtype}; noise masks are only converted from float32')
        _check_finite(key, array, array, path)
