"""The errors of every quantity of a case, and whether they are within the tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.verify.cases import QUANTITIES, Case
from experiments.verify.quantities_jax import jax_quantities
from pnn_jax.errors import InputError

TOLERANCE = 1e-6  # in double precision, relative to max(1, |value|)
FLOORS = 10  # in single precision, times PyTorch's own float32 error
RERUNS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """The largest errors of one quantity.

    Attributes:
        values: numbers compared.
        left_out: those among them that rounding decides (see `jax_quantities`).
        max_rel_error: relative to max(1, |value|).
        where: the key of the largest absolute error.
        tolerance: of the 'relative' or 'absolute' error, as `tolerance_of` says.
        rerun: the rerun that agreed, where the first run did not; else 0 (see `verify_float32`).
    """

    quantity: str
    values: int
    left_out: int
    max_abs_error: float
    max_rel_error: float
    where: str
    tolerance: float
    tolerance_of: str
    passed: bool
    rerun: int = 0


def verify(case: Case, expected: Mapping, floors: Mapping[str, float] | None) -> list[Row]:
    """Computes the case in JAX and compares it with `expected`; `floors` as in `compare`."""
    if floors is not None:
        return verify_float32(case, expected, floors)
    with jax.enable_x64(True):
        return compare(case, expected, jax_quantities(case, jnp.float64, expected), None)


def compare(case: Case, expected: Mapping, actual: Mapping, floors: Mapping[str, float] | None) -> list[Row]:
    """A row for each quantity.

    Args:
        expected, actual: quantities of PyTorch and of JAX; masked elements of `actual` are left out.
        floors: PyTorch's own float32 error of every quantity, or None in double precision.

    Raises:
        InputError: names a value that only one side has.
    """
    actual = {key: value for key, value in actual.items() if case.compares(key)}
    if lacking := sorted(set(actual) ^ set(expected)):
        side = 'PyTorch' if lacking[0] in actual else 'JAX'
        raise InputError(f'{case.name}: {lacking[0]} is missing on the side of {side}')
    errors: dict[str, list[_Error]] = {}
    for key in expected:
        ours, theirs = np.ma.asarray(actual[key], np.float64), np.asarray(expected[key], np.float64)
        if ours.shape != theirs.shape:
            raise InputError(f'{case.name}: {key} has shape {list(theirs.shape)}, expected {list(ours.shape)}')
        errors.setdefault(key.partition('/')[0], []).append(_error(key, ours, theirs))
    return [_row(quantity, errors[quantity], floors) for quantity in sorted(errors, key=QUANTITIES.index)]


class _Error(NamedTuple):
    absolute: float
    relative: float
    key: str
    size: int
    left_out: int


def _error(key: str, ours: np.ma.MaskedArray, theirs: np.ndarray) -> _Error:
    left_out = np.ma.getmaskarray(ours)
    error = np.where(left_out, 0, np.abs(ours.data - theirs))
    error = np.where(np.isfinite(error), error, np.inf)
    relative = error / np.maximum(1, np.abs(theirs))
    return _Error(float(error.max(initial=0)), float(relative.max(initial=0)), key, error.size, int(left_out.sum()))


def _row(quantity: str, errors: list[_Error], floors: Mapping[str, float] | None) -> Row:
    worst = max(errors)
    relative = max(error.relative for error in errors)
    tolerance = TOLERANCE if floors is None else FLOORS * floors[quantity]
    return Row(
        quantity=quantity,
        values=sum(error.size for error in errors),
        left_out=sum(error.left_out for error in errors),
        max_abs_error=worst.absolute,
        max_rel_error=relative,
        where=worst.key,
        tolerance=tolerance,
        tolerance_of='relative' if floors is None else 'absolute',
        passed=(relative if floors is None else worst.absolute) <= tolerance,
    )


def verify_float32(case: Case, expected: Mapping, floors: Mapping[str, float]) -> list[Row]:
    """Compares in single precision, and runs trajectories that disagree again with slightly different images.

    An input of a ReLU may lie within rounding of 0, or two inputs of a max pool within rounding of each other. Then
    rounding decides where the gradient goes, and PyTorch's own error does not cover the difference. To tell this from a
    defect, the images are changed by float32's rounding (6e-8 of their values), up to RERUNS times. A defect disagrees
    every time.
    """
    rows = compare(case, expected, jax_quantities(case, jnp.float32, expected), floors)
    for rerun in range(1, RERUNS + 1):
        failed = {name for name in case.optimizers if not all(row.passed for row in rows if _of(name, row))}
        if not failed:
            break
        rng = np.random.default_rng(rerun)
        moved = (case.xs * (1 + 6e-8 * rng.standard_normal(case.xs.shape))).astype(np.float32)
        again = dataclasses.replace(case, xs=moved)
        other = compare(case, expected, jax_quantities(again, jnp.float32, expected), floors)
        agree = {name for name in failed if all(row.passed for row in other if _of(name, row))}
        rows = [
            dataclasses.replace(new, rerun=rerun) if any(_of(name, old) for name in agree) else old
            for old, new in zip(rows, other, strict=True)
        ]
    return rows


def _of(optimizer: str, row: Row) -> bool:
    return row.quantity.split('_')[0] == optimizer
