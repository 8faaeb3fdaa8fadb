"""Turns the results of the grid into a report that a reader understands in a minute.

python -m experiments.report --preset=reduced [--readme=README.md]

Reads `RESULTS/<preset>/<row>_seed<k>.json`; writes `RESULTS/report.md`, with its plots beside it, and `report.html`,
which contains them. With --readme the table between the two marker lines of that file is replaced. Nothing is reported
from part of a grid unless --partial asks for it, and then the report begins with what is missing.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np

from experiments.accounting import plot_curves, shuffled
from experiments.command import exit_code, replace_section
from experiments.grid import PAIRS, PRESETS, SWEEPS, Preset, Row, Run, is_matched, runs_of, unmatched_config
from experiments.published import AUDIT_ROWS, REPLICATIONS
from experiments.records import Record, differences, read_record, record_path, settings
from pnn_jax import accounting
from pnn_jax.errors import InputError

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before pyplot starts)

TEST_ORDERS = 20  # random orders of the test images, on which the historical ways of counting depend
SMOOTHED_BATCH_SIZE = 10  # of the run whose smoothed accuracy the audit compares with the exact one
AUDIT = {row.number: row for row in AUDIT_ROWS}


class Heading(NamedTuple):
    text: str
    level: int


class Paragraph(NamedTuple):
    text: str


class Table(NamedTuple):
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Plot(NamedTuple):
    name: str
    caption: str
    png: bytes


Block = Heading | Paragraph | Table | Plot
Records = dict[Run, Record]


# Reading


def read_grid(results: pathlib.Path, preset: Preset) -> tuple[Records, list[Run]]:
    """All records of a preset, and the runs that have none.

    Raises:
        InputError: a record is damaged, of another grid, or of other test images than the first.
    """
    records, missing = {}, []
    for run in runs_of(preset):
        path = record_path(results, run.row.name, run.seed)
        if not path.exists():
            missing.append(run)
            continue
        record = read_record(path)
        open_fields = {'data.source'} | ({'model.num_filters'} if is_matched(run.row, preset) else set())
        wanted = settings(unmatched_config(run.row, preset, run.seed))
        differing = [line for line in differences(record.config, wanted) if line.partition(':')[0] not in open_fields]
        if differing:
            raise InputError(f'{path}: of another grid; fields that differ: {", ".join(differing)}')
        first = next(iter(records.values()), record)
        if record.test_digest != first.test_digest or record.correct.shape != first.correct.shape:
            raise InputError(
                f'{path}: another data set or number of epochs than {first.row}_seed{first.seed} '
                f'({record.correct.shape} against {first.correct.shape} outcomes)'
            )
        records[run] = record
    return records, missing


def by_row(records: Records) -> dict[Row, list[Record]]:
    """Row -> its records by seed, in the order of the grid."""
    rows: dict[Row, list[Record]] = {}
    for run in sorted(records, key=lambda run: run.seed):
        rows.setdefault(run.row, []).append(records[run])
    return rows


# Figures


class Estimate(NamedTuple):
    """Mean, standard deviation and 95% t interval over seeds, in percent."""

    mean: float
    deviation: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f'{self.mean:.2f}, 95% CI {low:.2f} to {high:.2f}'


def estimate(values: Sequence[float]) -> Estimate:
    values = np.asarray(values, float)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), deviation, accounting.t_interval(values))


def paired(records: Records, first: str, second: str) -> list[tuple[Record, Record]]:
    """The records of two rows that have the same seed."""
    named = {(record.row, record.seed): record for record in records.values()}
    seeds = sorted(seed for row, seed in named if row == first and (second, seed) in named)
    return [(named[first, seed], named[second, seed]) for seed in seeds]


def difference(pairs: Sequence[tuple[Record, Record]]) -> Estimate:
    """Difference of final accuracies, in points; seeds are paired, because they share the order of the images."""
    return estimate([100 * (first.accuracy - second.accuracy) for first, second in pairs])


def verdict(value: Estimate) -> str:
    """What an interval of a difference allows to say."""
    low, high = value.interval
    if math.isnan(low):
        return 'one seed, no interval'
    if low > 0:
        return 'better'
    return 'worse' if high < 0 else 'no difference shown'


# The parts of the report


def answer(records: Records) -> list[Block]:
    """The sentence that people come for."""
    sentences = []
    for subject, first, second in (
        ('One fixed mask per channel changes', 'one_mask', 'no_noise'),
        ('Many fixed masks change', 'shared_masks', 'grouped_no_noise'),
        ('For comparison, one fixed random 3x3 filter per channel changes', 'one_random_filter', 'no_noise'),
        ('Learned 3x3 convolutions change', 'baseline', 'no_noise'),
    ):
        pairs = paired(records, first, second)
        if not pairs:
            continue
        value = difference(pairs)
        low, high = value.interval
        sentences.append(
            f'{subject} the accuracy by **{value.mean:+.2f} points** (95% CI {low:+.2f} to {high:+.2f}, '
            f'{len(pairs)} seeds: {verdict(value)}) against `{second}`, which has '
            f'{pairs[0][1].weights:,} weights where `{first}` has {pairs[0][0].weights:,}.'
        )
    return [Heading('Do noise masks help?', 2), Paragraph(' '.join(sentences) or 'The rows that tell are missing.')]


def accuracy_table(records: Records) -> Table:
    """Every row: what it is, its size, and its accuracy over seeds."""
    rows = []
    for row, of_row in by_row(records).items():
        final = estimate([100 * record.accuracy for record in of_row])
        best = np.mean([100 * record.summary['max_test_accuracy'] for record in of_row])
        published = AUDIT.get(row.audit_row)
        low, high = final.interval
        rows.append(
            (
                f'`{row.name}`',
                (f'{row.audit_row}: ' if published else '') + row.what,
                f'{of_row[0].weights:,}',
                f'{of_row[0].masks:,}',
                str(len(of_row)),
                f'{final.mean:.2f}',
                f'{final.deviation:.2f}',
                f'{low:.2f} to {high:.2f}',
                f'{best:.2f}',
                f'{published.accuracy:.1f}' if published else '',
            )
        )
    headings = 'row|what|weights|mask values|seeds|accuracy (%)|sd|95% CI|best epoch|published (full size)'
    return Table(headings.split('|'), rows)


def pairs_table(records: Records) -> Table:
    """Differences between rows: over seeds, and on the same images by McNemar's exact test for each seed."""
    rows = []
    for question, first, second in PAIRS:
        pairs = paired(records, first, second)
        if not pairs:
            continue
        value = difference(pairs)
        tests = [accounting.mcnemar(one.correct[-1], other.correct[-1]) for one, other in pairs]
        rows.append(
            (
                question,
                f'`{first}` - `{second}`',
                f'{value.mean:+.2f}',
                f'{value.interval[0]:+.2f} to {value.interval[1]:+.2f}',
                verdict(value),
                '; '.join(f'{test.only_first}:{test.only_second} p={test.p_value:.2g}' for test in tests),
            )
        )
    headings = 'question|rows|points|95% CI over seeds|verdict|McNemar per seed (only first : only second right)'
    return Table(headings.split('|'), rows)


def counting_table(records: Records) -> Table:
    """What each historical way of counting would have reported for the same predictions, at the audit's batch sizes."""
    rows = []
    for row, of_row in by_row(records).items():
        if row.audit_row is None:
            continue
        batch_size = AUDIT[row.audit_row].batch_size
        exact = np.array([accounting.exact_accuracy(record.correct).max() for record in of_row])
        cells = []
        for name in ('smoothed_accuracy', 'mean_batch_accuracy', 'floored_batch_accuracy'):
            reported = np.array(
                [
                    [
                        accounting.ESTIMATORS[name](shuffled(record.correct, order), batch_size).max()
                        for record in of_row
                    ]
                    for order in range(TEST_ORDERS)
                ]
            )
            bias = reported - exact
            cells.append(f'{reported.mean():.2f} ({bias.mean():+.2f} +- {bias.std():.2f})')
        rows.append((f'`{row.name}`', str(batch_size), f'{exact.mean():.2f}', *cells))
    return Table(('row', 'batch size', 'exact', 'smoothed', 'mean of batches', 'floored'), rows)


def at_chance(records: Records) -> list[Block]:
    """Names the runs that learned and yet evaluate no better than guessing, which an average hides."""
    names = []
    for run, record in records.items():
        chance = 1 / len(record.summary['per_class'])
        if record.accuracy < 1.1 * chance and record.history[-1]['train_accuracy'] > 2 * chance:
            trained, loss = 100 * record.history[-1]['train_accuracy'], record.summary['final_test_loss']
            names.append(f'`{run.name}` (training accuracy {trained:.1f}%, test loss {loss:.3g})')
    if not names:
        return []
    return [
        Paragraph(
            f'At chance although they trained: {", ".join(names)}. Channels that are constant in training have a '
            'running variance of 0, and in evaluation every such layer multiplies small differences by up to 316, '
            '1 / sqrt(1e-5). The accuracy counts as it is.'
        )
    ]


def replication_table() -> Table:
    rows = [(item.what, item.accuracy, item.where, item.how_it_differs) for item in REPLICATIONS]
    audit = []
    for row in AUDIT_ROWS:
        exact = accounting.undo_flooring(row.accuracy, row.batch_size)
        inferred = '' if round(exact, 1) == row.accuracy else f'; flooring undone about {exact:.1f}'
        how = f'150 epochs, batch {row.batch_size}'
        audit.append((f'row {row.number}: {row.what}', f'{row.accuracy:.1f}{inferred}', 'audit README', how))
    return Table(('what', 'accuracy (%)', 'where', 'how it was obtained'), audit + rows)


def draw(name: str, caption: str, figure: plt.Figure) -> Plot:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format='png', metadata={'Software': None})
    plt.close(figure)
    return Plot(name, caption, buffer.getvalue())


def plot_accuracy(records: Records) -> plt.Figure:
    rows = by_row(records)
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(rows) + 1.2), layout='constrained')
    for position, (row, of_row) in enumerate(reversed(rows.items())):
        accuracies = [100 * record.accuracy for record in of_row]
        value = estimate(accuracies)
        spread = 0 if len(of_row) < 2 else value.interval[1] - value.mean
        colour = 'tab:blue' if row.audit_row else 'tab:green'
        axes.errorbar(value.mean, position, xerr=spread, fmt='o', color=colour, capsize=3)
        axes.plot(accuracies, [position] * len(accuracies), '|', color='black', alpha=0.6)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set(xlabel='test accuracy (%), mean and 95% CI over seeds; |: each seed')
    axes.grid(axis='x', alpha=0.3)
    return figure


def plot_learning(records: Records) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    rows = {row: of_row for row, of_row in by_row(records).items() if row.audit_row}
    for colour, (row, of_row) in zip(plt.cm.tab10.colors, rows.items(), strict=False):
        curves = 100 * np.stack([record.correct.mean(axis=1) for record in of_row])
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), color=colour, label=row.name)
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2)
    axes.set(xlabel='epoch', ylabel='test accuracy (%), mean and range over seeds')
    axes.legend(fontsize='small')
    axes.grid(alpha=0.3)
    return figure


def plot_counting(record: Record) -> plt.Figure:
    correct = shuffled(record.correct)
    curves = {name: estimator(correct, SMOOTHED_BATCH_SIZE) for name, estimator in accounting.ESTIMATORS.items()}
    return plot_curves(curves, SMOOTHED_BATCH_SIZE, f'{record.row}, seed {record.seed}')


def plot_sweeps(records: Records) -> plt.Figure:
    """Accuracy against the noise level and the number of masks, of networks otherwise like row 7."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout='constrained', sharey=True)
    swept = {
        'model.noise_level': ('grouped_no_noise', 'shared_masks', 'level_'),
        'model.num_masks': ('one_mask', 'shared_masks', 'masks_'),
    }
    for axes, (field, (reference, row_7, prefix)) in zip(panels, swept.items(), strict=True):
        points: dict[float, list[float]] = {}
        for record in records.values():
            if record.row in (reference, row_7) or record.row.startswith(prefix):
                points.setdefault(record.config[field], []).append(100 * record.accuracy)
        settings_ = sorted(points)
        values = [estimate(points[setting]) for setting in settings_]
        spread = [0 if math.isnan(value.interval[0]) else value.interval[1] - value.mean for value in values]
        axes.errorbar(settings_, [value.mean for value in values], yerr=spread, marker='o', capsize=3)
        axes.set(xlabel=field.removeprefix('model.').replace('_', ' '))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('test accuracy (%), mean and 95% CI')
    panels[1].set_xscale('log', base=2)
    panels[1].set_title('a single mask is combined over all channels', fontsize='small')
    return figure


def build(records: Records, missing: Sequence[Run], name: str) -> list[Block]:
    """The whole report, part after part."""
    preset = PRESETS[name]
    some = next(iter(records.values()))
    blocks: list[Block] = [Heading(f'The audit: {preset.what}', 1)]
    if missing:
        text = ', '.join(run.name for run in missing)
        blocks.append(Paragraph(f'**Incomplete: {len(missing)} of {len(runs_of(preset))} runs are missing: {text}.**'))
    blocks += answer(records)
    data = some.summary['dataset']
    blocks.append(
        Paragraph(
            f'{preset.what}; exact counts over all {data["test_examples"]:,} test images after the last of '
            f'{len(some.history)} epochs, no epoch picked on the test set. The published figures are of full width, '
            'all of the original CIFAR-10 and 150 epochs, each the best epoch on the test set: compare rows with each '
            f'other, not with that column. Made by `python -m experiments.ablation --preset={name}` and '
            f'`python -m experiments.report --preset={name}`; every figure follows from the files '
            f'`{name}/<row>_seed<k>.json` beside this report.'
        )
    )
    blocks += [Heading('Rows', 2), accuracy_table(records), *at_chance(records)]
    blocks.append(draw('accuracy', 'Accuracy of every row; blue: rows of the audit', plot_accuracy(records)))
    blocks += [Heading('Comparisons', 2), pairs_table(records)]
    blocks.append(
        Paragraph(
            'Positive points: the first row is better. The interval is over seeds; McNemar compares the two final '
            'models of one seed on the same images and says nothing about other seeds. Without noise the masks of a '
            'grouped layer are copies of each other, so that `grouped_no_noise` has as many weights as row 7 but can '
            'use them only as one weight for each output channel.'
        )
    )
    blocks += [Heading('Reported and actual', 2), counting_table(records)]
    blocks.append(
        Paragraph(
            'The same predictions counted in each historical way, each the maximum over epochs, at the batch size of '
            f"the audit's row: mean over seeds and {TEST_ORDERS} random orders of the test images; in parentheses the "
            'difference from the exact count and its standard deviation.'
        )
    )
    original = [record for record in records.values() if record.row == 'original']
    if original:
        caption = "The authors' way of counting and the exact one, for the same predictions"
        blocks.append(draw('reported_actual', caption, plot_counting(original[0])))
    blocks += [Heading('Curves', 2), draw('curves', 'Rows of the audit, epoch by epoch', plot_learning(records))]
    if any(record.row in SWEEPS for record in records.values()):
        caption = 'Networks like row 7 with other noise levels and numbers of masks'
        blocks.append(draw('sweeps', caption, plot_sweeps(records)))
    blocks += [Heading('What others published', 2), replication_table()]
    blocks.append(
        Paragraph(
            'Undoing the flooring is an inference: it assumes that PyTorch 0.4 truncated as 1.0.0 was seen to do, and '
            'independent images.'
        )
    )
    return blocks


# Writing


def markdown_table(table: Table) -> str:
    lines = ['| ' + ' | '.join(row) + ' |' for row in (table.headings, ['---'] * len(table.headings), *table.rows)]
    return '\n'.join(lines)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown, with the plots as files beside it."""
    renderers: dict[type, Callable] = {
        Heading: lambda block: '#' * block.level + ' ' + block.text,
        Paragraph: lambda block: block.text,
        Table: markdown_table,
        Plot: lambda block: f'![{block.caption}](report_{block.name}.png)',
    }
    return '\n\n'.join(renderers[type(block)](block) for block in blocks) + '\n'


def to_html(blocks: Sequence[Block]) -> str:
    """One page with everything in it."""

    def inline(text: str) -> str:
        for mark, tag in (('**', 'b'), ('`', 'code')):
            parts = enumerate(text.split(mark))
            text = ''.join(f'<{tag}>{part}</{tag}>' if index % 2 else part for index, part in parts)
        return text

    def table(block: Table) -> str:
        cells = lambda row, tag: ''.join(f'<{tag}>{inline(html.escape(cell))}</{tag}>' for cell in row)
        body = ''.join(f'<tr>{cells(row, "td")}</tr>' for row in block.rows)
        return f'<table><tr>{cells(block.headings, "th")}</tr>{body}</table>'

    def plot(block: Plot) -> str:
        source = base64.b64encode(block.png).decode()
        caption = html.escape(block.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
        return f'<figure>{image}<figcaption>{caption}</figcaption></figure>'

    renderers: dict[type, Callable] = {
        Heading: lambda block: f'<h{block.level}>{html.escape(block.text)}</h{block.level}>',
        Paragraph: lambda block: f'<p>{inline(html.escape(block.text))}</p>',
        Table: table,
        Plot: plot,
    }
    style = (
        'body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}'
        'td,th{border:1px solid #ccc;padding:.2em .5em;text-align:left}img{max-width:100%}figure{margin:1em 0}'
    )
    body = '\n'.join(renderers[type(block)](block) for block in blocks)
    title = html.escape(blocks[0].text)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def write(path: pathlib.Path, content: str | bytes) -> None:
    try:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror})') from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m experiments.report', description=__doc__.splitlines()[0])
    parser.add_argument('--preset', required=True, choices=PRESETS)
    parser.add_argument('--results', type=pathlib.Path, default=pathlib.Path('experiments/results'))
    parser.add_argument('--partial', action='store_true', help='report what is there, and say what is missing')
    parser.add_argument('--readme', type=pathlib.Path, help='file whose table between the markers is replaced')
    args = parser.parse_args(argv)
    folder = args.results / args.preset
    records, missing = read_grid(folder, PRESETS[args.preset])
    if not records:
        raise InputError(f'{folder}: no results of this grid; python -m experiments.ablation makes them')
    if missing and not args.partial:
        names = ', '.join(run.name for run in missing)
        raise InputError(f'{folder}: {len(missing)} runs are missing (--partial reports the others): {names}')
    blocks = build(records, missing, args.preset)
    readme = None
    if args.readme:
        summary = [Paragraph(f'{PRESETS[args.preset].what}:'), accuracy_table(records), answer(records)[1]]
        if missing:
            summary.insert(0, blocks[1])
        readme = replace_section(args.readme, 'results', to_markdown(summary).strip())
    write(args.results / 'report.md', to_markdown(blocks))
    write(args.results / 'report.html', to_html(blocks))
    for block in blocks:
        if isinstance(block, Plot):
            write(args.results / f'report_{block.name}.png', block.png)
    if readme is not None:
        write(args.readme, readme)
    print(f'{len(records)} runs: {args.results / "report.md"}, {args.results / "report.html"}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
