"""Reads PyTorch's files without PyTorch and without running anything in them.

Three formats: what `torch.save` writes since 1.6 (a zip of one pickle and the raw values of every storage), what it
wrote before (several pickles, then the raw values), and safetensors. From a pickle, only tensors, plain containers and
`Module`s are made, and a `Module` only holds attributes (see `pnn_jax/data/pickles.py`). The formats are described in
PyTorch's torch/serialization.py.
"""

import dataclasses
import io
import json
import math
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from pnn_jax.data.pickles import PickleError, RestrictedUnpickler, Stateful, UnsafePickleError
from pnn_jax.errors import InputError, one_line, os_reason

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_MODULES, MAX_DEPTH = 10_000, 20  # noise_resnet152 has 1,000 modules, 5 deep
STORAGES = {
    'FloatStorage': np.dtype(np.float32),
    'DoubleStorage': np.dtype(np.float64),
    'HalfStorage': np.dtype(np.float16),
    'BFloat16Storage': np.dtype(jnp.bfloat16),
    'LongStorage': np.dtype(np.int64),
    'IntStorage': np.dtype(np.int32),
    'ShortStorage': np.dtype(np.int16),
    'CharStorage': np.dtype(np.int8),
    'ByteStorage': np.dtype(np.uint8),
    'BoolStorage': np.dtype(np.bool_),
}


@dataclasses.dataclass(eq=False)
class Storage:
    """The values behind one or several tensors. `content` is filled after the pickle has been read."""

    dtype: np.dtype
    size: int
    content: bytes = b''

    def fill(self, content: bytes) -> None:
        if len(content) != self.size * self.dtype.itemsize:
            raise PickleError(f'{len(content)} bytes where {self.size} values of {self.dtype} should be')
        self.content = content


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a file. Offset and strides count values, as in PyTorch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool = False

    def array(self) -> np.ndarray:
        """The values, read-only.

        Raises:
            PickleError: they are not all in the storage, or there are more axes or values than a storage can hold.
        """
        try:
            dtype = self.storage.dtype
            if math.prod(self.shape) > self.storage.size:  # strides of 0 would make a huge array of one value
                raise ValueError('more values than its storage')
            strides = [stride * dtype.itemsize for stride in self.strides]
            return np.ndarray(self.shape, dtype, self.storage.content, self.offset * dtype.itemsize, strides)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise PickleError(f'a tensor of shape {self.shape!r:.60} does not fit its storage ({error})') from None


class Module(Stateful):
    """A saved `torch.nn.Module`: the name of its class and its attributes. It does nothing."""

    def __init__(self, kind: str):
        self.kind = kind
        self.attributes: dict[str, Any] = {}

    def set_state(self, state: Any) -> None:
        self.attributes.update(state)

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def modules(self) -> Iterator[tuple[str, 'Module']]:
        """(dotted name, module) of this module and all inside it, in order.

        Raises:
            ValueError: there are more than MAX_MODULES or deeper than MAX_DEPTH, as in a module that holds itself.
        """
        pending: list[tuple[tuple[str, ...], Module]] = [((), self)]
        for _ in range(MAX_MODULES):
            if not pending:
                return
            path, module = pending.pop()
            if len(path) > MAX_DEPTH:
                break
            yield '.'.join(path), module
            children = [((*path, name), child) for name, child in module['_modules'].items() if child is not None]
            pending += reversed(children)
        raise ValueError('too many modules')

    def tensors(self) -> dict[str, Any]:
        """Dotted name -> tensor, of the parameters and buffers of this module and all inside it."""
        return {
            f'{prefix}.{name}'.removeprefix('.'): value
            for prefix, module in self.modules()
            for kind in ('_parameters', '_buffers')
            for name, value in module[kind].items()
            if value is not None
        }


class TorchUnpickler(RestrictedUnpickler):
    """Also makes tensors and modules. Their values are read afterwards, into `storages`, by the key of each storage."""

    reads = 'only tensors, modules and plain data are read'

    def __init__(self, file: BinaryIO, *, limit: int):
        super().__init__(file, limit=limit)
        self.storages: dict[str, Storage] = {}
        self._functions |= {
            'torch._utils._rebuild_tensor': Tensor,
            'torch._utils._rebuild_tensor_v2': _tensor,
            'torch._utils._rebuild_parameter': _parameter,
            'torch.device': lambda *arguments: None,  # an attribute of DataParallel
            'torch.nn.backends.thnn._get_thnn_function_backend': lambda: None,  # an attribute of modules until 1.4
        }

    def function(self, module: str, name: str):
        if name.isidentifier() and (
            module == 'models' or module.startswith(('torch.nn.modules.', 'torch.nn.parallel.'))
        ):
            return lambda: Module(name)
        if module == 'torch' and name in STORAGES:
            return _storage_is_no_function
        return super().function(module, name)

    def persistent_load(self, identifier: Any) -> Any:
        """A storage, or in old files the class of a module."""
        if identifier[0] == 'module':
            return identifier[1]
        _, kind, key, _, size, *views = identifier
        if any(view is not None for view in views):
            raise UnsafePickleError('a pickle with views of storages, which are not read')
        dtype = STORAGES[kind.name.removeprefix('torch.')]
        storage = self.storages.setdefault(key, Storage(dtype, size))
        if (storage.dtype, storage.size) != (dtype, size):
            raise PickleError(f'storage {key!r:.40} is described in two ways')
        return storage


def _tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None) -> Tensor:
    return Tensor(storage, offset, shape, strides, requires_grad)


def _parameter(tensor: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    return dataclasses.replace(tensor, requires_grad=requires_grad)


def _storage_is_no_function(*arguments: Any) -> None:
    raise UnsafePickleError('a pickle that wants to make a storage in an unknown way')


def read_file(path: Path) -> Any:
    """What `torch.save` or safetensors wrote into a file, with `Tensor`s and `Module`s.

    Raises:
        InputError: the file is missing or damaged, is of another format, or needs more than plain data, tensors and
            modules.
    """
    if not path.exists():
        raise InputError(f'{path} does not exist')
    if not path.is_file():
        raise InputError(f'{path} is no file')
    try:
        content = path.read_bytes()
        if content.startswith(b'PK\x03\x04'):
            return _read_zip(content)
        if path.suffix == '.safetensors' or content[8:10] == b'{"':
            return _read_safetensors(content)
        if tarfile.is_tarfile(io.BytesIO(content)):
            raise InputError('it is a tar archive, a format of torch before 0.1.10 that is not read')
        return _read_pickles(content)
    except (InputError, UnsafePickleError) as error:
        raise InputError(f'{path} is refused: {error}') from None
    except OSError as error:
        raise InputError(f'{path} cannot be read: {os_reason(error)}') from None
    except Exception as error:  # noqa: BLE001  (zipfile and safetensors raise many kinds on damaged files)
        raise InputError(f'{path} is damaged or no PyTorch file: {one_line(error)}') from None


def _read_zip(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            raise InputError('it is a TorchScript program; save its state_dict() instead')
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise InputError('its entries are larger than the file; torch.save never compresses')
        (program,) = [name for name in names if name.endswith('/data.pkl')]
        folder = program.removesuffix('data.pkl')
        if f'{folder}byteorder' in names and archive.read(f'{folder}byteorder') != b'little':
            raise InputError('it was written on a big-endian machine, which is not read')
        unpickler = TorchUnpickler(io.BytesIO(archive.read(program)), limit=len(content))
        result = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.fill(archive.read(f'{folder}data/{key}'))  # zipfile compares the checksum, torch.load does not
        return result


def _read_pickles(content: bytes) -> Any:
    """The format before 1.6, or a single pickle of NumPy arrays."""
    file = io.BytesIO(content)

    def unpickler() -> TorchUnpickler:
        return TorchUnpickler(file, limit=len(content))

    if (first := unpickler().load()) != LEGACY_MAGIC:
        return first
    if unpickler().load() != LEGACY_PROTOCOL or unpickler().load()['little_endian'] is not True:
        raise InputError('it was written by an unknown version of torch or on a big-endian machine')
    program = unpickler()
    result = program.load()
    for key in unpickler().load():
        storage = program.storages.pop(key)
        (size,) = struct.unpack('<q', file.read(8))
        if size != storage.size:
            raise PickleError(f'storage {key!r:.40} has {size} values instead of {storage.size}')
        storage.fill(file.read(size * storage.dtype.itemsize))
    if program.storages:
        raise PickleError(f'{len(program.storages)} storages have no values')
    return result


SAFETENSORS = {'F32': 'FloatStorage', 'F64': 'DoubleStorage', 'F16': 'HalfStorage', 'BF16': 'BFloat16Storage'}
SAFETENSORS |= {'I64': 'LongStorage', 'I32': 'IntStorage', 'I16': 'ShortStorage', 'I8': 'CharStorage'}
SAFETENSORS |= {'U8': 'ByteStorage', 'BOOL': 'BoolStorage'}


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    try:
        import safetensors
    except ImportError:
        raise InputError(
            "it is a safetensors file, which needs the package safetensors: pip install 'pnn-jax[safetensors]'"
        ) from None
    arrays = {}
    for key, tensor in safetensors.deserialize(content):
        if tensor['dtype'] not in SAFETENSORS:
            raise InputError(f'{key} is of type {tensor["dtype"]}; types that are read: {", ".join(SAFETENSORS)}')
        dtype = STORAGES[SAFETENSORS[tensor['dtype']]]
        arrays[key] = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
    # A tensor with two names is stored under one of them; the metadata maps the other name to it.
    (header_size,) = struct.unpack('<Q', content[:8])
    metadata = json.loads(content[8 : 8 + header_size]).get('__metadata__', {})
    return arrays | {name: arrays[kept] for name, kept in metadata.items() if kept in arrays}
