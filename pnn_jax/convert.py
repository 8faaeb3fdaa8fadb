"""Checkpoints of PyTorch to workdirs and back.

pnn-convert model.pth runs/model --config=shared_masks     pnn-train --mode=eval then evaluates runs/model
pnn-convert runs/model model.pth [--checkpoint=best]       or: python -m pnn_jax.convert

Reads a state_dict or a whole model (`torch.save(model)`, as the audit saved them), bare or inside a training
checkpoint, from .pth files of any version since 0.4 and from .safetensors. Nothing in a file is executed. The
architecture is inferred from names and shapes, and for whole models from the saved modules. What cannot be inferred
comes from --config=FILE or --config.model.FIELD=VALUE.

The noise of `noise_resnet` is not part of PyTorch's state_dict. It is read from, and written to, MODEL.noise.pth beside
MODEL.pth.

Exit codes: 0 done; 1 a workdir whose checkpoints are damaged; 2 wrong usage or a file that cannot be converted.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pnn_jax.errors import InputError, RunError, one_line
from pnn_jax.extras import imports_of_command
from pnn_jax.paths import local_path

with imports_of_command('pnn-convert'):
    import ml_collections
    from absl import flags
    from ml_collections import config_flags

    from pnn_jax.config_flag import define_config_flag, parse_error
    from pnn_jax.pytorch.convert import from_workdir, to_workdir
    from pnn_jax.run.workdir import flat_fields

DEFAULT_CONFIG = 'default'


@dataclasses.dataclass(frozen=True)
class GivenConfig:
    """A config from the command line.

    Attributes:
        config: with all changes.
        file: that it was loaded from.
        named: whether the user named that file; otherwise it is DEFAULT_CONFIG.
        overridden: fields that were set on the command line.
    """

    config: ml_collections.ConfigDict
    file: str
    named: bool
    overridden: tuple[str, ...]


def read_config(arguments: Sequence[str]) -> GivenConfig:
    """Parses --config=FILE (default: the package's default config) and --config.FIELD=VALUE.

    Raises:
        InputError: another argument, an unknown field, or a file that cannot be read.
    """
    values = flags.FlagValues()
    command = ['', *arguments]
    named = [argument for argument in arguments if argument.lstrip('-').split('=')[0] == 'config']
    try:
        holder = define_config_flag(DEFAULT_CONFIG, flag_values=values, argv=command)
        rest = values(command)
        config = holder.value
        config.to_dict()  # a file that cannot be loaded raises only when it is used
        overridden = tuple(config_flags.get_override_values(values['config']))
        file = config_flags.get_config_filename(values['config'])
    except (flags.Error, OSError, ImportError, SyntaxError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise parse_error(error) from None
    if len(rest) > 1:
        raise InputError(f'unexpected argument {rest[1]!r}')
    return GivenConfig(config, file, bool(named), overridden)


def evaluation_command(given: GivenConfig, config: ml_collections.ConfigDict, workdir: Path) -> str:
    """The command that evaluates a converted workdir. It has a flag for every field that differs from the config file.

    The workdir alone would do. But people change the data in this command, and need --config for that.
    """
    in_file = flat_fields(read_config([f'--config={given.file}']).config)
    changed = [
        f'--config.{field}={tuple(value) if isinstance(value, list) else value}'
        for field, value in flat_fields(config).items()
        if value != in_file[field]
    ]
    command = ['pnn-train', '--mode=eval', f'--workdir={workdir}', f'--config={given.file}']
    return shlex.join([*command, *changed])


def _import(source: Path, workdir: Path, arguments: Sequence[str]) -> None:
    given = read_config(arguments)
    fields = {field.removeprefix('model.') for field in given.overridden if field.startswith('model.')}
    converted = to_workdir(source, workdir, given.config, given=None if given.named else fields)
    for note in converted.notes:
        print(f'note: {note}')
    print(f'written; evaluate it with: {evaluation_command(given, converted.config, workdir)}')


def _export(workdir: Path, target: Path, checkpoint: str, arguments: Sequence[str]) -> None:
    if arguments:
        raise InputError(f'unexpected argument {arguments[0]!r}: the config is that of the run')
    files = from_workdir(workdir, target, checkpoint)
    print(f'written: {", ".join(map(str, files))}')
    if len(files) > 1:
        print('PyTorch keeps the noise of noiseresnet out of the state_dict; load it from the second file')


def main(argv: Sequence[str] | None = None) -> int:
    summary, _, explanation = __doc__.partition('\n')
    parser = argparse.ArgumentParser(
        prog='pnn-convert',
        usage='%(prog)s [-h] [--checkpoint {latest,best}] IN OUT [--config=FILE] [--config.FIELD=VALUE ...]',
        description=summary,
        epilog=explanation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', metavar='IN', help='a .pth or .safetensors file, or a workdir')
    parser.add_argument('target', metavar='OUT', help='a new workdir, or a new .pth file')
    parser.add_argument('--checkpoint', choices=('latest', 'best'), default='latest', help='which one of a workdir')
    args, arguments = parser.parse_known_args(argv)
    try:
        source, target = local_path(args.source, 'IN'), local_path(args.target, 'OUT')
        if source.is_dir():
            _export(source, target, args.checkpoint, arguments)
        else:
            _import(source, target, arguments)
    except (InputError, RunError) as error:
        print(f'error: {one_line(error, 1000)}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
