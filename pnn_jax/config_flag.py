"""The flag --config: a file, or the name of a config that comes with the package.

A config file may import its neighbours (`from configs import default`). Python would look for `configs` in the folder
where the program was started, and find none there, or that of another project. So `configs` is bound to the folder of
the file before the file is loaded. The configs of the package come last, so that a file anywhere can import them.
"""

import difflib
import re
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from pnn_jax.errors import InputError, one_line
from pnn_jax.paths import local_path
from pnn_jax.run.provenance import CONFIGS


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
        config = self.parser.parse(f'{found}{colon}{argument}')
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


def find_config(name: str) -> Path:
    """The file that `name` means: a path, or the name of a config of the package.

    Raises:
        InputError: there is no such file; the nearest name is given.
    """
    path = local_path(name, '--config') if name.startswith('~') else Path(name)
    if path.is_file():
        return path
    if name in shipped_configs():
        return CONFIGS / f'{name}.py'
    near = _nearest_file(path) or _nearest(path.stem, shipped_configs())
    hint = f' (did you mean {near}?)' if near else ''
    raise InputError(f'--config={name}: there is no such file{hint}')


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
    for name in [name for name in sys.modules if name == 'configs' or name.startswith('configs.')]:
        del sys.modules[name]
    package = types.ModuleType('configs')
    package.__path__ = path
    sys.modules['configs'] = package


def parse_error(error: Exception) -> InputError:
    """The line for what absl, ml_collections or a config file raise while flags are parsed."""
    message = re.sub(r'^flag --config=\S+: (?=--config)', '', one_line(error))
    message = message.replace('\\n', ' ').replace("\\'", "'").strip('"')
    if isinstance(error, InputError | flags.Error):
        return InputError(message)
    if isinstance(error, AttributeError | KeyError):
        return InputError(f'unknown config field: {message}')
    if isinstance(error, OSError | SyntaxError):  # these name the file
        return InputError(f'--config: {message}')
    place = traceback.extract_tb(error.__traceback__)[-1]
    return InputError(f'--config: {type(error).__name__}: {message} ({place.filename}, line {place.lineno})')
