"""The package as users install it: its configs by name, its commands, its extras, and what the wheel holds."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module

import pytest

import pnn_jax
from pnn_jax.config_flag import find_config, shipped_configs
from pnn_jax.errors import InputError
from pnn_jax.extras import imports_of_command
from pnn_jax.run.log import WRITERS
from pnn_jax.run.provenance import code_digest

ROOT = pathlib.Path(__file__).parent.parent


def test_every_config_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.stem for path in (ROOT / 'configs').glob('*.py') if path.stem != '__init__')
    assert shipped_configs() == names
    assert [find_config(name) for name in names] == [ROOT / 'configs' / f'{name}.py' for name in names]
    (tmp_path / 'quickstart.py').write_text('')
    assert find_config('quickstart.py') == pathlib.Path('quickstart.py')  # a file comes first


@pytest.mark.parametrize(
    'name, hint',
    [
        ('noise_mask', ' (did you mean noise_masks?)'),
        ('configs/noise_masks.py', ' (did you mean noise_masks?)'),  # as in a checkout, but started elsewhere
        ('mine/ablatoin.py', ' (did you mean mine/ablation.py?)'),
        ('nothing', ''),
        ('__init__', ''),
    ],
)
def test_config_that_is_not_there_is_one_line_with_the_nearest(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'ablation.py').write_text('')
    with pytest.raises(InputError) as error:
        find_config(name)
    assert str(error.value) == f'--config={name}: there is no such file{hint}'


def test_command_without_its_libraries_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, imports_of_command('pnn-train'):
        raise ModuleNotFoundError("No module named 'absl'", name='absl')
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: pnn-train needs absl: pip install 'pnn-jax[train]'\n"


@pytest.mark.parametrize('name', ['pnn_jax.no_such_module', None])
def test_defect_of_the_package_is_not_reported_as_a_missing_library(name):
    with pytest.raises(ModuleNotFoundError), imports_of_command('pnn-train'):
        raise ModuleNotFoundError('a defect', name=name)


def test_extras_that_messages_name_exist():
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    pages = [*(ROOT / 'pnn_jax').rglob('*.py'), ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]
    named = [name for page in pages for name in re.findall(r"pnn-jax\[([\w,-]+)\]'", page.read_text())]
    assert len(named) >= 5
    named += [writer.library for writer in WRITERS if writer.library]
    assert {extra for names in named for extra in names.split(',')} <= set(extras)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
    """A wheel of this checkout."""
    hatchling = import_module('hatchling.build')
    folder = tmp_path_factory.mktemp('dist')
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        return folder / hatchling.build_wheel(str(folder))
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if '.dist-info/' not in name}
        info = {name.partition('.dist-info/')[2]: archive.read(name).decode() for name in archive.namelist()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / 'pnn_jax').rglob('*.py')}
    configs = {f'pnn_jax/configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
    assert files == package | configs | {'pnn_jax/py.typed'}
    assert f'\nVersion: {pnn_jax.__version__}\n' in info['METADATA']
    for line in info['entry_points.txt'].splitlines()[1:]:
        module, _, function = line.partition(' = ')[2].partition(':')
        assert callable(getattr(import_module(module), function)), line


PROGRAM = """
import json, sys
from ml_collections import config_flags
from pnn_jax import __file__, __version__
from pnn_jax.config_flag import bind_neighbours, find_config, shipped_configs
from pnn_jax.run.log import WRITERS
from pnn_jax.run.provenance import code_digest

file = find_config('noise_masks')
bind_neighbours(file)
import configs.noise_masks
config = configs.noise_masks.get_config()
found = {'package': __file__, 'digest': code_digest(), 'config': str(file), 'num_masks': config.model.num_masks}
print(json.dumps(found | {'names': shipped_configs(), 'version': __version__}))
"""


@pytest.mark.slow
def test_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    (tmp_path / 'empty').mkdir()

    def python(*arguments, path=()):
        environment = os.environ | {'PYTHONPATH': os.pathsep.join(map(str, [*path, tmp_path / 'site']))}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / 'empty',
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    done = python('-c', PROGRAM)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        'package': str(tmp_path / 'site' / 'pnn_jax' / '__init__.py'),
        'digest': code_digest(),
        'config': str(tmp_path / 'site' / 'pnn_jax' / 'configs' / 'noise_masks.py'),
        'num_masks': 64,
        'names': shipped_configs(),
        'version': pnn_jax.__version__,
    }

    (tmp_path / 'missing').mkdir()
    (tmp_path / 'missing' / 'absl.py').write_text('raise ModuleNotFoundError("No module named absl", name="absl")')
    done = python('-m', 'pnn_jax.main', '--config=quickstart', path=[tmp_path / 'missing'])
    assert (done.returncode, done.stderr) == (2, "error: pnn-train needs absl: pip install 'pnn-jax[train]'\n")
