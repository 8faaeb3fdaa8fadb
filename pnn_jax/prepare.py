"""Downloads a data set and writes it as array_record files, which training reads without TensorFlow.

pip install 'pnn-jax[prepare]'
pnn-data --name=cifar10 --path=DIR        or: python -m pnn_jax.prepare

Exit codes: 0 done; 1 the set cannot be downloaded or written; 2 wrong usage, or TensorFlow is not installed.
"""

import argparse
import sys
from collections.abc import Sequence

from pnn_jax.errors import InputError, RunError, one_line
from pnn_jax.extras import imports_of_command, missing_library

with imports_of_command('pnn-data', 'prepare'):
    from pnn_jax.data.tfds import NAMES, data_dir


def prepare(name: str, path: str) -> str:
    """Downloads the TFDS set `name`, prepares it under `path` ('': where TFDS keeps its sets), and returns its folder.

    Raises:
        InputError: TensorFlow is not installed, or `path` is not a local folder.
        RunError: the set cannot be downloaded or written.
    """
    try:
        import tensorflow  # noqa: F401  (tfds needs it to download and to unpack)
    except ImportError:
        raise missing_library('preparing data', 'TensorFlow', 'prepare') from None
    import tensorflow_datasets as tfds

    folder = data_dir(path, '--path')
    try:
        builder = tfds.builder(name, data_dir=str(folder), file_format='array_record')
        builder.download_and_prepare()
    except Exception as error:  # noqa: BLE001  (the network, the disk and each set's own code raise many types)
        raise RunError(f'{name} cannot be prepared ({type(error).__name__}: {one_line(error)})') from None
    return str(builder.data_path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='pnn-data', description=__doc__.splitlines()[0])
    parser.add_argument('--name', required=True, help=f'{", ".join(NAMES)}, or any other set of labelled images')
    parser.add_argument('--path', default='', help='folder for the set; default: where TFDS keeps its sets')
    args = parser.parse_args(argv)
    try:
        print(f'prepared: {prepare(args.name, args.path)}')
    except (InputError, RunError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
