"""What the records say: for every comparison a difference, its intervals and a verdict.

`judge_all` needs accuracies alone. So its error rates can be checked on simulated studies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.ablation.records import Record
from experiments.ablation.registration import Comparison, Grid
from experiments.report.study import Study, is_collapsed, recalibrated
from pnn_jax import stats

WEIGHTS = {'difference': (1, -1), 'non_inferiority': (1, -1), 'interaction': (1, -1, -1, 1)}  # of Comparison.arms
# What a weighted sum of accuracies in percent can be, in points.
BOUNDS = {'difference': (-100.0, 100.0), 'non_inferiority': (-100.0, 100.0), 'interaction': (-200.0, 200.0)}


def signed(value: float, digits: int = 2) -> str:
    """'+0.31', '-1.20', and '+0.00' for everything that rounds to zero."""
    return f'{round(value, digits) + 0.0:+.{digits}f}'


class Judgement(NamedTuple):
    """The statistics of one comparison.

    Attributes:
        comparison: what was compared.
        difference: of the arms, in points.
        p_value: adjusted within the family. Of 'there is no difference'; for non-inferiority, of 'the first arm is
            worse by the margin or more'.
        margin_p_value: adjusted likewise. Of 'the difference is at least the margin'; for non-inferiority, of 'the
            first arm is worse by less than the margin'.
        verdict: None where an arm has too few runs.
        within_margin: of a difference: there is evidence that it is below the margin, whatever the verdict.
        below_zero: the whole interval of the difference is below zero, and no run of its arms collapsed.
    """

    comparison: Comparison
    difference: stats.Difference
    p_value: float
    margin_p_value: float
    verdict: stats.Verdict | None
    within_margin: bool
    below_zero: bool

    @property
    def verdict_text(self) -> str:
        """The verdict in words, with the margin where it matters."""
        if self.verdict is None:
            return f'no verdict: below {stats.MIN_RUNS} runs'
        margin = f'{self.comparison.margin:g} point' + ('' if self.comparison.margin == 1 else 's')
        if self.comparison.kind == 'non_inferiority':
            words = {
                'equivalent': f'not worse by {margin} or more',
                'worse': f'worse by {margin} or more',
                'inconclusive': f'inconclusive whether worse by {margin} or more',
            }
            if self.below_zero:
                words['inconclusive'] = f'worse; whether by {margin} or more is inconclusive'
        elif self.comparison.kind == 'interaction':
            words = {
                'equivalent': f'equivalent within {margin}',
                'better': 'the first is more positive',
                'worse': 'the first is more negative',
            }
        else:
            words = {'equivalent': f'equivalent within {margin}'}
            if self.within_margin:
                words |= {word: f'{word}, by less than {margin}' for word in ('better', 'worse')}
        return words.get(self.verdict, self.verdict)


def judge_all(grid: Grid, values: Mapping[str, stats.Values], collapsed: Collection[str] = ()) -> list[Judgement]:
    """All comparisons of which every arm has runs, in the order of the grid.

    Args:
        grid: says what is compared, and how.
        values: name of an arm -> accuracy of each of its runs, in percent.
        collapsed: names of the arms with collapsed runs. They are left out of the pooled spread, which would otherwise
            hide every difference; a comparison with such an arm uses the spread of its own arms.
    """
    found = [one for one in grid.comparisons if all(len(values.get(arm, ())) for arm in one.arms)]
    differences = [
        stats.contrast(
            [values[arm] for arm in comparison.arms],
            WEIGHTS[comparison.kind],
            spread=spread_for(grid, values, collapsed, comparison.arms),
        )
        for comparison in found
    ]
    tests = [_tests(*pair) for pair in zip(found, differences, strict=True)]
    adjusted = _adjusted(grid, [one.family for one in found], tests)
    return [
        Judgement(
            comparison,
            difference,
            *p_values,
            _verdict(comparison, difference, *p_values, grid, values),
            within_margin=p_values[1] < grid.analysis.level,
            below_zero=difference.interval(grid.analysis.confidence)[1] < 0
            and set(comparison.arms).isdisjoint(collapsed),
        )
        for comparison, difference, p_values in zip(found, differences, adjusted, strict=True)
    ]


def pooled_arms(grid: Grid, values: Mapping[str, stats.Values], collapsed: Collection[str]) -> list[str]:
    """Names of the arms whose spread is pooled."""
    return [arm for arm in grid.pooled_arms if arm in values and arm not in collapsed]


def spread_for(
    grid: Grid, values: Mapping[str, stats.Values], collapsed: Collection[str], arms: Sequence[str]
) -> stats.Spread:
    """The spread with which some arms are compared: the pooled one, or their own, by the rule of the grid."""
    own = grid.analysis.spread == 'pair' or not set(arms).isdisjoint(collapsed)
    return _spread([values[arm] for arm in (arms if own else pooled_arms(grid, values, collapsed))])


def _spread(arms: Sequence[stats.Values]) -> stats.Spread:
    """The pooled spread; infinite where no arm has two runs, because nothing is known about it then."""
    if all(len(arm) < 2 for arm in arms):
        return stats.Spread(math.inf, 1)
    return stats.pooled_spread(arms)


def _tests(comparison: Comparison, difference: stats.Difference) -> tuple[float, float]:
    """The two p-values of a `Judgement`, before they are adjusted."""
    if comparison.kind == 'non_inferiority':
        return (
            difference.noninferiority_p_value(comparison.margin),
            difference.inferiority_p_value(comparison.margin),
        )
    return difference.p_value(), difference.equivalence_p_value(comparison.margin)


def _adjusted(grid: Grid, families: Sequence[str], tests: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Holm's adjustment of both kinds of p-values, family by family. Tests that are still to come count as members."""
    adjusted = [(1.0, 1.0)] * len(tests)
    for family in dict.fromkeys(families):
        members = [index for index, name in enumerate(families) if name == family]
        to_come = [1.0] * (sum(one.family == family for one in grid.comparisons) - len(members))
        p_values, margin_p_values = (
            stats.holm([*(tests[index][kind] for index in members), *to_come]) for kind in (0, 1)
        )
        for place, index in enumerate(members):
            adjusted[index] = p_values[place], margin_p_values[place]
    return adjusted


def _verdict(
    comparison: Comparison,
    difference: stats.Difference,
    p_value: float,
    margin_p_value: float,
    grid: Grid,
    values: Mapping[str, stats.Values],
) -> stats.Verdict | None:
    runs, level = min(len(values[arm]) for arm in comparison.arms), grid.analysis.level
    if comparison.kind != 'non_inferiority':
        return stats.verdict(difference.estimate, p_value, margin_p_value, runs, level)
    if runs < stats.MIN_RUNS:
        return None
    if p_value < level:
        return 'equivalent'
    return 'worse' if margin_p_value < level else 'inconclusive'


# --- records ----------------------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """The result of one comparison.

    Attributes:
        judgement: its statistics.
        arms: the records of each of its arms.
        interval: of the difference; None where runs collapsed, because no t interval fits such values.
        bootstrap: the second interval, from resampled runs and test images.
        collapsed: number of collapsed runs.
        between: percent of the test images on which a run of the first and a run of the second arm disagree (mean).
        within: the same for two runs of one arm.
        sensitivity: the statistics with recalibrated batch norms; None where the records do not have them.
    """

    judgement: Judgement
    arms: list[list[Record]]
    interval: tuple[float, float] | None
    bootstrap: tuple[float, float]
    collapsed: int
    between: float
    within: float
    sensitivity: Judgement | None

    @property
    def comparison(self) -> Comparison:
        return self.judgement.comparison

    @property
    def estimate(self) -> float:
        return self.judgement.difference.estimate

    @property
    def interval_text(self) -> str:
        """The interval in words, or why none is shown."""
        if self.interval is None:
            return f'{self.collapsed} of {sum(map(len, self.arms))} runs collapsed'
        return f'{signed(self.interval[0])} to {signed(self.interval[1])}'


def accuracies(records: Iterable[Record]) -> list[float]:
    """Exact test accuracy of the final network of every run, in percent."""
    return [100 * record.accuracy for record in records]


def values_of(study: Study) -> dict[str, list[float]]:
    """Name of every arm that is compared -> the accuracies of its runs, in percent."""
    return {name: accuracies(records) for name, records in study.compared.items()}


def collapsed_arms(study: Study) -> set[str]:
    """Names of the arms with collapsed runs, of those that are compared."""
    rule = study.grid.collapse
    return {name for name, records in study.compared.items() if any(is_collapsed(one, rule) for one in records)}


def findings(study: Study) -> list[Finding]:
    """Every comparison of the grid of which all arms have records; of a registration, all of their records."""
    grid, arms = study.grid, study.compared
    judgements = judge_all(grid, values_of(study), collapsed_arms(study))
    sensitivity = dict.fromkeys(range(len(judgements)))
    if all(recalibrated(record) is not None for records in arms.values() for record in records):
        values = {name: [recalibrated(record) for record in records] for name, records in arms.items()}
        diverged = {name for name, records in arms.items() if any('diverged' in one.summary for one in records)}
        sensitivity = dict(enumerate(judge_all(grid, values, diverged)))  # other collapsed runs are mended by then
    return [_finding(study, judgement, sensitivity[index]) for index, judgement in enumerate(judgements)]


def _finding(study: Study, judgement: Judgement, sensitivity: Judgement | None) -> Finding:
    comparison, analysis = judgement.comparison, study.grid.analysis
    arms = [study.analysed[name] for name in comparison.arms]
    collapsed = sum(is_collapsed(record, study.grid.collapse) for records in arms for record in records)
    interval = judgement.difference.interval(analysis.confidence, bounds=BOUNDS[comparison.kind])
    return Finding(
        judgement=judgement,
        arms=arms,
        interval=None if collapsed else interval,
        bootstrap=stats.crossed_bootstrap(
            [np.stack([record.correct[-1] for record in records]) for records in arms],
            WEIGHTS[comparison.kind],
            confidence=analysis.confidence,
            draws=analysis.bootstrap_draws,
            seed=analysis.bootstrap_seed,
        ),
        collapsed=collapsed,
        between=_mean_disagreement(itertools.product(*arms[:2])),
        within=_mean_disagreement([pair for arm in arms[:2] for pair in itertools.combinations(arm, 2)]),
        sensitivity=sensitivity,
    )


def _mean_disagreement(pairs: Iterable[tuple[Record, Record]]) -> float:
    """Mean over pairs of runs; nan where there is none."""
    values = [stats.disagreement(one.correct[-1], other.correct[-1]) for one, other in pairs]
    return float(np.mean(values)) if values else math.nan
