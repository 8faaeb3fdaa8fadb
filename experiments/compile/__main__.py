"""Compiles training and evaluation for accelerators that are not there, and says what the compilers made of them.

python -m experiments.compile --target=v5e,h100 --config=shared_masks --batch_size=16,128 --output=compiled.json

Every combination is compiled in a process of its own and added to the output at once; the same command again compiles
what is missing or did not compile, and with --schedules what has no static time yet. A record of a program that did
compile stays where another attempt fails. At the end all records of the output are printed as a Markdown table. The
exit code is 1 if something does not compile.

Needs the compilers: pip install -e '.[tpu-compile]' for v4, v5e, v5p and v6e, '.[gpu-compile]' for h100.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from experiments.command import Parser, exit_code, make_folder, replace_section, some_of, write_file
from experiments.compile.measure import PROGRAMS, Request, measure
from experiments.compile.programs import check_config
from experiments.compile.table import row, table
from experiments.compile.targets import TARGETS, check_devices, missing_compiler
from pnn_jax.errors import InputError, RunError, os_reason
from pnn_jax.paths import replace_file

DTYPES = ('float32', 'bfloat16')
DEVICES = (1, 4, 16, 256)
BATCH_SIZES = (0, 16, 128, 1024)


def read_records(path: Path) -> list[dict]:
    """The records of a file, none where there is no file.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        records = json.loads(path.read_text())
        if not isinstance(records, list):
            raise TypeError('not a list')
        for record in records:
            Request(**record['request'])
            row(record)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else 'is not a list of records of this command'
        raise InputError(f'--output={path}: {reason}') from None
    return records


def write_records(path: Path, records: list[dict]) -> None:
    try:
        replace_file(path, (json.dumps(records, indent=1) + '\n').encode())
    except OSError as error:
        raise InputError(f'--output={path}: {os_reason(error)}') from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.compile', __doc__)
    parser.add_argument('--target', type=some_of(list(TARGETS)), default=['v5e'], help=f'some of {",".join(TARGETS)}')
    parser.add_argument(
        '--devices', type=some_of(DEVICES), default=[1], help='over how many devices; some of 1,4,16,256'
    )
    parser.add_argument('--config', default='noise_masks', help='files or names of configs, with commas between')
    parser.add_argument('--program', type=some_of(PROGRAMS), default=['train', 'evaluate'], help=','.join(PROGRAMS))
    parser.add_argument('--batch_size', type=some_of(BATCH_SIZES), default=[0], help='0: that of the config')
    parser.add_argument('--dtype', type=some_of(DTYPES), default=['float32'], help='float32,bfloat16')
    parser.add_argument('--schedules', action='store_true', help='also the static time on TPUs; compiles far longer')
    parser.add_path('--output', help='JSON file of records; default: none is kept')
    parser.add_path(
        '--readme',
        help='Markdown file whose table, between the lines compiled: begin and end, is replaced by that of the output',
    )
    args = parser.parse_args(argv)
    for name in ('target', 'devices', 'program', 'batch_size', 'dtype'):
        if not getattr(args, name):
            raise InputError(f'--{name}: needs one value at least')
    for config in args.config.split(','):
        check_config(config)
    for target, devices in itertools.product(args.target, args.devices):
        check_devices(target, devices)
    for target in args.target:
        if package := missing_compiler(target):
            raise InputError(f'--target={target}: its compiler is not installed (no Python package {package})')
    # Files that cannot be used are refused now, and not after an hour.
    if args.readme:
        if not args.output:
            raise InputError('--readme: needs --output, whose records its table shows')
        replace_section(args.readme, 'compiled', '')
    records = []
    if args.output:
        records = read_records(args.output)
        make_folder(args.output.parent, '--output')
        write_records(args.output, records)
    failed = []
    combinations = itertools.product(
        args.config.split(','), args.target, args.devices, args.batch_size, args.dtype, args.program
    )
    for config, target, devices, batch_size, dtype, program in combinations:
        request = Request(target, program, config, devices, batch_size, dtype)
        before = [record for record in records if Request(**record['request']) == request]
        with_schedule = args.schedules and TARGETS[target].platform == 'tpu'
        if before and 'error' not in before[0] and ('bundles' in before[0] or not with_schedule):
            continue
        print(f'compiling {config}, {program}, for {devices} x {target}', file=sys.stderr, flush=True)
        measured = measure(request, schedules=args.schedules)
        record = {'request': dataclasses.asdict(request), 'jax': metadata.version('jax'), **measured}
        if 'error' in record:
            failed.append(f'{config}, {program}, for {devices} x {target} ({record["error"]})')
            if before and 'error' not in before[0]:
                continue
        if args.output:  # another command may have added to it
            records = read_records(args.output)
        records = [record for record in records if Request(**record['request']) != request] + [record]
        if args.output:
            write_records(args.output, records)
    print(table(records))
    if args.readme:
        write_file(args.readme, replace_section(args.readme, 'compiled', table(records)))
    if failed:
        raise RunError(f'does not compile: {"; ".join(failed)}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
