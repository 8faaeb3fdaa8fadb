"""What is a mask to a trained network? The evidence for and against "a code of the position", in sentences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from experiments.ablation.records import Record
from experiments.probes.results import DEFAULTS, ProbedRun, Probes
from experiments.report.analysis import Finding, signed
from experiments.report.study import Study, trained_on
from experiments.report.tables import losses_of
from pnn_jax.errors import InputError

SAME_RUN = 0.001  # as a fraction of the images: rounding on another machine may change that many predictions
# What permuted tiles cost, as a part of what other masks cost: the rule that grids/fashion_mnist.toml registers.
POSITION_ALONE, MORE_THAN_POSITION = 0.8, 0.5
MASK, NONE, FLAT, RAMP = 'one_mask', 'no_noise', 'flat_mask', 'ramp_mask'


def check_probes(study: Study, probes: Probes) -> None:
    """Refuses probes of other networks than those of the study's runs, or of the same runs trained again.

    Raises:
        InputError: a probed run has no record, was probed on other data, or is not the network of its record.
    """
    records = {record.name: record for record in study.records}
    for name, run in probes.runs.items():
        if name not in records:
            raise InputError(f'--probes: {name} has no record in this report')
        found = [_difference(run, record) for record in (records[name], study.again.get(name)) if record is not None]
        if all(found):
            raise InputError(f'--probes: {name} {found[-1]}')


def _difference(run: ProbedRun, record: Record) -> str:
    """Why a probed network is not that of a record, or ''."""
    trained = run.counts[0]
    if run.weights != record.summary.get('weights_sha256', run.weights):
        return 'was probed with other weights than its record names'
    if run.data != record.data_digest:
        return 'was probed on another data set than its record names'
    correct = record.summary['final_test_correct']
    if trained.count != record.correct.shape[1] or abs(trained.correct - correct) > SAME_RUN * trained.count:
        return (
            f'has {trained.correct} of {trained.count} correct unchanged, its record {correct} of '
            f'{record.correct.shape[1]}; it is another network'
        )
    return ''


def evidence(study: Study, probes: Probes, findings: list[Finding]) -> list[str]:
    """Sentences on what masks are, from the probes of trained networks and from the arms with other kinds of masks."""
    if not probes.of_arm(MASK):
        return []
    sentences = (
        _trained_again(study, probes),
        _from_probes(study, probes),
        _from_arms(findings),
        _conclusion(study, probes, findings),
    )
    return [*itertools.chain(*sentences)]


def _trained_again(study: Study, probes: Probes) -> Iterator[str]:
    """That probed networks are not those of the comparisons, where that is so."""
    records = {record.name: record for record in study.records}
    again = {name: run for name, run in probes.runs.items() if _difference(run, records[name])}
    if not again:
        return
    devices = sorted({trained_on(study.again[name]) for name in again})
    first, second = (np.mean([100 * one[name].accuracy for name in again]) for one in (records, study.again))
    yield (
        f'{len(again)} of the {len(probes.runs)} probed networks are runs of the comparisons that were trained again '
        f'with the same seeds (on {", ".join(devices)}). Their mean accuracy is {second:.2f}%, and was {first:.2f}%.'
    )


def _from_probes(study: Study, probes: Probes) -> Iterator[str]:
    lost = lambda arm, change: _mean_loss(study, probes, arm, change)
    other, tiles = lost(MASK, 'other masks'), lost(MASK, 'tiles permuted')
    yield (
        f'With other masks, a trained `{MASK}` loses {_points(other)} points, batch norms recalibrated. So the weights '
        f'{"depend" if other > 1 else "hardly depend"} on the masks that they were trained with.'
    )
    share = f', which is {100 * tiles / other:.0f}% of that' if other > 1 else ''
    without = f' `{NONE}` loses {_points(lost(NONE, "tiles permuted"))}.' if probes.of_arm(NONE) else ''
    yield (
        f'With its own masks and the tiles permuted, it loses {_points(tiles)} points{share}. If masks were only a '
        f'code of the position, it would lose as much as with other masks.{without}'
    )
    if probes.of_arm(NONE):
        read = {arm: _read_from_last_map(probes, arm) for arm in (MASK, NONE)}
        chance = 100 / probes.of_arm(MASK)[0].position[-1].tiles
        yield (
            f'From the last map the tile is named correctly in {read[MASK]:.1f}% with masks and in {read[NONE]:.1f}% '
            f'without (chance: {chance:.1f}%). What `{FLAT}` has in the table says how much of the difference comes '
            'from the masks as a code of the position.'
        )


def _mean_loss(study: Study, probes: Probes, arm: str, change: str) -> float:
    """Points that a change costs with recalibrated batch norms, mean over the runs of an arm."""
    return float(np.mean(losses_of(study, probes, arm, change)['recalibrated']))


def _points(value: float) -> str:
    """One digit, and never '-0.0'."""
    return f'{round(value, 1) + 0.0:.1f}'


def _read_from_last_map(probes: Probes, arm: str) -> float:
    """Percent of the tiles that are named correctly from the last map, mean over runs."""
    last = [run.position[-1] for run in probes.of_arm(arm)]
    return float(np.mean([100 * one.correct / one.count for one in last]))


def _from_arms(findings: list[Finding]) -> Iterator[str]:
    """What masks without a position, and masks that are nothing but a position, do instead."""
    meanings = {
        FLAT: 'which has no position',
        RAMP: 'which is nothing but a code of the position',
    }
    for finding in findings:
        arms = finding.comparison.arms
        if len(arms) == 2 and MASK in arms and (other := meanings.keys() & set(arms)):
            kind = other.pop()
            difference = finding.estimate if arms[0] == MASK else -finding.estimate
            yield (
                f'Against `{kind}`, {meanings[kind]}, a mask changes accuracy by {signed(difference)} points '
                f'({finding.judgement.verdict_text}).'
            )


def _conclusion(study: Study, probes: Probes, findings: list[Finding]) -> Iterator[str]:
    """What a mask is by the rule of a registration with an arm of ramps, or what is missing for it."""
    if not study.grid.registration or RAMP not in {arm.name for arm in study.grid.arms}:
        return
    verdicts = {one.comparison.arms: one.judgement for one in findings}
    against_ramp = verdicts.get((MASK, RAMP))
    missing = []
    if against_ramp is None or against_ramp.verdict is None:
        missing.append(f'the comparison with `{RAMP}`')
    if len(probes.of_arm(MASK)) < len(study.arms[MASK]):
        missing.append(f'the probes of all runs of `{MASK}`')
    if probes.settings != DEFAULTS:
        missing.append('probes with the default settings')
    if missing or against_ramp is None:
        yield f'By the registered rule nothing is concluded: {", ".join(missing)} would be needed.'
        return
    other, tiles = (_mean_loss(study, probes, MASK, change) for change in ('other masks', 'tiles permuted'))
    if other < 1:
        yield f'By the registered rule **it is open what a mask is**: other masks cost only {_points(other)} points.'
        return
    share = tiles / other
    if share < MORE_THAN_POSITION:
        what = 'a mask is more than a code of the position'
    elif share >= POSITION_ALONE and against_ramp.verdict in ('equivalent', 'worse'):
        what = 'a mask is a code of the position and nothing else'
    else:
        what = 'it is open whether a mask is more than a code of the position'
    yield (
        f'By the registered rule (permuted tiles cost {100 * share:.0f}% of what other masks cost; against `{RAMP}`: '
        f'{against_ramp.verdict_text}), **{what}**.'
    )
