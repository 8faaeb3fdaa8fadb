"""Markdown from a template, and one HTML page from that Markdown. The page needs no other file and no network."""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import markdown_it
import pandas as pd
import vl_convert

from experiments.report import charts
from experiments.report.analysis import signed
from experiments.report.counted import Counted

TEMPLATES = Path(__file__).with_name('templates')


class Document:
    """Fills the Markdown templates, and remembers the tables in them, which are downloads too.

    Attributes:
        tables: name of a file -> its content (CSV), for every table so far.
    """

    def __init__(self):
        self.tables: dict[str, str] = {}

    def markdown(self, template: str, context: Mapping[str, Any]) -> str:
        """Fills one of the templates. `frame|table(NAME)` in it is a table with a link to NAME.csv."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        environment.filters |= {'table': self._table, 'rows': _rows, 'signed': signed}
        return environment.get_template(template).render(context)

    def _table(self, frame: pd.DataFrame, name: str) -> str:
        self.tables[f'{name}.csv'] = frame.map(lambda text: text.replace('`', '')).to_csv(index=False)
        return f'{_rows(frame)}\n\n[Download {name}.csv]({name}.csv)'


def _rows(frame: pd.DataFrame) -> str:
    """A frame of text as a Markdown table. Numbers stay as they were formatted."""
    return frame.to_markdown(index=False, disable_numparse=True)


def page(text: str, tables: Mapping[str, str], drawn: Mapping[str, alt.TopLevelMixin], counted: Counted | None) -> str:
    """The Markdown as one HTML page.

    Args:
        text: begins with the title, '# ...'.
        tables: file name, as in the Markdown -> content of the CSV file.
        drawn: name -> chart; NAME.png in the Markdown becomes the interactive chart.
        counted: what the controls above the chart 'counting' choose from.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=True
    )
    body = markdown_it.MarkdownIt('commonmark', {'html': False}).enable('table').render(text)
    body = body.replace('<blockquote>', '<div class="headline">').replace('</blockquote>', '</div>')
    # A table that is wider than the screen is scrolled; with `tabindex` also by keyboard.
    region = '<div class="table" tabindex="0" role="region" aria-label="table"><table>'
    body = body.replace('<table>', region).replace('</table>', '</table></div>')
    for name, content in tables.items():
        data = base64.b64encode(content.encode()).decode()
        body = body.replace(f'href="{name}"', f'download="{name}" href="data:text/csv;charset=utf-8;base64,{data}"')
    for name, one in drawn.items():
        title = html.escape(charts.title_of(one), quote=True)
        chart = f'<div class="chart" id="chart-{name}" role="img" aria-label="{title}"></div>'
        if name == 'counting' and counted:
            chart = environment.get_template('controls.html.jinja').render(counted=counted) + chart
        body = re.sub(f'<p><img src="{name}\\.png"[^>]*></p>', lambda _, chart=chart: chart, body)
    contents = {
        'charts': {name: charts.spec(chart) for name, chart in drawn.items()},
        'counted': counted and counted._asdict(),
    }
    return environment.get_template('page.html.jinja').render(
        title=text.partition('\n')[0].lstrip('# '),
        body=body,
        contents=_inside_script(json.dumps(contents)),
        library=_inside_script(_library()),
        script=(TEMPLATES / 'page.js').read_text(),
    )


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    return vl_convert.javascript_bundle()


def _inside_script(text: str) -> str:
    """JSON or JavaScript that cannot end the script element it is in; a backslash before '/' changes nothing."""
    return re.sub('</(?=script)', r'<\\/', text, flags=re.IGNORECASE)
