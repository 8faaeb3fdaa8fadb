"""Writes a finished run, or a network converted from PyTorch, as files that other programs read.

pnn-export runs/quickstart exported/quickstart [--checkpoint=best]        or: python -m pnn_jax.export

The new folder holds model.safetensors (weights, batch norm statistics and masks), model.stablehlo (the network as a
program, which evaluates without this package), config.json and export.json. pnn_jax/run/export.py explains them.

Exit codes: 0 done; 1 a workdir whose files are damaged; 2 wrong usage, or a run that cannot be exported.
"""

import argparse
import sys
from collections.abc import Sequence

from pnn_jax.errors import InputError, RunError, one_line
from pnn_jax.extras import imports_of_command
from pnn_jax.paths import local_path

with imports_of_command('pnn-export', 'export'):
    from pnn_jax.run.export import export_run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='pnn-export', description=__doc__.splitlines()[0])
    parser.add_argument('workdir', metavar='IN', help='the workdir of a finished run, or of a converted network')
    parser.add_argument('target', metavar='OUT', help='a new folder')
    parser.add_argument('--checkpoint', choices=('latest', 'best'), default='latest', help='which one of the run')
    args = parser.parse_args(argv)
    try:
        files = export_run(local_path(args.workdir, 'IN'), local_path(args.target, 'OUT'), args.checkpoint)
    except (InputError, RunError) as error:
        print(f'error: {one_line(error, 1000)}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f'written: {", ".join(map(str, files))}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
