"""Reads pickled data without running any of it.

A pickle is a program for a small stack machine, and some of its instructions import and call whatever it names. Here
names stay names: nothing is imported or called on a pickle's behalf. Understood are containers, text, bytes, numbers
and arrays of numbers, as Python 2 wrote them into CIFAR's files and as Python 3 writes them; all else is an error.
"""

import math
import pickletools
import re
from typing import Any

import numpy as np

MAX_INSTRUCTIONS = 5_000_000  # the largest file of CIFAR-100 takes a tenth of it

_ENCODE = '_codecs encode'  # how Python 3 writes bytes for Python 2,
_EMPTY = '__builtin__ bytes'  # and empty ones
_DTYPE = 'numpy dtype'
_NDARRAY = 'numpy ndarray'
_RECONSTRUCT = ('numpy.core.multiarray _reconstruct', 'numpy._core.multiarray _reconstruct')
_NAMES = (_ENCODE, _EMPTY, _DTYPE, _NDARRAY, *_RECONSTRUCT)


class PickleError(ValueError):
    """Not a pickle, a damaged one, or one that holds more than plain data."""


class _Name(str):
    """A module and a name in it, which a pickle wants imported."""


class _Unfinished:
    """A dtype or an array between its creation (REDUCE) and its state (BUILD)."""

    def __init__(self, dtype: str = ''):
        self.dtype = dtype
        self.value = self


def read_pickle(content: bytes) -> Any:
    """The object in a pickle; text that Python 2 wrote comes as bytes.

    Raises:
        PickleError: damaged, or not plain data.
    """
    try:
        return _run(content)
    except PickleError:
        raise
    except Exception as error:  # a damaged program can go wrong anywhere: empty stack, unknown memo, bad text
        raise PickleError(f'damaged pickle ({type(error).__name__}: {error})'[:200]) from None


def _run(content: bytes) -> Any:
    stack: list[Any] = []
    outer: list[list[Any]] = []  # stacks below the marks
    memo: dict[int, Any] = {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(content)):
        if count > MAX_INSTRUCTIONS:
            raise PickleError(f'a pickle of more than {MAX_INSTRUCTIONS:,} instructions')
        match instruction.name:
            case 'BININT' | 'BININT1' | 'BININT2' | 'INT' | 'LONG' | 'LONG1' | 'LONG4' | 'FLOAT' | 'BINFLOAT':
                stack.append(argument)
            case 'STRING' | 'BINSTRING' | 'SHORT_BINSTRING':
                stack.append(argument.encode('latin-1'))
            case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
                memo[argument] = stack[-1]
            case 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET' | 'GET':
                value = memo[argument]
                stack.append(value.value if isinstance(value, _Unfinished) else value)
            case 'UNICODE' | 'BINUNICODE' | 'SHORT_BINUNICODE' | 'BINUNICODE8':
                stack.append(argument)
            case 'BINBYTES' | 'SHORT_BINBYTES' | 'BINBYTES8':
                stack.append(argument)
            case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
                stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[instruction.name])
            case 'EMPTY_LIST':
                stack.append([])
            case 'EMPTY_DICT':
                stack.append({})
            case 'EMPTY_TUPLE':
                stack.append(())
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                size = int(instruction.name[-1])
                stack[-size:] = [tuple(_last(stack, size))]
            case 'MARK':
                outer.append(stack)
                stack = []
            case 'LIST' | 'TUPLE' | 'DICT' | 'APPENDS' | 'SETITEMS' | 'POP_MARK':
                items, stack = stack, outer.pop()
                match instruction.name:
                    case 'LIST':
                        stack.append(items)
                    case 'TUPLE':
                        stack.append(tuple(items))
                    case 'DICT':
                        stack.append(_set_items({}, items))
                    case 'APPENDS':
                        _expect(list, stack[-1]).extend(items)
                    case 'SETITEMS':
                        _set_items(stack[-1], items)
            case 'APPEND':
                item = stack.pop()
                _expect(list, stack[-1]).append(item)
            case 'SETITEM':
                items = _last(stack, 2)
                del stack[-2:]
                _set_items(stack[-1], items)
            case 'POP':
                stack.pop()
            case 'DUP':
                stack.append(stack[-1])
            case 'GLOBAL':
                stack.append(_name(argument))
            case 'STACK_GLOBAL':
                module, name = _last(stack, 2)
                stack[-2:] = [_name(f'{module} {name}')]
            case 'REDUCE':
                function, arguments = _last(stack, 2)
                stack[-2:] = [_reduce(function, arguments)]
            case 'BUILD':
                state = stack.pop()
                unfinished = _expect(_Unfinished, stack[-1])
                unfinished.value = stack[-1] = _build(unfinished, state)
            case 'PROTO' | 'FRAME':
                pass
            case 'STOP':
                return stack.pop()
            case _:
                raise PickleError(f'a pickle that holds more than plain data (instruction {instruction.name})')
    raise PickleError('a pickle without an end')


def _last(stack: list, count: int) -> list:
    if len(stack) < count:
        raise PickleError('damaged pickle (empty stack)')
    return stack[-count:]


def _expect(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise PickleError(
            f'damaged pickle, or one that holds more than plain data (a {type(value).__name__} misplaced)'
        )
    return value


def _set_items(target: dict, items: list) -> dict:
    _expect(dict, target)
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing some other key could take arbitrarily deep recursion.
        target[_expect(str | bytes | int, key)] = value
    return target


def _name(name: str) -> _Name:
    if name not in _NAMES:
        raise PickleError(f'a pickle that wants to use {name.replace(" ", ".")!r}; only plain data is read')
    return _Name(name)


def _reduce(function: Any, arguments: Any) -> Any:
    """What a call that the pickle asks for would give, for the few calls that make data."""
    _expect(_Name, function)
    _expect(tuple, arguments)
    if function == _ENCODE and arguments[1:] == ('latin1',):
        return _expect(str, arguments[0]).encode('latin-1')
    if function == _EMPTY and arguments == ():
        return b''
    if function == _DTYPE:
        code = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if not re.fullmatch('b1|[iu][1248]|f[248]', code):
            raise PickleError(f'a pickle with an array of type {code!r}; only arrays of numbers are read')
        return _Unfinished(dtype=code)
    if function in _RECONSTRUCT and arguments[0] == _NDARRAY:
        return _Unfinished()
    raise PickleError(f'a pickle that wants to call {function.replace(" ", ".")!r}; only plain data is read')


def _build(unfinished: _Unfinished, state: Any) -> np.dtype | np.ndarray:
    if unfinished.dtype:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        return np.dtype(unfinished.dtype).newbyteorder(order)
    _, shape, dtype, fortran_order, values = state
    _expect(np.dtype, dtype)
    if len(_expect(bytes, values)) != dtype.itemsize * math.prod(shape):
        raise PickleError(f'damaged pickle (an array of shape {shape} in {len(values)} bytes)')
    return np.frombuffer(values, dtype).reshape(shape, order='F' if fortran_order else 'C')
