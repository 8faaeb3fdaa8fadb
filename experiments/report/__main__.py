"""Turns the records of a grid into a report.

python -m experiments.report --grid=fashion_mnist [--probes=FILE] [--counting=RUN] [--readme=README.md]

Reads `RESULTS/<grid>/<arm>_seed<k>.json`. Writes to `RESULTS/<grid>/report`: report.md with its plots and tables
(CSV), and report.html, which contains everything and works without a network. With --readme, what is between the two
marker lines of that file is replaced by headline, plot and table.

A report of part of a grid has to be asked for (--partial), and begins with what is missing. A registration has none
before the runs of its primary comparisons are complete. Records that different code computed are refused, unless
--allow_mixed_code says that they may be mixed.
"""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablation.registration import read_grid
from experiments.ablation.runs import Run
from experiments.command import Parser, exit_code, make_folder, replace_section, write_file
from experiments.counting.outcomes import Outcomes, read_outcomes
from experiments.probes.results import Probes, merged_probes
from pnn_jax.errors import InputError
from pnn_jax.extras import imports_of_command
from pnn_jax.stats import MIN_RUNS

with imports_of_command('experiments.report', 'experiments'):
    import altair as alt

    from experiments.report import charts, render, tables
    from experiments.report.analysis import (
        Finding,
        accuracies,
        collapsed_arms,
        findings,
        pooled_arms,
        spread_for,
        values_of,
    )
    from experiments.report.counted import Counted, count_all
    from experiments.report.mechanism import check_probes, evidence
    from experiments.report.study import Study, is_collapsed, read_study

AGAIN = 'again'
LONG_RUN = 'counting/long_run'  # outcomes of the run that experiments/counting/long_run.py describes
LONG_RUN_TEXT = ' (LeNet without masks, 2,000 training images of Fashion-MNIST, 150 epochs; no arm of this grid)'
EXPECTED_ORDERS = 100  # random orders of which the mean and the deviation are shown


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.report', __doc__)
    parser.add_argument('--grid', required=True, help='name of a grid, or its TOML file')
    parser.add_path('--results', default='experiments/results', help='folder of the records')
    parser.add_path(
        '--probes',
        action='append',
        default=[],
        help='what experiments.probes wrote; may be repeated; default: RESULTS/<grid>/report/probes.json if there',
    )
    parser.add_path(
        '--again',
        help='folder of the records of runs that were trained a second time; a probed network may be one of these; '
        f'default: RESULTS/{AGAIN} if there',
    )
    parser.add_path(
        '--counting', help=f'the run that is recounted, workdir or record; default: of the grid, or RESULTS/{LONG_RUN}'
    )
    parser.add_argument('--partial', action='store_true', help='report what is there, and say what is missing')
    parser.add_argument('--allow_mixed_code', action='store_true', help='also take records of other or unknown code')
    parser.add_path('--readme', help='file whose section between the markers is replaced')
    return parser.parse_args(argv)


def recounted(study: Study, path: Path | None, results: Path) -> tuple[Outcomes | None, str]:
    """The run that is counted in every way, if there is one, and in words what it is, if it is not one of the grid.

    Args:
        study: its first run of the reference is taken, if its epochs were evaluated on the test images.
        path: a run that a user names; it goes before the others.
        results: where the long run lies that is taken otherwise.

    Raises:
        InputError: the run that the user names was evaluated only once.
    """
    if path is not None:
        outcomes = read_outcomes(path)
        if len(outcomes.correct) < 2:
            raise InputError(f'--counting={path}: has one evaluated epoch; a curve needs at least two')
        if outcomes.split != 'test':
            raise InputError(f'--counting={path}: its epochs were evaluated on {outcomes.split} examples')
        return outcomes, ''
    record = (study.arms.get(study.grid.reference) or study.records)[0]
    if len(record.correct) > 1:
        return Outcomes(record.name, record.correct, None), ''
    long_run = results / LONG_RUN
    return (read_outcomes(long_run), LONG_RUN_TEXT) if long_run.exists() else (None, '')


def draw(
    study: Study, found: list[Finding], probes: Probes | None, counted: Counted | None
) -> dict[str, alt.TopLevelMixin]:
    """Name -> chart, for what the records allow to draw."""
    drawn: dict[str, alt.TopLevelMixin] = {'learning': charts.learning(study)}
    if found:
        drawn['forest'] = charts.forest(found)
    if probes is not None:
        drawn |= {'probes': charts.probes(study, probes), 'position': charts.position(study, probes)}
    if counted is not None:
        drawn['counting'] = charts.counting(counted.values(counted.first, 0), counted.name)
    if len(rows := tables.audit_arms(study)) > 1:
        drawn['gaps'] = charts.gaps(study, rows)
    return drawn


def context_of(
    study: Study, found: list[Finding], probes: Probes | None, outcomes: Outcomes | None, outcomes_text: str
) -> dict[str, Any]:
    """What the templates show, except for the charts."""
    some = study.records[0]
    commits = {(record.summary.get('code') or {}).get('commit') for record in study.records}
    missing = collections.Counter(run.arm.name for run in study.missing)
    counted = outcomes and count_all(outcomes.name, outcomes.correct)
    batch_size = counted and counted.batch_sizes[counted.first]
    reference = study.arms.get(study.grid.reference)
    return {
        'study': study,
        'findings': found,
        'codes': [code[:12] for code in study.codes()],
        'commits': sorted(commit[:12] for commit in commits if commit),
        'devices': {
            device: ', '.join(f'{count} of {arm}' for arm, count in arms.items())
            for device, arms in study.devices().items()
        },
        'missing_by_arm': ', '.join(f'{count} of {arm}' for arm, count in missing.items()),
        'pooled': pooled_in_words(study),
        'draws': probes and probes.settings.get('draws'),
        'test_examples': some.summary['final_test_count'],
        'epochs': len(some.history),
        'min_runs': MIN_RUNS,
        'reference_accuracy': float(np.mean(accuracies(reference))) if reference else float('nan'),
        'collapsed': [record for record in study.records if is_collapsed(record, study.grid.collapse)],
        'arms': tables.arms_table(study),
        'comparisons': tables.comparisons_table(found),
        'robustness': tables.robustness_table(found),
        'gaps': tables.gaps_table(study),
        'evidence': [] if probes is None else evidence(study, probes, found),
        'probes': None if probes is None else tables.probes_table(study, probes),
        'position': None if probes is None else tables.position_table(study, probes),
        'counted': counted,
        'counted_what': outcomes_text,
        'counted_batch_size': batch_size,
        'expected_orders': EXPECTED_ORDERS,
        'counting': outcomes and tables.counting_table(outcomes.correct, batch_size, EXPECTED_ORDERS),
        'published': tables.published_table(),
    }


def pooled_in_words(study: Study) -> str:
    """The pooled standard deviation, and of which arms it is."""
    values, collapsed = values_of(study), collapsed_arms(study)
    arms = pooled_arms(study.grid, values, collapsed)
    if not any(len(values[arm]) > 1 for arm in arms):
        return 'that is not known: no arm without a collapsed run has two runs'
    spread = spread_for(study.grid, values, collapsed, ())
    which = 'all arms that are not exploratory' if arms == study.grid.pooled_arms else ', '.join(arms)
    return f'of {spread.deviation:.2f} points, pooled over {which} ({spread.degrees:g} degrees of freedom)'


def _names(runs: Sequence[Run]) -> str:
    return ', '.join(run.name for run in runs)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    grid = read_grid(args.grid)
    again = args.again or args.results / AGAIN
    if not (again / grid.name).exists():
        if args.again:
            raise InputError(f'--again={again}: there is no folder {grid.name} in it')
        again = None
    study = read_study(args.results, grid, again=again, allow_mixed_code=args.allow_mixed_code)
    if study.missing_primary:
        raise InputError(
            f'{args.results / grid.name}: {len(study.missing_primary)} runs of the primary comparisons are missing; a '
            f'registration has no report before: {_names(study.missing_primary)}'
        )
    if study.missing and not args.partial:
        raise InputError(
            f'{args.results / grid.name}: {len(study.missing)} runs are missing (--partial reports the others): '
            f'{_names(study.missing)}'
        )
    folder = args.results / grid.name / 'report'
    probes_paths = args.probes or [path for path in [folder / 'probes.json'] if path.exists()]
    probes = merged_probes(probes_paths) if probes_paths else None
    if probes is not None:
        check_probes(study, probes)
    found = findings(study)
    context = context_of(study, found, probes, *recounted(study, args.counting, args.results))
    drawn = draw(study, found, probes, context['counted'])
    context |= {'drawn': drawn} | {f'alt_{name}': charts.title_of(chart) for name, chart in drawn.items()}

    document = render.Document()
    context['headline'] = ' '.join(document.markdown('headline.md.jinja', context).split())
    readme = ''
    if args.readme:  # before anything is written, because the file may not have the markers
        links = {'folder': os.path.relpath(folder, args.readme.parent), 'missing_by_arm': ''}  # the report names them
        if found:
            links['readme_table'] = tables.readme_table(found)
        section = document.markdown('readme.md.jinja', context | links)
        readme = replace_section(args.readme, 'results', section.strip())
    text = document.markdown('report.md.jinja', context)
    page = render.page(text, document.tables, drawn, context['counted'])
    make_folder(folder, '--results')
    plots = {f'{name}.png': charts.png(chart) for name, chart in drawn.items()}
    for name, content in {'report.md': text, 'report.html': page, **document.tables, **plots}.items():
        write_file(folder / name, content)
    if args.readme:
        write_file(args.readme, readme)
    print(f'{len(study.records)} runs: {folder / "report.md"}, {folder / "report.html"}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
