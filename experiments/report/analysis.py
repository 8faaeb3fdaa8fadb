"""What the records say: one estimate per row, one difference and verdict per comparison, and which runs collapsed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.ablation.comparisons import Comparison
from experiments.ablation.records import Record
from experiments.report.study import Study
from pnn_jax import stats

DIFFERENCE = (-100.0, 100.0)  # what a difference of two accuracies can be, in points
COLLAPSED_LOSS = 10.0


class Finding(NamedTuple):
    """The result of one comparison.

    Attributes:
        comparison: what was compared.
        first, second: the records of the two rows.
        difference: first minus second, in points of accuracy.
        interval: its 95% interval.
        p_value: of 'no difference', adjusted within the family.
        equivalence_p_value: of 'the difference is at least the margin', adjusted within the family.
        verdict: None where a row has too few runs.
        between: percent of the test images on which a run of the one and a run of the other row disagree (mean).
        within: the same for two runs of one row.
    """

    comparison: Comparison
    first: list[Record]
    second: list[Record]
    difference: stats.Difference
    interval: tuple[float, float]
    p_value: float
    equivalence_p_value: float
    verdict: stats.Verdict | None
    between: float
    within: float

    @property
    def runs(self) -> int:
        """In the smaller of the two rows."""
        return min(len(self.first), len(self.second))

    @property
    def interval_text(self) -> str:
        """The interval in words, or why none is shown: no t interval fits values of which some collapsed."""
        runs = [*self.first, *self.second]
        if count := sum(map(collapsed, runs)):
            return f'{count} of {len(runs)} runs collapsed'
        return f'{self.interval[0]:+.2f} to {self.interval[1]:+.2f}'

    @property
    def verdict_text(self) -> str:
        """The verdict in words, with its margin, or why there is none."""
        if self.verdict is None:
            return f'no verdict: {self.runs} runs of a row, {stats.MIN_RUNS} are needed'
        margin = f'{self.comparison.margin:g} point' + ('' if self.comparison.margin == 1 else 's')
        return f'equivalent within {margin}' if self.verdict == 'equivalent' else self.verdict


def accuracies(records: Iterable[Record]) -> list[float]:
    """Exact accuracy after the last epoch of every run, in percent."""
    return [100 * record.accuracy for record in records]


def compare(study: Study, comparisons: Sequence[Comparison]) -> list[Finding]:
    """All comparisons of which both rows have records, in their order. P-values are Holm's, family by family."""
    found = [
        (comparison, first, second, _difference(accuracies(first), accuracies(second)))
        for comparison in comparisons
        if (first := study.of_row(comparison.first)) and (second := study.of_row(comparison.second))
    ]
    families: dict[str, list[int]] = {}
    for index, (comparison, *_) in enumerate(found):
        families.setdefault(comparison.family, []).append(index)
    p_values, equivalence = [1.0] * len(found), [1.0] * len(found)
    for indices in families.values():
        values = [found[index][3] for index in indices]
        margins = [found[index][0].margin for index in indices]
        adjusted = stats.holm([value.p_value() for value in values])
        adjusted_equivalence = stats.holm(
            [value.equivalence_p_value(margin) for value, margin in zip(values, margins, strict=True)]
        )
        for index, p_value, equivalence_p_value in zip(indices, adjusted, adjusted_equivalence, strict=True):
            p_values[index], equivalence[index] = p_value, equivalence_p_value
    return [_finding(*item, p, tost) for item, p, tost in zip(found, p_values, equivalence, strict=True)]


def _difference(first: Sequence[float], second: Sequence[float]) -> stats.Difference:
    if len(first) + len(second) < 3:  # one run each: nothing is known about the spread
        return stats.Difference(first[0] - second[0], math.inf, 1)
    return stats.difference(first, second)


def _finding(
    comparison: Comparison,
    first: list[Record],
    second: list[Record],
    difference: stats.Difference,
    p_value: float,
    equivalence_p_value: float,
) -> Finding:
    runs = min(len(first), len(second))
    return Finding(
        comparison,
        first,
        second,
        difference,
        difference.interval(bounds=DIFFERENCE),
        p_value,
        equivalence_p_value,
        stats.verdict(difference.estimate, p_value, equivalence_p_value, runs),
        _mean_disagreement(itertools.product(first, second)),
        _mean_disagreement([*itertools.combinations(first, 2), *itertools.combinations(second, 2)]),
    )


def _mean_disagreement(pairs: Iterable[tuple[Record, Record]]) -> float:
    """Mean over pairs of runs; nan where there is none."""
    values = [stats.disagreement(one.correct[-1], other.correct[-1]) for one, other in pairs]
    return float(np.mean(values)) if values else math.nan


def collapsed(record: Record) -> bool:
    """Whether a run learned in training and fails in evaluation, or did not stay finite.

    Fixed before any confirmatory run: a test loss that is above 10 or not finite, or logits that are not; or an
    accuracy at chance although the training accuracy is more than twice that.
    """
    chance = 1 / len(record.summary['per_class'])
    at_chance = record.accuracy < 1.1 * chance and record.history[-1]['train_accuracy'] > 2 * chance
    loss = record.summary['final_test_loss']
    return at_chance or not loss <= COLLAPSED_LOSS or bool(record.summary.get('nonfinite'))
