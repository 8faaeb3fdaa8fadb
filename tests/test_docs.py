"""README and the pages of docs/: code blocks run, command lines parse, messages are complete, the site builds."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest
from absl import flags

from experiments.ablation.registration import read_grid
from pnn_jax import main as command_line
from pnn_jax.convert import read_config

ROOT = Path(__file__).parent.parent
PAGES = ['README.md', *(f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md')))]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
COMMANDS = PROJECT['scripts']  # 'pnn-train' -> 'pnn_jax.main:command'
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block: its language, the file that it says it is ('' for none), and its text."""

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*groups) for groups in FENCE.findall((ROOT / page).read_text())]


# --- code blocks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder in which `configs/` is that of the checkout."""
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    matplotlib.use('agg')
    return tmp_path


def test_programs_import_only_what_a_wheel_has():
    """In the checkout, `configs` and `experiments` can be imported too. Config files may import `configs`."""
    programs = [(page, block.text) for page in PAGES for block in blocks(page) if block.language == 'python']
    cells = json.loads((ROOT / 'docs' / 'notebook.ipynb').read_text())['cells']
    programs += [('notebook', ''.join(cell['source'])) for cell in cells if cell['cell_type'] == 'code']
    found = re.compile(r'^ *(?:from|import) (?:configs|experiments|tests)\b.*', re.MULTILINE)
    assert len(programs) > 20
    assert [
        (page, found.findall(text)) for page, text in programs if 'def get_config' not in text and found.search(text)
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', [page for page in PAGES if {'python', 'sh', 'toml'} & {b.language for b in blocks(page)}]
)
def test_blocks_of_a_page_run_in_their_order(page, folder, monkeypatch):
    namespace = {'__name__': page}
    for number, block in enumerate(blocks(page)):
        if block.title:
            (folder / block.title).write_text(block.text)
        if block.language == 'python':
            exec(compile(block.text, f'{page}, block {number}', 'exec'), namespace)
        elif block.language == 'toml':
            tomllib.loads(block.text)
        elif block.language == 'sh':
            check_shell(block.text, monkeypatch)


class Parsed(BaseException):
    """A program has parsed its arguments and would now begin its work."""


def check_shell(text: str, monkeypatch) -> None:
    """Checks the syntax of a shell block and the arguments of every command in it; runs none of them."""
    done = subprocess.run(['bash', '-n'], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in commands(text):
        check_command(command, monkeypatch)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell block, as lists of words without quotes."""
    lexer = shlex.shlex(text.replace('\\\n', ' ').replace('\n', '\n; '), posix=True, punctuation_chars=True)
    lexer.wordchars += ':,[]$()@'
    words: list[str] = []
    for word in [*lexer, ';']:
        if word in (';', '&&', 'do', 'done'):
            if words:
                yield words
            words = []
        else:
            words.append(word)


# Programs that are not of this project, and take arguments that cannot be checked here.
FOREIGN = ('.', 'apt-get', 'cd', 'docker', 'export', 'for', 'mkdir')


def check_command(command: Sequence[str], monkeypatch) -> None:
    program, *arguments = command
    if Path(program).name.startswith('python') and arguments[:1] == ['-m']:
        check_module(arguments[1], arguments[2:], monkeypatch)
    elif program in COMMANDS:
        check_module(COMMANDS[program].partition(':')[0], arguments, monkeypatch)
    elif program == 'pip':
        extras = re.search(r'\.\[(.*)\]', ' '.join(arguments))
        assert not extras or set(extras[1].split(',')) <= set(PROJECT['optional-dependencies']), command
    elif program == 'make':
        assert re.search(rf'^{arguments[0]}:', (ROOT / 'Makefile').read_text(), re.MULTILINE), command
    elif program == 'srun':
        start = next(i for i, word in enumerate(arguments) if not word.startswith('-'))
        check_command(arguments[start:], monkeypatch)
    elif program == 'gcloud':
        (inner,) = (word.removeprefix('--command=') for word in arguments if word.startswith('--command='))
        check_shell(inner, monkeypatch)
    elif program == 'sbatch':
        script, _shared, _parts, *rest = (word for word in arguments if not word.startswith('--array='))
        assert (ROOT / script).is_file()
        check_module('experiments.ablation', rest, monkeypatch)
    elif program == 'sky':
        text = (ROOT / arguments[-1]).read_text()
        assert all(f'{word.split("=")[0]}:' in text for word in arguments if word.startswith('PART='))
    elif program.startswith('experiments/'):
        assert (ROOT / program).is_file()
    else:
        assert program in FOREIGN, command


def check_module(module: str, arguments: Sequence[str], monkeypatch) -> None:
    """Checks the arguments of `python -m module`."""
    if module in ('venv', 'pip'):
        return
    if module == 'pnn_jax.main':
        is_config = lambda word: re.match(r'--config[.=]', word) is not None
        read_config([word for word in arguments if is_config(word)])
        check_flags([word for word in arguments if not is_config(word)])
        return
    found = importlib.util.find_spec(f'{module}.__main__') if _is_package(module) else None
    program = importlib.import_module(f'{module}.__main__' if found else module)
    options, rest = parse_only(program, arguments, monkeypatch)
    if hasattr(options, 'grid'):
        read_grid(options.grid)
    if rest:
        assert module in ('pnn_jax.convert', 'experiments.verify'), rest
        read_config(rest)


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    return spec.submodule_search_locations is not None


def check_flags(arguments: Sequence[str]) -> None:
    """Checks --name=value for the flags that `pnn_jax.main` defines."""
    own = {flag.name: flag for flag in flags.FLAGS.flags_by_module_dict()[command_line.__name__]}
    for word in arguments:
        name, equals, value = word.removeprefix('--').partition('=')
        flag = own[name if name in own else name.removeprefix('no')]
        if equals:
            flag.parser.parse(value)
        else:
            assert flag.boolean, word


def parse_only(program, arguments: Sequence[str], monkeypatch) -> tuple[argparse.Namespace, list[str]]:
    """Calls `program.main(arguments)` up to the end of its argument parser; returns the options and the rest."""
    original = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, *args, **kwargs):
        raise Parsed(*original(self, *args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_known_args', parse_known_args)
        with pytest.raises(Parsed) as parsed:
            program.main(list(arguments))
    return parsed.value.args


@pytest.mark.parametrize(
    'command',
    [
        'python -m pnn_jax.main --config=configs/quickstart.py --config.model.num_mask=16',
        'python -m pnn_jax.main --config=configs/quickstart.py --work_dir=runs',
        'python -m experiments.ablation --grid=smoke --resluts=runs',
        "pip install -e '.[trian]'",
        'make quickstrat',
        'sbatch --array=0-9 experiments/schedulers/grid.sbatch /shared 10 --grid=fool',
        'quickstart --now',
    ],
)
def test_a_wrong_command_line_would_be_found(command, folder, monkeypatch):
    with pytest.raises((AssertionError, KeyError, ValueError, SystemExit)):
        check_shell(command, monkeypatch)


# --- links, messages, the site ----------------------------------------------------------------------------------------


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r'\]\(([^)#]+)[^)]*\)', (ROOT / 'README.md').read_text())
    assert len(links) > 5
    assert [link for link in links if not link.startswith('https://') and not (ROOT / link).exists()] == []


@pytest.fixture
def hooks():
    spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs' / 'hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_messages_of_every_module_are_on_the_page_once(hooks):
    text = (ROOT / 'docs' / 'messages.md').read_text()
    listed = ' '.join(hooks.MESSAGES.findall(text)).split()
    raising = [path.relative_to(ROOT) for path in sorted((ROOT / 'pnn_jax').rglob('*.py')) if hooks.messages_of(path)]
    assert sorted(listed) == sorted(set(listed))
    assert [str(path) for path in raising if str(path) not in listed] == []


def test_messages_are_read_from_the_code(hooks, tmp_path):
    (tmp_path / 'module.py').write_text(
        "raise InputError('a' 'b')\n"
        "raise RunError(f'{self.path} is {len(x)} bytes: {why}' + ', too long')\n"
        "error = InputError(f'{reason}')\nraise ValueError('a defect')\n"
    )
    assert hooks.messages_of(tmp_path / 'module.py') == [('ab', 2), ('{path} is {...} bytes: {why}, too long', 1)]


def test_a_section_is_included_from_its_first_to_its_last_line(hooks, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('text\n<!-- one: begin -->\n\nmore\nlines\n\n<!-- one: end -->\n')
    assert hooks.section(page, 'one') == 'more\nlines'
    with pytest.raises(ValueError, match='unpack'):
        hooks.section(page, 'two')


def test_examples_of_docstrings_become_code(hooks):
    text = 'Text.\n\n>>> f(1)\n2\n>>> f(2)\n3\n\nMore text.\n'
    code = 'Text.\n\n```pycon\n>>> f(1)\n2\n>>> f(2)\n3\n```\n\nMore text.\n'
    assert hooks.with_examples_as_code(text) == code
    assert hooks.with_examples_as_code('a >>> b\n> quoted\n') == 'a >>> b\n> quoted\n'


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', f'--site-dir={tmp_path / "site"}']
    environment = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name: path.read_text() for path in (tmp_path / 'site').rglob('index.html')}
    assert 'share_masks' in pages['reference'] and 'metrics.jsonl' in pages['messages']
    assert 'points' in pages['answer'] and '<!-- include' not in pages['answer']
