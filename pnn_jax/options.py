"""What values an option may have, said once, where the option is defined.

A layer declares its options as dataclass fields:

    num_masks: int = option(1, at_least=1)
    noise_type: str = option('uniform', choices=NOISE_DISTRIBUTIONS)

Everything else follows from these declarations: the layer checks its own values, `config.model` is checked against the
same rules, networks are built by matching field names, and exporting to PyTorch knows what it cannot express. Rules
that involve several options are in a static method `conflicts` of the class.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pnn_jax.errors import InputError

Conflict = tuple[str, str]  # the name of an option, and why its value does not go with the others


@dataclasses.dataclass(frozen=True)
class Option:
    """The values that are allowed. All conditions that are given must hold.

    Attributes:
        choices: the allowed values; empty: any.
        at_least, above: lower bounds of a finite number, inclusive and exclusive.
        below: upper bound, exclusive.
        pytorch: the counterpart in the PyTorch repositories. A string: the argument of the network's constructor that
            takes the same values. A tuple: the values that can be expressed there by other means. None: there is no
            counterpart, so only the default can be exported.
        integer: whether the value must be an integer.
        pytorch_choices: with a string in `pytorch`: the values that exist there, if not all do; empty: all.
    """

    choices: tuple = ()
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    pytorch: str | tuple | None = None
    pytorch_choices: tuple = ()
    integer: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with `value`: 'must be at least 1'; empty where it is allowed."""
        if self.choices:
            return '' if value in self.choices else self._not_a_choice(value)
        low, high = self.at_least, self.below
        if low is None and self.above is None:
            return ''
        if self.integer and not isinstance(value, numbers.Integral):
            return f'must be an integer of at least {low}'
        is_number = isinstance(value, numbers.Real) and math.isfinite(value)
        if low is None:
            return '' if is_number and value > self.above else f'must be finite and above {self.above}'
        if high is None:
            return '' if is_number and value >= low else f'must be finite and at least {low}'
        return '' if is_number and low <= value < high else f'must be at least {low} and below {high}'

    def _not_a_choice(self, value: Any) -> str:
        names = [str(choice) for choice in self.choices]
        near = difflib.get_close_matches(str(value), names, n=1) if isinstance(value, str) else ()
        hint = f' (did you mean {near[0]!r}?)' if near else ''
        return f'must be one of {", ".join(names)}{hint}'


def option(
    default: Any,
    *,
    choices: Iterable = (),
    at_least: float | None = None,
    below: float | None = None,
    pytorch: str | tuple | None = None,
    pytorch_choices: tuple = (),
) -> Any:
    """A dataclass field that is an option; see `Option` for the arguments."""
    rules = Option(
        choices=tuple(choices),
        at_least=at_least,
        below=below,
        pytorch=pytorch,
        pytorch_choices=pytorch_choices,
        integer=isinstance(default, int),
    )
    return dataclasses.field(default=default, metadata={'option': rules})


class FieldRecorder:
    """A section of a config that remembers which of its fields were read."""

    def __init__(self, config: Any):
        self.config = config
        self.fields_read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.fields_read.add(name)
        return getattr(self.config, name)


def options_of(cls: type) -> dict[str, dataclasses.Field]:
    """The options of a dataclass (every flax module is one), by name. `field.metadata['option']` is the `Option`."""
    return {field.name: field for field in dataclasses.fields(cls) if 'option' in field.metadata}


def conflicts_of(cls: type, values: Mapping[str, Any]) -> Iterator[Conflict]:
    """The conflicts that `cls` finds among the values of its options."""
    if hasattr(cls, 'conflicts'):
        yield from cls.conflicts(values)


def check_options(module: Any) -> None:
    """Checks the options of a layer against their rules and each other.

    Raises:
        InputError: names the layer, the option, its value and what is allowed.
    """
    cls = type(module)
    values = {field.name: getattr(module, field.name) for field in dataclasses.fields(cls)}
    problems = [(name, field.metadata['option'].problem(values[name])) for name, field in options_of(cls).items()]
    for name, problem in (*problems, *conflicts_of(cls, values)):
        if problem:
            raise InputError(f'{cls.__name__}.{name}={values[name]!r}: {problem}')
