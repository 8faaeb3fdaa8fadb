"""Configs, each a file or the name of one that comes with the package: `load_config`, and the flag --config.

A config file may import its neighbours (`from configs import default`). Python would look for `configs` in the folder
where the program was started, and find none there, or that of another project. So `configs` is bound to the folder of
the file before the file is loaded. The configs of the package come last, so that a file anywhere can import them.
"""

import ast
import difflib
import os
import re
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from pnn_jax.errors import InputError, one_line
from pnn_jax.paths import local_path
from pnn_jax.run.provenance import CONFIGS


def load_config(name: str | os.PathLike) -> ml_collections.ConfigDict:
    """The config of a file, or the one that comes with the package under that name; `configs/default.py` explains it.

    >>> config = load_config('quickstart')
    >>> config.model.num_masks = 16
    >>> config.update_from_flattened_dict({'num_epochs': 2, 'data.image_size': 8})

    Args:
        name: as --config takes it: 'quickstart', 'my_question.py'. The file is a Python program and is executed.

    Returns:
        A config of your own, whose fields you may change. It is locked: a field with another name is an AttributeError.

    Raises:
        InputError: there is no such file, it has no function `get_config`, or that gives something else than a config
            with the fields of `configs/default.py`.
    """
    file = find_config(os.fspath(name), 'config')
    before = {module: sys.modules[module] for module in list(sys.modules) if _is_configs(module)}
    bind_neighbours(file)
    try:
        found = runpy.run_path(str(file))
        if 'get_config' not in found:
            raise InputError(f'config={name}: the file has no function get_config')
        config = found['get_config']()
        check_fields(config, f'config={name}')
        return config.lock()
    finally:  # the calling program may have a package `configs` of its own
        for module in [module for module in sys.modules if _is_configs(module)]:
            del sys.modules[module]
        sys.modules.update(before)


# What libraries say of a command line, and what the user is told instead.
REWORDED = {
    r'flag (--config)=\S+: (?=--config)': '',
    r'flag (--\S+): invalid literal for int.*': r'\1: must be an integer',
    r'flag (--\S+): could not convert string to float.*': r'\1: must be a number',
    r'flag (--\S+): \(.Non-boolean argument.*': r'\1: must be true or false',
    r"Unknown command line flag '(config\.\S+)'.*": r'--\1: needs --config=FILE_OR_NAME',
}


class _Parser(flags.ArgumentParser):
    """Loads the file that was named once, with its own neighbours; the rest is ml_collections' parser."""

    def __init__(self, parser: flags.ArgumentParser):
        self.parser, self.syntactic_help = parser, parser.syntactic_help
        self.loaded: str | None = None

    def parse(self, path: str) -> ml_collections.ConfigDict:
        if self.loaded is not None:
            raise InputError(f'--config is given twice ({self.loaded} and {path}); name one file')
        file, colon, argument = path.partition(':')
        found = find_config(file)
        bind_neighbours(found)
        try:
            config = self.parser.parse(f'{found}{colon}{argument}')
        except (AttributeError, KeyError) as error:  # of the file; flags of unknown fields raise them later
            if getattr(error, 'name', '') == 'get_config':
                raise InputError(f'--config={path}: the file has no function get_config') from None
            raise _error_of_file(error, found) from None
        getattr(config, 'items', None)  # raises the OSError of a file that could not be read
        check_fields(config, f'--config={path}')
        self.loaded = path
        return config

    def flag_type(self) -> str:
        return self.parser.flag_type()


def define_config_flag(
    default: str | None = None, *, flag_values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None
) -> flags.FlagHolder:
    """Defines --config and, when it is parsed, a flag for every field of the config.

    Args:
        default: as `find_config` takes it; loaded where `argv` has no --config.
        flag_values: where the flags are defined.
        argv: the command line, sys.argv if None.
    """
    if default is not None:
        file = find_config(default)
        bind_neighbours(file)
        default = str(file)
    holder = config_flags.DEFINE_config_file(
        'config',
        default,
        f'A config file, or the name of a config that comes with the package: {", ".join(shipped_configs())}.',
        flag_values=flag_values,
        sys_argv=argv,
    )
    flag = flag_values['config']
    flag.parser = _Parser(flag.parser)
    return holder


def config_name(flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """The name of the config that was loaded: 'noise_masks' for configs/noise_masks.py, however it was named."""
    return Path(config_flags.get_config_filename(flag_values['config']).partition(':')[0]).stem


def find_config(name: str, field: str = '--config') -> Path:
    """The file that `name` means: a path, or the name of a config of the package.

    Args:
        name: as the user wrote it.
        field: the flag or argument, for errors.

    Raises:
        InputError: there is no such file; the nearest name is given.
    """
    path = local_path(name, field) if name.startswith('~') else Path(name)
    if path.is_file():
        return path
    if name in shipped_configs():
        return CONFIGS / f'{name}.py'
    near = _nearest_file(path) or _nearest(path.stem, shipped_configs())
    hint = f' (did you mean {near}?)' if near else ''
    raise InputError(f'{field}={name}: there is no such file{hint}')


def check_fields(config: object, what: str) -> None:
    """Checks that what a file's `get_config` returned has no field that no config has: nothing would read it.

    Args:
        config: what was returned.
        what: names the file in errors.

    Raises:
        InputError: names unknown fields, with the nearest one that exists; or it is no config.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f'{what}: get_config() returned {config!r}, not a config; is its `return` missing?')
    defaults = [runpy.run_path(str(CONFIGS / 'default.py'))['get_config']]
    if (theirs := sys.modules.get('configs.default')) is not None:  # a project's own may have further fields
        defaults.append(theirs.get_config)
    known = {name for get_config in defaults for name in _field_names(get_config())}
    unknown = []
    for name in _field_names(config):
        if name not in known:
            near = _nearest(name, sorted(known))
            unknown.append(name + (f' (did you mean {near}?)' if near else ''))
    if unknown:
        raise InputError(f'{what}: unknown config field: {", ".join(unknown)}')


def _field_names(config: ml_collections.ConfigDict, prefix: str = '') -> Iterator[str]:
    """The whole name of every field, 'model.num_filters'."""
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, ml_collections.ConfigDict):
            yield from _field_names(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def shipped_configs() -> list[str]:
    """The names of the configs that come with the package."""
    return sorted(file.stem for file in CONFIGS.glob('[!_]*.py'))


def _nearest_file(path: Path) -> str:
    """The Python file in the folder of `path` whose name is nearest to its name, or ''."""
    if not path.suffix or not path.parent.is_dir():
        return ''
    near = _nearest(path.name, [file.name for file in path.parent.glob('*.py')])
    return str(path.parent / near) if near else ''


def _nearest(name: str, known: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(name, known, n=1)), '')


def bind_neighbours(file: Path) -> None:
    """Makes `import configs` look in the folder of `file` first, then beside it, here, and in the package's configs."""
    folder = file.resolve().parent
    folders = [folder if folder.name == 'configs' else folder / 'configs', folder.parent / 'configs', Path('configs')]
    path = list(dict.fromkeys(str(place.resolve()) for place in (*folders, CONFIGS) if place.is_dir()))
    bound = sys.modules.get('configs')
    if bound is not None and list(getattr(bound, '__path__', []))[:1] == path[:1]:
        return
    for name in [name for name in sys.modules if _is_configs(name)]:
        del sys.modules[name]
    package = types.ModuleType('configs')
    package.__path__ = path
    sys.modules['configs'] = package


def _is_configs(module: str) -> bool:
    return module == 'configs' or module.startswith('configs.')


def parse_error(error: Exception) -> InputError:
    """The line for what absl, ml_collections or a config file raise while flags are parsed."""
    message = one_line(error)
    for pattern, reworded in REWORDED.items():
        message = re.sub(f'^{pattern}', reworded, message)
    if isinstance(error, InputError | flags.Error):
        return InputError(message)
    if isinstance(error, AttributeError | KeyError):
        return InputError(f'unknown config field: {_unquoted(str(error))}')
    if isinstance(error, OSError | SyntaxError):  # these name the file
        return InputError(f'--config: {message}')
    return _error_of_file(error)


def _error_of_file(error: Exception, file: Path | None = None) -> InputError:
    """The line for what the program in a config file raised, with the last place in that file if it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if frame.filename == str(file)), frames[-1])
    return InputError(f'--config: {type(error).__name__}: {one_line(error)} ({place.filename}, line {place.lineno})')


def _unquoted(text: str) -> str:
    """The message of a KeyError, which puts quotes around it; ml_collections adds a second pair."""
    while re.fullmatch(r"""(['"]).*['"\\].*\1""", text):
        text = ast.literal_eval(text)
    return ' '.join(text.split())
