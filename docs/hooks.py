"""What the site shows besides its pages: results from `experiments/results`, and the messages that the code contains.

A page asks for them by comments:

    <!-- include: FILE NAME -->           what is between the lines `NAME: begin` and `NAME: end` of a Markdown file
    <!-- messages: FILE FILE ... -->      every InputError and RunError of these modules

The examples of docstrings become code blocks.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = 'experiments/results'

INCLUDE = re.compile(r'<!-- include: (\S+) (\w+) -->')
MESSAGES = re.compile(r'<!-- messages: ([^>]+) -->')
EXIT_CODES = {'InputError': 2, 'UnknownHomeError': 2, 'RunError': 1}


class Message(NamedTuple):
    """A message of the code, with `{name}` where a value is filled in, and the exit code that comes with it."""

    text: str
    exit_code: int


def messages_of(path: Path) -> list[Message]:
    """The messages of all errors that a module makes, in the order of the file; those made elsewhere are left out."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args)
    found = (
        (call.lineno, Message(text, EXIT_CODES[call.func.id]))
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in EXIT_CODES and (text := ''.join(_parts(call.args[0])))
    )
    return [message for _, message in sorted(found) if re.search(r'\w{2}', re.sub(r'\{.*?\}', '', message.text))]


def _parts(node: ast.expr) -> Iterator[str]:
    """The pieces of a message: constants as they are, and what is filled in as `{name}`."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            for value in values:
                yield from _parts(value)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.FormattedValue(value=ast.Attribute(attr=name)):
            yield f'{{{name}}}'
        case ast.FormattedValue():
            yield '{...}'
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from _parts(left)
            yield from _parts(right)


def message_list(files: Sequence[str]) -> str:
    """The messages of some modules as a Markdown list."""
    messages = dict.fromkeys(message for file in files for message in messages_of(ROOT / file))
    lines = [f'- `` {message.text} ``' + (' (exit code 1)' if message.exit_code == 1 else '') for message in messages]
    return '\n'.join(lines)


def section(path: Path, name: str) -> str:
    """What is between '<!-- NAME: begin -->' and '<!-- NAME: end -->' in a file.

    Raises:
        ValueError: the file does not have these two lines.
    """
    _, rest = path.read_text().split(f'<!-- {name}: begin -->')
    return rest.split(f'<!-- {name}: end -->')[0].strip()


def with_examples_as_code(text: str) -> str:
    """Makes code blocks of lines that begin with `>>>`, and of what they print. Markdown takes them for quotations."""
    return re.sub(r'^(>>> .*(?:\n.+)*)', r'```pycon\n\1\n```', text, flags=re.MULTILINE)


def on_config(config):
    """Adds `with_examples_as_code` to what turns Markdown into HTML, docstrings included."""
    from markdown import Extension
    from markdown.preprocessors import Preprocessor

    class Examples(Preprocessor):
        def run(self, lines):
            return with_examples_as_code('\n'.join(lines)).split('\n')

    class ExamplesExtension(Extension):
        def extendMarkdown(self, md):
            md.preprocessors.register(Examples(md), 'examples', priority=100)  # before code blocks are looked for

    config.markdown_extensions.append(ExamplesExtension())
    return config


def on_files(files, config):
    """Adds the reports, tables and plots of the experiments to the site, under `results/`."""
    from mkdocs.structure.files import File  # here, because the tests use the functions above without mkdocs

    folder = ROOT / RESULTS
    for path in sorted(folder.rglob('*')):
        if path.suffix in ('.md', '.png', '.csv', '.html'):
            files.append(File.generated(config, f'results/{path.relative_to(folder)}', abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in what a page asks for, and points its links to the results at their place on the site."""
    markdown = INCLUDE.sub(lambda match: section(ROOT / match[1], match[2]), markdown)
    markdown = MESSAGES.sub(lambda match: message_list(match[1].split()), markdown)
    return re.sub(rf'\]\((\.\./)?{RESULTS}/', '](results/', markdown)
