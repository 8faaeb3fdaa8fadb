"""The record of the code that computed a result: it changes when that code does, and not otherwise."""

import re
import shutil
import subprocess
from importlib import metadata

import pytest

from pnn_jax.run import provenance as module
from pnn_jax.run.provenance import code_digest


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the project's sources, which the functions then look at."""
    for path in (module.PACKAGE, module.CONFIGS):
        shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'README.md').write_text('readme')
    monkeypatch.setattr(module, 'PACKAGE', tmp_path / 'pnn_jax')
    monkeypatch.setattr(module, 'CONFIGS', tmp_path / 'configs')
    module.provenance.cache_clear()
    yield tmp_path
    module.provenance.cache_clear()


def git(tree, *arguments) -> str:
    command = ['git', '-C', str(tree), '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def provenance_now():
    module.provenance.cache_clear()
    return module.provenance()


def test_digest_is_of_the_code_alone(tree):
    before = code_digest()
    assert re.fullmatch('[0-9a-f]{64}', before)
    (tree / 'README.md').write_text('another readme')
    (tree / 'tests').mkdir()
    (tree / 'tests' / 'test_x.py').write_text('')
    (tree / 'pnn_jax' / 'notes.md').write_text('')
    assert code_digest() == before


@pytest.mark.parametrize('name', ['pnn_jax/train.py', 'pnn_jax/run/resume.py', 'configs/default.py'])
def test_digest_changes_with_every_kind_of_code(tree, name):
    before = code_digest()
    content = (tree / name).read_bytes()
    (tree / name).write_bytes(content + b'\n')
    changed = code_digest()
    (tree / name).write_bytes(content)
    assert changed != before == code_digest()
    (tree / name).rename(tree / name.replace('.py', '_2.py'))
    assert code_digest() not in (before, changed)


def test_digest_tells_where_one_file_ends_and_the_next_begins(tree):
    (tree / 'configs' / 'zz.py').write_bytes(b'ab')
    (tree / 'configs' / 'zzz.py').write_bytes(b'c')
    before = code_digest()
    (tree / 'configs' / 'zz.py').write_bytes(b'a')
    (tree / 'configs' / 'zzz.py').write_bytes(b'bc')
    assert code_digest() != before


def test_commit_is_that_of_the_checkout_and_clean_while_its_code_is(tree):
    found = provenance_now()
    assert found['version'] == metadata.version('pnn-jax') and found['sha256'] == code_digest()
    assert found['commit'] is None and found['clean'] is None  # not a checkout
    git(tree, 'init', '-q')
    git(tree, 'add', '-A')
    git(tree, 'commit', '-qm', 'x')
    assert provenance_now()['commit'] == git(tree, 'rev-parse', 'HEAD')
    assert provenance_now()['clean'] is True
    (tree / 'README.md').write_text('another readme')
    assert provenance_now()['clean'] is True
    (tree / 'pnn_jax' / 'train.py').write_text('')
    assert provenance_now()['clean'] is False
