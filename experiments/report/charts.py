"""The charts of the report, in Vega-Lite: interactive in the HTML page, and as PNG files for the Markdown.

A chart is a function that returns an `altair` chart one column wide. Its width is that of the page it is in.
"""

from __future__ import annotations

import textwrap
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from experiments.probes.results import BATCH_NORMS, Probes
from experiments.published import AUDIT_ROWS
from experiments.report.analysis import Finding, accuracies
from experiments.report.study import Study
from experiments.report.tables import losses_of, probed_arms
from pnn_jax.stats import t_interval

PNG_WIDTH = 640
BLUE, RED, GREEN, GREY = '#1f77b4', '#d62728', '#2ca02c', '#777777'
COUNTED = {'exact': 'black', 'smoothed': RED, 'mean batch': BLUE, 'floored batch': '#ff7f0e'}
SOURCE = 'counted'  # the name of the data that the controls of the page replace
VERDICT_WIDTH = 25  # characters of a verdict in a line of a label
LINES = "split(datum.label, '|')"  # a label of several lines


def png(chart: alt.TopLevelMixin) -> bytes:
    """The chart as the content of a PNG file."""
    return vl_convert.vegalite_to_png(_styled(chart.properties(width=PNG_WIDTH)).to_dict(), scale=1.5)


def spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart for a page: as wide as the element that it is put into."""
    return _styled(chart.properties(width='container')).to_dict()


def _styled(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    """Text of a size that can be read on a phone, and titles that begin at the left edge."""
    return (
        chart.configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight='normal')
        .configure_legend(labelFontSize=12, titleFontSize=12)
        .configure_title(fontSize=14, subtitleFontSize=12, subtitleColor='#444', anchor='start', frame='bounds')
    )


def title_of(chart: alt.TopLevelMixin) -> str:
    """The title of a chart, for readers who do not see it."""
    return chart.title.text


def forest(findings: list[Finding]) -> alt.LayerChart:
    """Every difference with its interval, a dot a run, and the band of differences that do not matter."""
    label = lambda finding: '|'.join([*_minus(finding), *textwrap.wrap(finding.judgement.verdict_text, VERDICT_WIDTH)])
    row = alt.Y(
        'comparison:N',
        sort=[label(finding) for finding in findings],
        title=None,
        axis=alt.Axis(labelExpr=LINES, labelLimit=240, labelOffset=-20, ticks=False),
        scale=alt.Scale(padding=0),
    )
    estimates = [_estimate(finding) | {'comparison': label(finding)} for finding in findings]
    runs = [
        {'comparison': label(finding), 'points': round(value - np.mean(accuracies(finding.arms[1])), 3)}
        for finding in findings
        if finding.comparison.kind != 'interaction'
        for value in accuracies(finding.arms[0])
    ]
    base = alt.Chart(alt.Data(values=estimates)).encode(y=row)
    tooltip = ['question:N', 'points:Q', 'interval:N']
    x = alt.X('minus_margin:Q', title='difference (percentage points)')
    band = base.mark_bar(color=GREEN, opacity=0.13).encode(x=x, x2='margin:Q')
    limit = base.mark_tick(color=GREEN, thickness=2, size=40).encode(x='limit:Q')
    dots = alt.Chart(alt.Data(values=runs)).mark_point(color=GREY, size=28, yOffset=12)
    interval = base.mark_rule(color=BLUE, size=3).encode(x='low:Q', x2='high:Q', tooltip=tooltip)
    estimate = base.mark_point(color=BLUE, filled=True, size=90, opacity=1).encode(x='points:Q', tooltip=tooltip)
    chart = alt.layer(band, limit, _zero(), dots.encode(x='points:Q', y=row), interval, estimate)
    return chart.properties(
        height=76 * len(findings),
        title=_title(
            'Difference between two arms',
            'Blue: mean and 95% interval. Circles: runs of the first arm, minus the mean of the second. '
            'Green area: too small to matter. Green line: the margin, where the question is whether the first arm is '
            'worse by that much.',
        ),
    )


def _estimate(finding: Finding) -> dict[str, Any]:
    """A finding as data of the forest plot."""
    low, high = (None, None) if finding.interval is None else (round(value, 3) for value in finding.interval)
    margin = finding.comparison.margin
    one_sided = finding.comparison.kind == 'non_inferiority'
    return {
        'question': finding.comparison.question,
        'points': round(finding.estimate, 3),
        'margin': None if one_sided else margin,
        'minus_margin': None if one_sided else -margin,
        'limit': -margin if one_sided else None,
        'low': low,
        'high': high,
        'interval': finding.interval_text,
    }


def _zero() -> alt.Chart:
    """A vertical line at zero."""
    return alt.Chart(alt.Data(values=[{'x': 0}])).mark_rule(color='black', size=1).encode(x='x:Q')


def _minus(finding: Finding) -> tuple[str, ...]:
    """Which arms are compared, in lines."""
    first, second, *versus = finding.comparison.arms
    if not versus:
        return first, f'- {second}'
    return f'({first}', f'- {second})', f'- ({versus[0]}', f'- {versus[1]})'


def probes(study: Study, found: Probes) -> alt.LayerChart:
    """What every change costs the trained networks: mean over runs with its interval, and a dot a run."""
    means, runs = _losses(study, found)
    arms = list(dict.fromkeys(entry['arm'] for entry in means))
    axis = alt.Axis(labelLimit=130, grid=True, tickBand='extent')
    encoding = {
        'y': alt.Y('change:N', sort=found.changes, title=None, axis=axis),
        'yOffset': alt.YOffset('arm:N', sort=arms),
        'color': alt.Color('arm:N', sort=arms, title='arm', legend=_legend()),
    }
    lost = alt.X('lost:Q', title='accuracy lost (percentage points)')
    norms = alt.Scale(domain=list(BATCH_NORMS), range=['circle', 'diamond'])
    shape = alt.Shape('batch norm:N', title='batch norm', legend=_legend(), scale=norms)
    base = alt.Chart(alt.Data(values=means)).encode(**encoding)
    dots = alt.Chart(alt.Data(values=runs)).mark_point(filled=True, size=14, opacity=0.35)
    interval = base.mark_rule(size=1.5).encode(x='low:Q', x2='high:Q')
    mean = base.mark_point(size=60, strokeWidth=2, opacity=1)
    mean = mean.encode(x=lost, shape=shape, tooltip=['arm:N', 'change:N', 'batch norm:N', 'lost:Q'])
    chart = alt.layer(_zero(), dots.encode(x=lost, shape=shape, **encoding), interval, mean)
    return chart.properties(
        height=12 * len(arms) * len(found.changes),
        title=_title(
            'What a change costs a trained network',
            'Large: mean over runs, with its 95% interval. Small: runs. Far right: the network needs what was changed.',
        ),
    )


def _losses(study: Study, found: Probes) -> tuple[list[dict], list[dict]]:
    """The data of the chart of probes: a mean for every arm, change and batch norm, and the values of every run."""
    means, runs = [], []
    for name in _charted(study, found):
        for change in found.changes:
            for norm, losses in losses_of(study, found, name, change).items():
                entry = {'arm': name, 'change': change, 'batch norm': norm}
                runs += [entry | {'lost': round(value, 3)} for value in losses]
                if losses:
                    low, high = t_interval(losses, bounds=(-100, 100)) if len(losses) > 1 else (None, None)
                    means.append(entry | {'lost': round(float(np.mean(losses)), 3), 'low': low, 'high': high})
    return means, runs


def _charted(study: Study, found: Probes) -> list[str]:
    """The probed arms without exploratory ones, which have a run each; more arms than that are too many colours."""
    return [name for name in probed_arms(study, found) if not study.grid.arm(name).exploratory]


def position(study: Study, found: Probes) -> alt.LayerChart:
    """How well position can be read from the maps of a network, from the stem to the last stage."""
    values = [
        {'arm': name, 'map': one.map.split('_')[0], 'correct': 100 * one.correct / one.count, 'chance': 100 / one.tiles}
        for name in _charted(study, found)
        for run in found.of_arm(name)
        for one in run.position
    ]
    maps = list(dict.fromkeys(entry['map'] for entry in values))
    arms = _charted(study, found)
    base = alt.Chart(alt.Data(values=values))
    x = alt.X('map:O', sort=maps, title='features behind', axis=alt.Axis(labelAngle=0))
    y = alt.Y('mean(correct):Q', title='tile named correctly (%)', scale=alt.Scale(domain=[0, 100]))
    lines = base.mark_line(point=True).encode(x=x, y=y, color=alt.Color('arm:N', sort=arms, legend=_legend()))
    chance = base.mark_rule(strokeDash=[4, 4]).encode(y='mean(chance):Q')
    return alt.layer(lines, chance).properties(
        height=260,
        title=_title(
            'Can the position be read from the features?',
            'A linear classifier on held-out images; mean over runs. Dashed: chance.',
        ),
    )


def gaps(study: Study, name_of: dict[int, str]) -> alt.LayerChart:
    """The distance of arms from the arm without noise: ours and those that the audit published."""
    reference = study.grid.arm(study.grid.reference).network.audit_row
    published = {row.number: row.accuracy for row in AUDIT_ROWS}
    ours = np.mean(accuracies(study.arms[study.grid.reference]))
    values = []
    for number, name in name_of.items():
        label = f'row {number}|{name}'
        values.append(
            {'row': label, 'who': 'audit, CIFAR-10, 150 epochs', 'gap': published[number] - published[reference]}
        )
        values.append({'row': label, 'who': 'here', 'gap': np.mean(accuracies(study.arms[name])) - ours})
    row = alt.Y('row:N', title=None, axis=alt.Axis(labelExpr=LINES))
    points = alt.Chart(alt.Data(values=values)).mark_point(filled=True, size=90, opacity=1)
    points = points.encode(
        x=alt.X('gap:Q', title='minus the row without noise (points)', axis=alt.Axis(tickCount=6)),
        y=row,
        color=alt.Color('who:N', title=None, legend=_legend()),
    )
    return alt.layer(_zero(), points).properties(
        height=40 * len(name_of), title=_title('Distance from the row without noise')
    )


def learning(study: Study) -> alt.LayerChart:
    """Accuracy of every arm, epoch by epoch: mean and range over runs."""
    values, split = [], 'test'
    for name, records in study.arms.items():
        if study.grid.arm(name).exploratory:
            continue
        split = 'validation' if 'validation_accuracy' in records[0].history[0] else 'test'
        curves = 100 * np.array([[line[f'{split}_accuracy'] for line in record.history] for record in records])
        columns = zip(curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0), strict=True)
        values += [
            {'arm': name, 'epoch': epoch, 'mean': round(mean, 3), 'low': round(low, 3), 'high': round(high, 3)}
            for epoch, (mean, low, high) in enumerate(columns, start=1)
        ]
    arms = list(dict.fromkeys(entry['arm'] for entry in values))
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X('epoch:Q', axis=alt.Axis(tickMinStep=1)), color=alt.Color('arm:N', sort=arms, legend=_legend())
    )
    scale = alt.Scale(zero=False)
    lines = base.mark_line(strokeWidth=2).encode(
        y=alt.Y('mean:Q', title=f'{split} accuracy (%)', scale=scale), tooltip=['arm:N', 'epoch:Q', 'mean:Q']
    )
    ranges = base.mark_area(opacity=0.12).encode(y=alt.Y('low:Q', scale=scale), y2='high:Q')
    return alt.layer(ranges, lines).properties(
        height=320, title=_title('Learning curves', f'Exact {split} accuracy: mean and range over runs.')
    )


def counting(values: list[dict], run: str) -> alt.Chart:
    """One run in every way of counting, epoch by epoch; `values` are those of `counted.Counted.values`."""
    source = alt.Data(values=values, name=SOURCE)
    color = alt.Color(
        'counted:N',
        sort=list(COUNTED),
        title=None,
        scale=alt.Scale(domain=list(COUNTED), range=list(COUNTED.values())),
        legend=_legend(),
    )
    return (
        alt.Chart(source)
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X('epoch:Q', axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False)),
            y=alt.Y('accuracy:Q', title='test accuracy (%)', scale=alt.Scale(zero=False)),
            color=color,
            strokeWidth=alt.condition("datum.counted == 'exact'", alt.value(3), alt.value(1.4)),
            tooltip=['counted:N', 'epoch:Q', 'accuracy:Q'],
        )
        .properties(
            height=300, title=_title('Reported and actual', f'The same predictions of {run}, counted in four ways.')
        )
    )


def _title(text: str, subtitle: str = '') -> alt.TitleParams:
    """A title, and a subtitle in lines that fit a phone."""
    return alt.TitleParams(text, subtitle=textwrap.wrap(subtitle, 50))


def _legend() -> alt.Legend:
    return alt.Legend(orient='bottom', columns=2, labelLimit=150, symbolOpacity=1)
