"""Turns the records of a grid into a report.

python -m experiments.report --preset=reduced [--readme=README.md]

Reads `RESULTS/<preset>/<row>_seed<k>.json`. Writes `RESULTS/report.md` with its plots beside it, and `report.html`,
which contains everything. With --readme, the table between the two marker lines of that file is replaced.

A report of part of a grid has to be asked for (--partial), and begins with what is missing. Likewise for records that
were computed by different code (--allow_mixed_code).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.ablation import comparisons
from experiments.ablation.presets import PRESETS
from experiments.ablation.rows import ROWS
from experiments.command import Parser, exit_code, replace_section, write_file
from experiments.plots import to_bytes
from experiments.report import figures, render, tables
from experiments.report.analysis import collapsed, compare
from experiments.report.study import Study, read_study
from pnn_jax.errors import InputError
from pnn_jax.stats import MIN_RUNS


def context_of(study: Study, plan: comparisons.Plan) -> dict:
    """What the templates show, except for the plots."""
    some = next(iter(study.records.values()))
    findings = compare(study, plan.comparisons)
    return {
        'study': study,
        'codes': [code[:12] for code in study.codes()],
        'test_examples': some.summary['dataset']['test_examples'],
        'epochs': len(some.history),
        'min_runs': MIN_RUNS,
        'test_orders': tables.TEST_ORDERS,
        'rows': tables.rows_table(study, plan.reference),
        'collapsed': [record for record in study.records.values() if collapsed(record)],
        'findings': findings,
        'comparisons': tables.comparisons_table(findings),
        'counting': tables.counting_table(study),
        'published': tables.published_table(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.report', __doc__)
    parser.add_argument('--preset', required=True, choices=PRESETS)
    parser.add_path('--results', default='experiments/results', help='folder of the records')
    parser.add_path('--comparisons', default=comparisons.DEFAULT, help='which rows are compared (TOML)')
    parser.add_argument('--partial', action='store_true', help='report what is there, and say what is missing')
    parser.add_argument('--allow_mixed_code', action='store_true', help='also take records of other or unknown code')
    parser.add_path('--readme', help='file whose table between the markers is replaced')
    args = parser.parse_args(argv)
    plan = comparisons.read_plan(args.comparisons, [row.name for row in ROWS])
    study = read_study(args.results, args.preset, allow_mixed_code=args.allow_mixed_code)
    if study.missing and not args.partial:
        names = ', '.join(run.name for run in study.missing)
        folder = args.results / args.preset
        raise InputError(f'{folder}: {len(study.missing)} runs are missing (--partial reports the others): {names}')

    context = context_of(study, plan)
    readme = ''
    if args.readme:  # before anything is written, because the file may not have the markers
        section = render.markdown('readme.md.jinja', context)
        readme = replace_section(args.readme, 'results', section.strip())
    drawn = figures.all_figures(study, context['findings'])
    plots = {f'report_{name}.png': to_bytes(figure) for name, figure in drawn.items()}
    text = render.markdown('report.md.jinja', context | {'plots': drawn})
    files = {'report.md': text, 'report.html': render.page(text, plots), **plots}
    for name, content in files.items():
        write_file(args.results / name, content)
    if args.readme:
        write_file(args.readme, readme)
    print(f'{len(study.records)} runs: {args.results / "report.md"}, {args.results / "report.html"}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
