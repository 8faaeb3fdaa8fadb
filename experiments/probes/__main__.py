"""What is a mask to a trained network? Changes one thing in finished runs and counts again.

python -m experiments.probes RUN_DIR [RUN_DIR ...] --json=FILE

other masks       every mask is drawn again; the weights stay
masks zeroed      the network without its masks
tiles permuted    the tiles of the map behind the stem change places
moved by n pixels the map behind the stem is moved down and right, around the border

Each is counted on all test images, with batch norm as stored, and recalibrated on training images of the changed
network. Then a linear classifier reads from the features at one position in which tile they were computed.

A network without masks cannot notice where a tile is: its accuracy stays when tiles are permuted. A mask that is a
code of position loses as much when it is exchanged as when the tiles change places.

FILE is written after every run. Called again, the command keeps the runs that are in it and probes the others. Commands
that run side by side need a FILE each; `experiments.report` takes several.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from rich.console import Console

from experiments.command import Parser, exit_code, make_folder, whole_number
from experiments.probes.changes import all_changes
from experiments.probes.network import ProbedNetwork
from experiments.probes.position import ReadOut, read_out, sampled
from experiments.probes.results import BATCH_NORMS, DEFAULTS, Count, ProbedRun, Probes, read_probes, table_of
from experiments.recalibration import with_stored_masks
from pnn_jax.data import Dataset
from pnn_jax.data.dataset import Split
from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.models.variables import init_variables
from pnn_jax.run.checkpoints import tree_digest
from pnn_jax.run.load import Run, load_run
from pnn_jax.run.provenance import provenance
from pnn_jax.runtime import CPU_XLA_FLAGS, restart_with_huge_pages
from pnn_jax.train_step import Variables

FIRST_MASK_SEED = 1_000_000  # of the other masks; far from the mask seeds of runs


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.probes', __doc__)
    parser.add_path('run_dir', nargs='+', help='workdir of a finished run; several seeds: the folder of one')
    parser.add_path('--json', required=True, help='file of the counts')
    parser.add_argument('--draws', type=whole_number(), help='random draws of every change that has any')
    parser.add_argument('--batch_size', type=whole_number(), help='also of the recalibration')
    parser.add_argument('--recalibration_images', type=whole_number(), help='training images')
    parser.add_argument('--fitted_images', type=whole_number(), help='for the read-out: training images')
    parser.add_argument('--held_out_images', type=whole_number(), help='for the read-out: test images')
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args(argv)
    names = [path.name for path in args.run_dir]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f'run_dir: two runs are named {repeated[0]!r}, so the results could not tell them apart')
    return args


def recorded_digest(workdir: Path) -> str:
    """The digest of the data set that a finished run was trained on.

    Raises:
        InputError: the run has no result, or a damaged one.
    """
    path = workdir / 'result.json'
    try:
        return json.loads(path.read_text())['dataset']['digest']
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)}); only finished runs can be probed') from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: is not the result of a run ({one_line(error)})') from None


def load_dataset_of(run: Run, known: Dataset | None) -> Dataset:
    """The data set of a run: `known` where it is that one, otherwise read.

    Raises:
        InputError: it is read from disk batch by batch, or is not the one that the run was trained on.
    """
    digest = recorded_digest(run.path)
    if known is not None and known.digest == digest:
        return known
    dataset = run.load_data()
    if not isinstance(dataset, Dataset):
        raise InputError(f'{run.path}: config.data.source={run.config.data.source}; needs a data set in memory')
    if dataset.digest != digest:
        raise InputError(f'{run.path}: was trained on a data set of digest {digest[:12]}, found {dataset.digest[:12]}')
    return dataset


def some_of(split: Split, count: int) -> np.ndarray:
    """`count` images in a fixed random order, because folders store images class by class."""
    return split.images[np.random.default_rng(0).permutation(len(split.images))[:count]]


def probe_positions(network: ProbedNetwork, variables: Variables, dataset: Dataset, args) -> list[ReadOut]:
    """The read-out of position from every map."""
    train, test = some_of(dataset.train, args.fitted_images), some_of(dataset.test, args.held_out_images)
    height, width = network.map_shape(variables, test)
    tiles = height // network.tile, width // network.tile
    fitted = sampled(network.feature_batches(variables, train, args.batch_size), tiles, seed=0)
    held_out = sampled(network.feature_batches(variables, test, args.batch_size), tiles, seed=1)
    return [read_out(name, fitted[name], held_out[name]) for name in network.maps]


def draws_of_masks(model: nn.Module, image_shape: tuple[int, ...]) -> Callable[[int], Variables]:
    """Number of a draw -> variables of which only the masks are used. Every run of one network gets the same draws."""

    @functools.cache
    def draw_masks(draw: int) -> Variables:
        mask_key = jax.random.key(FIRST_MASK_SEED + draw)
        return jax.device_get(init_variables(model, image_shape, key=jax.random.key(0), mask_key=mask_key))

    return draw_masks


def probe_run(run: Run, network: ProbedNetwork, draw_masks: Callable, dataset: Dataset, args) -> ProbedRun:
    """All counts of one run."""
    test = dataset.test
    calibration = some_of(dataset.train, args.recalibration_images)
    map_shape = network.map_shape(run.variables, test.images)
    counts = []
    for change in all_changes(run.variables, draw_masks, map_shape, network.tile, args.draws):
        recalibrated = network.recalibrate(change.variables, change.positions, calibration, args.batch_size)
        for batch_norm, variables in zip(BATCH_NORMS, (change.variables, recalibrated), strict=True):
            result = network.count(variables, change.positions, test, args.batch_size)
            counts.append(Count(change.name, change.draw, batch_norm, result.num_correct, result.count))
    position = probe_positions(network, run.variables, dataset, args)
    return ProbedRun(dataset.digest, tree_digest(run.variables), counts, position)


def kept_runs(path: Path, probes: Probes) -> dict[str, ProbedRun]:
    """The runs that are in the file already.

    Raises:
        InputError: they were probed by other code or with other settings.
    """
    if not path.exists():
        return {}
    old = read_probes(path)
    if old.settings != probes.settings or old.code.get('sha256') != probes.code['sha256']:
        raise InputError(
            f'--json={path}: was made with other settings or other code; move it away or name another file'
        )
    return old.runs


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)  # read when jax first uses a device
    probes = Probes(dict(provenance()), {name: getattr(args, name) for name in DEFAULTS}, {})
    probes.runs.update(kept_runs(args.json, probes))
    for workdir in args.run_dir:
        recorded_digest(workdir)  # before the first hour of work: all of them must be finished runs
    make_folder(args.json.parent, '--json')
    console = Console(soft_wrap=True)
    networks: dict[str, tuple[ProbedNetwork, Callable]] = {}
    dataset = None
    for workdir in args.run_dir:
        run = load_run(workdir)
        if (kept := probes.runs.get(workdir.name)) and kept.weights == tree_digest(run.variables):
            console.print(f'{workdir.name}: probed before')
            continue
        dataset = load_dataset_of(run, dataset)
        data = run.config.data
        architecture = f'{run.config.model.to_json()} {data.mean} {data.std} {run.num_classes}'
        if architecture not in networks:
            network = ProbedNetwork(with_stored_masks(run), data.mean, data.std, run.config.model.dtype)
            networks[architecture] = network, draws_of_masks(run.model, dataset.test.images.shape[1:])
        probes.runs[workdir.name] = probe_run(run, *networks[architecture], dataset, args)
        probes.write(args.json)
        console.print(table_of({workdir.name: probes.runs[workdir.name]}))
    console.print(f'{len(probes.runs)} runs: {args.json}')


if __name__ == '__main__':
    restart_with_huge_pages('experiments.probes')
    sys.exit(exit_code(main))
