"""Configs by name or file, in Python and as flags, and the lines for flags that are wrong."""

import sys
import types

import pytest
from absl import flags

from pnn_jax import load_config
from pnn_jax.config_flag import define_config_flag, parse_error
from pnn_jax.convert import read_config
from pnn_jax.errors import InputError
from pnn_jax.run.provenance import CONFIGS

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
MINE = """
from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.model.noise_level = 2.0
    return config
"""


def test_a_config_in_python_is_that_of_the_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(MINE)
    for name in ('quickstart', 'noise_masks', 'mine.py'):
        assert load_config(name) == read_config([f'--config={name}']).config
    assert load_config('mine.py').model.noise_level == 2.0
    assert load_config(tmp_path / 'mine.py') == load_config('mine.py')


def test_each_call_gives_a_config_of_its_own():
    changed = load_config('quickstart')
    changed.model.num_masks += 1
    assert load_config('quickstart').model.num_masks == changed.model.num_masks - 1
    with pytest.raises(AttributeError, match='num_masks'):
        changed.model.num_mask = 3


@pytest.mark.parametrize('name', ['quickstart', 'mine.py'])
def test_a_package_configs_of_the_calling_program_stays(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(MINE)
    theirs, part = types.ModuleType('configs'), types.ModuleType('configs.quickstart')
    theirs.__path__ = [str(tmp_path / 'elsewhere')]
    monkeypatch.setitem(sys.modules, 'configs', theirs)
    monkeypatch.setitem(sys.modules, 'configs.quickstart', part)
    before = {name: module for name, module in sys.modules.items() if name.startswith('configs')}
    assert load_config(name).model.name == 'lenet'
    assert {name: module for name, module in sys.modules.items() if name.startswith('configs')} == before


def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'^config=quickstar: there is no such file \(did you mean quickstart\?\)$'):
        load_config('quickstar')
    (tmp_path / 'empty.py').write_text('')
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)  # ml_collections would load into the same module
    for load in (load_config, lambda name: read_config([f'--config={name}'])):
        with pytest.raises(InputError, match=r'empty\.py: the file has no function get_config$'):
            load(tmp_path / 'empty.py')


@pytest.mark.parametrize(
    'lines, expected',
    [
        (
            'config.model.noise_levle = 2.0; config.note = 1; return config',
            'unknown config field: model.noise_levle (did you mean model.noise_level?), note',
        ),
        ('config.num_epochs = 2', 'get_config() returned None, not a config; is its `return` missing?'),
        ('return {}', 'get_config() returned {}, not a config; is its `return` missing?'),
    ],
)
def test_a_file_with_fields_that_no_config_has_is_refused(tmp_path, lines, expected):
    file = tmp_path / 'mine.py'
    file.write_text(f'from configs import quickstart\ndef get_config():\n  config = quickstart.get_config(); {lines}\n')
    for load, what in ((load_config, 'config'), (lambda name: read_config([f'--config={name}']), '--config')):
        with pytest.raises(InputError) as error:
            load(file)
        assert str(error.value) == f'{what}={file}: {expected}'


def test_a_project_may_add_fields_in_a_default_of_its_own(tmp_path):
    (tmp_path / 'configs').mkdir()
    default = (CONFIGS / 'default.py').read_text()
    (tmp_path / 'configs' / 'default.py').write_text(
        default.replace('return config', 'config.mine = 1\n    return config')
    )
    (tmp_path / 'mine.py').write_text('from configs import default\nget_config = default.get_config\n')
    assert load_config(tmp_path / 'mine.py').mine == 1


@pytest.mark.parametrize(
    'line, expected',
    [
        ("import os; os.environ['NO_SUCH_VARIABLE']", "KeyError: 'NO_SUCH_VARIABLE'"),
        ('import math; math.foo', "AttributeError: module 'math' has no attribute 'foo'"),
    ],
)
def test_what_a_file_raises_has_its_place(tmp_path, line, expected):
    file = tmp_path / 'mine.py'
    file.write_text(f'def get_config():\n    {line}\n')
    values = flags.FlagValues()
    command = ['', f'--config={file}']
    define_config_flag(flag_values=values, argv=command)
    with pytest.raises(flags.Error) as error:
        values(command)
    assert str(parse_error(error.value)) == f'--config: {expected} ({file}, line 2)'


@pytest.mark.parametrize(
    'argument, expected',
    [
        ('--config.model.num_masks=x', '--config.model.num_masks=x: must be an integer'),
        ('--config.data.train_examples=1.5', '--config.data.train_examples=1.5: must be an integer'),
        ('--config.model.noise_level=x', '--config.model.noise_level=x: must be a number'),
        ('--config.model.share_masks=maybe', '--config.model.share_masks=maybe: must be true or false'),
        ('--config.foo.bar=1', "unknown config field: 'foo'"),
        (
            '--config.model.num_mask=3',
            'unknown config field: \'num_mask\' Did you mean "num_masks" instead of "num_mask"?',
        ),
    ],
)
def test_wrong_flags_are_named_with_what_is_allowed(argument, expected):
    with pytest.raises(InputError) as error:
        read_config(['--config=quickstart', argument])
    assert str(error.value) == expected


def test_a_field_without_a_config_says_what_it_needs():
    values = flags.FlagValues()
    command = ['', '--config.data.path=x']
    define_config_flag(flag_values=values, argv=command)
    with pytest.raises(flags.Error) as error:
        values(command)
    assert str(parse_error(error.value)) == '--config.data.path: needs --config=FILE_OR_NAME'
