"""Do JAX and PyTorch compute the same numbers? One table for each network.

python -m experiments.verify --golden tests/data             numbers that the PyTorch repositories produced
python -m experiments.verify --torch_repo DIR --config configs/no_noise.py --config.model.num_filters=8
                                                             your own clone of the audit or of the authors' answer
python -m experiments.verify --peer [--num_cases N]          our independent PyTorch implementation, random networks
python -m experiments.verify --peer --config configs/no_noise.py    the same, this network

Compared are logits, loss, every gradient, batch norm statistics, and trajectories of SGD and Adam. In double precision
(the default) every value must agree to 1e-6, relative to max(1, |value|). With --float32 errors are absolute and may be
ten times PyTorch's own error, which is the distance of its float32 results from its float64 ones. A trajectory that
disagrees is run again with images changed by rounding (see compare.verify_float32).

Exit codes: 0 all agree; 1 some do not; 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np

from experiments.command import exit_code
from pnn_jax.convert import read_config
from pnn_jax.errors import InputError
from pnn_jax.extras import imports_of_command
from pnn_jax.paths import local_path

with imports_of_command('experiments.verify', 'verify'):
    import torch

    from experiments.verify.cases import ANSWER, AUDIT, data_shape, random_config
    from experiments.verify.compare import Row
    from experiments.verify.golden import golden_files, read_golden, verify_golden
    from experiments.verify.networks import randomise_constants, verify_network
    from experiments.verify.repository import WORKAROUNDS, build_from_repository, load_repository
    from experiments.verify.table import print_table, write_json
    from experiments.verify.torch_twin import build_twin


def config_of(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of --config=FILE and --config.FIELD=VALUE, without dropout, which drops others in each framework."""
    given = read_config(arguments)
    if not given.named:
        raise InputError('--config=FILE is missing')
    if given.config.model.dropout_rate:
        print(f'config.model.dropout_rate={given.config.model.dropout_rate}: compared with 0, because it is random')
        given.config.model.dropout_rate = 0.0
    return given.config


def verify_goldens(args, arguments: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    if arguments:
        raise InputError(f'unexpected argument {arguments[0]!r}')
    for path in golden_files(args.golden):
        golden = read_golden(path)
        yield golden.case.name, verify_golden(golden, float32=args.float32)


def verify_repository(args, arguments: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    models, origin = load_repository(args.torch_repo)
    config = config_of(arguments)
    shape = data_shape(config, args.batch_size)
    torch.manual_seed(args.seed)
    network = build_from_repository(models, origin, config.model, shape.num_classes, shape.image_size)
    network.eval()
    with torch.no_grad():
        network(torch.zeros(2, shape.channels, shape.image_size, shape.image_size))  # draws the noise of noiseresnet
    randomise_constants(network, args.seed)
    for workaround in WORKAROUNDS:
        print(f'worked around: {workaround}')
    options = {'num_steps': args.num_steps, 'seed': args.seed, 'float32': args.float32}
    yield f'{config.model.name} of {origin}', verify_network(origin, network, config, shape, **options)


def verify_peers(args, arguments: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    rng = np.random.default_rng(args.seed)
    if arguments:
        config = config_of(arguments)
        cases = [(config, data_shape(config, args.batch_size))]
    else:
        cases = (random_config(rng) for _ in range(args.num_cases))
    options = {'num_steps': args.num_steps, 'seed': args.seed, 'float32': args.float32}
    for number, (config, shape) in enumerate(cases, start=1):
        torch.manual_seed(args.seed)
        network = build_twin(config.model, shape.num_classes, shape.image_size, shape.channels)
        randomise_constants(network, args.seed)
        name = f'twin {number}: {config.model.name}, {shape.image_size}x{shape.image_size}x{shape.channels}'
        yield name, verify_network(name, network, config, shape, **options)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and those of --config, which the modes parse."""
    parser = argparse.ArgumentParser(prog='python -m experiments.verify', description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument('--golden', nargs='+', metavar='FILE', help='golden npz files, or folders of them')
    mode.add_argument('--torch_repo', metavar='DIR', help=f'a clone of {AUDIT} or {ANSWER}; needs --config')
    mode.add_argument('--peer', action='store_true', help='our own PyTorch: random networks, or that of --config')
    parser.add_argument(
        '--float32', action='store_true', help="single precision, ten times PyTorch's own error allowed"
    )
    parser.add_argument('--num_cases', type=int, default=10, help='of --peer without --config')
    parser.add_argument('--num_steps', type=int, default=5, help='training steps with each optimizer; 0 for none')
    parser.add_argument('--batch_size', type=int, default=2, help='of --torch_repo, and of --peer with --config')
    parser.add_argument('--seed', type=int, default=0, help='of the networks and the images')
    parser.add_argument('--json', metavar='FILE', help='write the tables to this file')
    args, arguments = parser.parse_known_args(argv)
    for name, minimum in {'num_cases': 1, 'num_steps': 0, 'batch_size': 2}.items():  # one may not do in a batch norm
        if getattr(args, name) < minimum:
            raise InputError(f'--{name}={getattr(args, name)}: must be at least {minimum}')
    return args, arguments


def main(argv: Sequence[str] | None = None) -> int:
    args, arguments = parse(argv)
    verify = verify_goldens if args.golden else verify_repository if args.torch_repo else verify_peers
    results = {}
    for name, rows in verify(args, arguments):
        print_table(name, rows)
        results[name] = rows
    failed = [name for name, rows in results.items() if not all(row.passed for row in rows)]
    if args.json:
        write_json(local_path(args.json, '--json'), args.float32, results)
    print(f'{len(results) - len(failed)} of {len(results)} networks agree')
    for name in failed:
        print(f'FAILS: {name}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(exit_code(main))
