"""Reads pickles without running anything that they ask for.

A pickle is a program for a small stack machine. Some of its instructions import a name and call it, so loading an
untrusted pickle with `pickle.load` runs whatever its author wants. `RestrictedUnpickler` gives a pickle only the few
functions on a list, each of which makes plain data. The same class reads CIFAR's files (`read_pickle`) and PyTorch's
checkpoints (`pnn_jax/pytorch/files.py`).

It also bounds time and memory, which `pickle.Unpickler` does not:

- Hashing a nested tuple can overflow the C stack or take exponential time. Keys must be text, bytes or numbers.
- A memo index of 2**32 makes the C implementation allocate 64 GB. `pickle._Unpickler`, the same machine written in
  Python, keeps the memo in a dict. It is private to the standard library, but dill and cloudpickle build on it too.
- A short pickle can ask for the same large array again and again. Together the arrays may be as large as the pickle.
"""

import io
import math
import pickle
import pickletools
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from pnn_jax.errors import one_line

MAX_INSTRUCTIONS = 5_000_000  # the largest file of CIFAR-100 has a tenth of it
REFUSED_INSTRUCTIONS = ('INST', 'OBJ', 'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4', 'NEXT_BUFFER', 'READONLY_BUFFER')


class PickleError(ValueError):
    """Not a pickle, or a damaged one."""


class UnsafePickleError(PickleError):
    """A pickle that needs more than the functions on the list, or more memory than it should."""


def read_pickle(content: bytes) -> Any:
    """The object in a pickle of containers, text, bytes, numbers and NumPy arrays of numbers.

    Text that Python 2 wrote comes as bytes.

    Raises:
        PickleError: the pickle is damaged, or is not plain data.
    """
    result = RestrictedUnpickler(io.BytesIO(content), limit=len(content), encoding='bytes').load()
    if isinstance(result, Name | Stateful) and not isinstance(result, np.ndarray):
        raise PickleError('damaged pickle (it ends within an object)')
    return result


class Name:
    """What a pickle gets for a name that it imports. It can be called, and has nothing to read or change."""

    __slots__ = ('call', 'name')

    def __init__(self, name: str, call: Callable[..., Any]):
        self.name, self.call = name, call


class Stateful:
    """An object that a pickle makes empty and fills afterwards (instruction BUILD)."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class RestrictedUnpickler(pickle._Unpickler):
    """An unpickler that makes plain data only. A subclass may list more functions in `function`.

    Args:
        file: positioned at the start of a pickle; afterwards at its end.
        limit: bytes that all arrays together may take. The size of the pickle is enough for every honest one.
        encoding: of the text that Python 2 wrote; 'bytes' leaves it as it is.
    """

    reads = 'only plain data is read'

    # Of the unpickler in pickle.py, which has no public types: the objects read so far, those above the last mark, and
    # the next bytes.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: BinaryIO, *, limit: int, encoding: str = 'utf-8'):
        super().__init__(file, encoding=encoding)
        self._content = file
        self._left = limit
        self._encoded: dict[str, bytes] = {}
        self._functions: dict[str, Callable[..., Any]] = {
            '_codecs.encode': self._encode,  # how Python 3 writes bytes for Python 2
            '__builtin__.bytes': lambda: b'',
            'collections.OrderedDict': lambda: OrderedDict(),
            'builtins.set': _set,
            '__builtin__.set': _set,
            'numpy.dtype': Dtype,
            'numpy.ndarray': _not_called,  # an argument of _reconstruct
        }
        for package in ('numpy.core', 'numpy._core'):  # before and since NumPy 2
            self._functions |= {
                f'{package}.multiarray._reconstruct': self._new_array,
                f'{package}.multiarray.scalar': _scalar,
                f'{package}.numeric._frombuffer': _array_of_buffer,
            }

    def load(self) -> Any:
        """The object.

        Raises:
            PickleError: one line that says what is damaged or refused.
        """
        try:
            start = self._content.tell()
            _check_instructions(self._content)
            self._content.seek(start)
            return super().load()
        except PickleError:
            raise
        except Exception as error:  # noqa: BLE001  (a damaged program can go wrong anywhere: empty stack, unknown memo, bad text)
            raise PickleError(f'damaged pickle ({type(error).__name__}: {one_line(error)})'[:200]) from None

    def function(self, module: str, name: str) -> Callable[..., Any] | None:
        """What stands for a name in a module, or None where it is refused."""
        return self._functions.get(f'{module}.{name}')

    def find_class(self, module: str, name: str) -> Name:
        full = f'{module}.{name}'
        if (call := self.function(module, name)) is None:
            raise UnsafePickleError(f'a pickle that wants to use {full[:100]!r}; {self.reads}')
        return Name(full, call)

    # Instructions that are stricter than in the standard library.

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _expect(Name, self.stack[-1]).call(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:  # a state_dict has notes on versions as its state
            _expect(Stateful, self.stack[-1]).set_state(state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set_items(items)

    def _set_items(self, items: list) -> None:
        target = _expect(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_additems(self) -> None:
        items = self.pop_mark()
        _expect(set, self.stack[-1]).update(map(_key, items))

    def load_frozenset(self) -> None:
        self.stack.append(frozenset(map(_key, self.pop_mark())))

    def load_bytearray8(self) -> None:  # the standard library allocates before it knows that the bytes are there
        (size,) = struct.unpack('<Q', self.read(8))
        self.stack.append(self.read(size))

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {  # type: ignore[assignment]
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    # Functions that a pickle may call.

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != 'latin1':
            raise UnsafePickleError(f'a pickle of text in the encoding {encoding!r:.40}; {self.reads}')
        if text not in self._encoded:  # asked for twice, the same bytes: a pickle cannot multiply them
            self._encoded[_expect(str, text)] = text.encode('latin-1')
        return self._encoded[text]

    def _new_array(self, subtype: Name, shape: Any, code: Any) -> 'Array':
        if _expect(Name, subtype).name != 'numpy.ndarray':
            raise UnsafePickleError(f'a pickle with an array of the kind {subtype.name!r}; {self.reads}')
        array = Array((0,), np.uint8)
        array.reserve = self._reserve
        return array

    def _reserve(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnsafePickleError('a pickle whose arrays are larger than itself')


def _check_instructions(file: BinaryIO) -> None:
    """Raises PickleError unless the pickle is complete, of known instructions and of a bounded number of them."""
    for count, (instruction, _, _) in enumerate(pickletools.genops(file)):
        if count > MAX_INSTRUCTIONS:
            raise UnsafePickleError(f'a pickle of more than {MAX_INSTRUCTIONS:,} instructions')
        if instruction.name in REFUSED_INSTRUCTIONS:
            raise UnsafePickleError(f'a pickle that holds more than plain data (instruction {instruction.name})')


def _expect(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise PickleError(
            f'damaged pickle, or one that holds more than plain data (a {type(value).__name__} misplaced)'
        )
    return value


def _key(value: Any) -> Any:
    """A key of a dict or a member of a set, which will be hashed."""
    return _expect(str | bytes | int | float | None, value)


def _set(items: Any = ()) -> set:
    if len(_expect(list | tuple, items)) > 1000:
        raise UnsafePickleError('a pickle with a set of more than 1,000 members')
    return set(map(_key, items))


def _not_called(*arguments: Any) -> None:
    raise UnsafePickleError('a pickle that wants to make an array in an unknown way')


# --- NumPy ------------------------------------------------------------------------------------------------------------


class Dtype(Stateful):
    """Stands for a dtype while a pickle is read: NumPy trusts the state of a dtype, and a wrong one crashes it."""

    def __init__(self, code: str | bytes, *options: Any):
        self.code = code.decode() if isinstance(code, bytes) else _expect(str, code)
        if not re.fullmatch('b1|[iu][1248]|f[248]', self.code):
            raise UnsafePickleError(f'a pickle with an array of type {self.code!r:.40}; only numbers are read')
        self.order: Any = '='

    def set_state(self, state: Any) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else _expect(str, state[1])
        self.dtype.newbyteorder(order)  # raises for what is no byte order
        self.order = order

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class Array(np.ndarray, Stateful):
    """An array of numbers that checks the state it is given."""

    reserve: Callable[[int], None]

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran_order, values = state
        dtype = _expect(Dtype, dtype).dtype
        _check_shape(shape, dtype, _expect(bytes, values))
        self.reserve(len(values))
        self.__setstate__((1, shape, dtype, bool(fortran_order), values))  # type: ignore[arg-type]


def _check_shape(shape: Any, dtype: np.dtype, values: bytes) -> None:
    sizes = all(type(size) is int and size >= 0 for size in _expect(tuple, shape))
    if not sizes or len(values) != dtype.itemsize * math.prod(shape):
        raise PickleError(f'damaged pickle (an array of shape {shape!r:.60} in {len(values)} bytes)')


def _array_of_buffer(values: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    dtype = _expect(Dtype, dtype).dtype
    _check_shape(shape, dtype, _expect(bytes, values))
    return np.frombuffer(values, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, value: Any) -> np.generic:
    dtype = _expect(Dtype, dtype).dtype
    _check_shape((), dtype, _expect(bytes, value))
    return np.frombuffer(value, dtype)[0]
