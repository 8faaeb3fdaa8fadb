"""Markdown from a template, and one HTML page from that Markdown."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import jinja2
import markdown_it
import pandas as pd

TEMPLATES = Path(__file__).with_name('templates')


def markdown(template: str, context: Mapping) -> str:
    """Fills one of the Markdown templates."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters['table'] = table
    return environment.get_template(template).render(context)


def table(frame: pd.DataFrame) -> str:
    """A frame of text as a Markdown table. Numbers stay as they were formatted."""
    return frame.to_markdown(index=False, disable_numparse=True)


def page(text: str, plots: Mapping[str, bytes]) -> str:
    """The Markdown as one HTML page that needs no other file.

    Args:
        text: begins with the title, '# ...'.
        plots: file name, as in the Markdown -> content of the PNG file.
    """
    body = markdown_it.MarkdownIt('commonmark', {'html': False}).enable('table').render(text)
    for name, content in plots.items():
        body = body.replace(f'src="{name}"', f'src="data:image/png;base64,{base64.b64encode(content).decode()}"')
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=True
    )
    title = text.partition('\n')[0].lstrip('# ')
    return environment.get_template('page.html.jinja').render(title=title, body=body) + '\n'
