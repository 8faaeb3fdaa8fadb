"""The runs of a grid, in the order in which they are trained, and the one look that may ask for more of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.ablation.records import Record
from experiments.ablation.registration import Arm, Grid
from pnn_jax.errors import InputError
from pnn_jax.stats import pooled_spread


class Run(NamedTuple):
    """One run of a grid."""

    arm: Arm
    seed: int
    mask_seed: int

    @property
    def name(self) -> str:
        return f'{self.arm.name}_seed{self.seed}'


class LookResult(NamedTuple):
    """What the blinded look of a grid found.

    Attributes:
        deviation: standard deviation between runs, pooled over the arms, in points.
        runs: of each arm that was looked at: of the look where the deviation is above its bound, otherwise 0 for the
            number that the arm has anyway.
    """

    deviation: float
    runs: int


def take_look(grid: Grid, records: Mapping[str, Record]) -> LookResult | None:
    """The look of a grid; None where it has none, or where runs that are looked at have no record yet.

    Only the spread of each arm about its own mean is computed. Differences between arms have no influence on it, so
    that the tests keep their level. It follows from the records alone, and can be repeated at any time.

    Args:
        records: by the name of the run.
    """
    if grid.look is None:
        return None
    names = [[run.name for run in _runs_of_arm(grid, arm, grid.look.after)] for arm in map(grid.arm, grid.look.arms)]
    if not all(name in records for of_arm in names for name in of_arm):
        return None
    accuracies = [[100 * records[name].accuracy for name in of_arm] for of_arm in names]
    deviation = pooled_spread(accuracies).deviation
    return LookResult(deviation, grid.look.runs if deviation > grid.look.pooled_sd_above else 0)


def runs_of(grid: Grid, look: LookResult | None = None) -> list[Run]:
    """All runs in the order in which they are trained.

    Arms of primary comparisons come first, late arms last; among these, the first run of every arm, then the second.

    Args:
        look: from `take_look`; adds the runs that it asks for, at the end.
    """
    of_arm = {arm.name: _runs_of_arm(grid, arm, arm.runs) for arm in grid.arms}
    primary = grid.primary_arms
    planned = sorted(
        (run for runs in of_arm.values() for run in runs),
        key=lambda run: (run.arm.late, run.arm.name not in primary, run.seed - grid.seed),
    )
    if look and look.runs:
        arms = map(grid.arm, grid.look.arms)
        planned += [run for arm in arms for run in _runs_of_arm(grid, arm, look.runs)[arm.runs :]]
    return planned


def _runs_of_arm(grid: Grid, arm: Arm, count: int) -> list[Run]:
    return [Run(arm, grid.seed + number, grid.mask_seed + number) for number in range(count)]


def parse_shard(text: str) -> tuple[int, int]:
    """'i/n' -> (i, n), with 0 <= i < n.

    Raises:
        InputError: it is anything else.
    """
    index, slash, count = text.partition('/')
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f'--shard={text}: must be i/n with 0 <= i < n, such as 0/4')
    return int(index), int(count)


def choose_runs(grid: Grid, runs: Sequence[Run], shard: str, arms: str) -> list[Run]:
    """The runs of one shard, in order.

    Args:
        runs: of the grid.
        shard: 'i/n' for every n-th run, starting with the i-th (from 0).
        arms: names of arms, or of single runs, with commas between; '' for all.

    Raises:
        InputError: the shard is not of this form, or the grid has no such arm or run.
    """
    if arms:
        names = arms.split(',')
        known = [arm.name for arm in grid.arms]
        every = runs_of(grid, LookResult(math.inf, grid.look.runs) if grid.look else None)
        for name in names:
            if name not in known and name not in {run.name for run in every}:
                raise InputError(
                    f'--arms: {name!r} is not one of {", ".join(known)}, nor a run of the grid, such as {every[0].name}'
                )
        runs = [run for run in runs if run.arm.name in names or run.name in names]
    index, count = parse_shard(shard)
    return list(runs[index::count])
