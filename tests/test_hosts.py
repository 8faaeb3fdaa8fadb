"""Two real processes of two devices each, over loopback: the same run as one process."""

import contextlib
import pathlib
import signal
import socket
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import pytest
from command_line import QUICKSTART, start, wait
from tiny_runs import QUICK_COMPILATION

from experiments.robustness.kill_test import Kill
from pnn_jax.run.load import load_run

pytestmark = pytest.mark.slow

NUM_TEST = 1003  # divides by no number of devices or batches
# Few steps, because rounding grows from step to step; the last of the three batches of an epoch has 8 images.
FEW_EPOCHS = ('--config.num_epochs=2',)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Random images whose class is their brightest quarter."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (('train', 1000), ('test', NUM_TEST)):
        pixels = rng.integers(0, 200, (count, 8, 8, 1), dtype=np.uint8)
        labels = rng.integers(0, 4, count).astype(np.int32)
        for image, label in zip(pixels, labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 50
        arrays |= {f'{split}_images': pixels, f'{split}_labels': labels}
    path = tmp_path_factory.mktemp('images') / 'images.npz'
    np.savez(path, **arrays)
    return path


class Host(NamedTuple):
    """A process that was started, and the folder with what it prints."""

    process: int
    folder: pathlib.Path

    def finish(self) -> tuple[int, str, str]:
        """The exit code, standard output and standard error."""
        return wait(self.process), *((self.folder / name).read_text() for name in ('stdout', 'stderr'))


@pytest.fixture(scope='module')
def launch(images, tmp_path_factory):
    """Starts a process with `devices` devices. With `kill`, it sends itself that signal."""

    def launch(workdir, *flags, devices=1, kill: Kill | None = None) -> Host:
        folder = tmp_path_factory.mktemp('host')
        arguments = [
            *(f'--config={QUICKSTART}', f'--workdir={workdir}'),
            *('--config.data.source=npz', f'--config.data.path={images}', '--config.data.image_size=0'),
            *('--config.data.train_examples=40', '--config.batch_size=16', '--config.eval_batch_size=100'),
            *('--config.model.num_filters=4', '--config.model.num_masks=2'),
            *('--config.log.tensorboard=False', '--config.log.plots=False'),
            *('--config.optimizer.name=sgd', '--config.optimizer.learning_rate=0.001', '--config.log.every_steps=5'),
            *flags,
        ]
        setup = f'import jax\njax.config.update("jax_num_cpu_devices", {devices})\n{QUICK_COMPILATION}\n'
        if kill is not None:
            setup += f'from experiments.robustness.kill_test import Kill, arm; arm(Kill(*{tuple(kill)}))'
        return Host(start(*arguments, stdout=folder / 'stdout', stderr=folder / 'stderr', setup=setup), folder)

    return launch


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that the system gives to nobody else while the block runs.

    The socket stays bound and does not listen. The coordinator's server, which allows it, binds the same port again.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(('', 0))
        yield reserved.getsockname()[1]


@contextlib.contextmanager
def two_hosts(launch, workdir, *flags, kill_second: Kill | None = None) -> Iterator[list[Host]]:
    """Two processes of two devices each, which act as one."""
    with free_port() as port:
        common = (f'--coordinator=127.0.0.1:{port}', '--num_processes=2', *flags)
        yield [
            launch(workdir, *common, f'--process_id={index}', devices=2, kill=kill)
            for index, kill in enumerate((None, kill_second))
        ]


def output_of(host: Host) -> str:
    """What a process that must succeed prints."""
    code, output, errors = host.finish()
    assert code == 0, errors
    return output


def parameters(workdir):
    return load_run(workdir).variables


@pytest.fixture(scope='module')
def one(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('one')
    output_of(launch(workdir, *FEW_EPOCHS))
    return workdir


def outcomes(workdir):
    with np.load(workdir / 'outcomes.npz') as stored:
        return stored['correct']


def test_two_processes_train_and_count_as_one(launch, one, tmp_path):
    with two_hosts(launch, tmp_path, *FEW_EPOCHS) as hosts:
        first, second = map(output_of, hosts)
    for own, other in zip(jax.tree.leaves(parameters(one)), jax.tree.leaves(parameters(tmp_path)), strict=True):
        # Measured: 2e-6; ten times the learning rate makes 2e-3 of the same rounding.
        np.testing.assert_allclose(own, other, rtol=0, atol=3e-5)
    correct = outcomes(tmp_path)
    assert correct.shape == (2, NUM_TEST)
    # An example on the border of two classes may fall to either side.
    assert (correct != outcomes(one)).mean() < 0.002
    count = f'{correct[-1].sum()} of {NUM_TEST} correct'
    assert count in first and 'correct' not in second  # process 0 alone reports
    # Restored on another number of devices and hosts, counted exactly alike.
    assert count in output_of(launch(tmp_path, *FEW_EPOCHS, '--mode=eval'))


def test_a_host_that_dies_ends_the_others_and_the_run_is_resumed(launch, tmp_path):
    """The second host is killed at its second evaluation, when the first epoch is recorded."""
    flags = ('--config.num_epochs=4',)
    with two_hosts(launch, tmp_path, *flags, kill_second=Kill('evaluation', 2, 0.0)) as (survivor, victim):
        assert victim.finish()[0] == -signal.SIGKILL
        code, _, errors = survivor.finish()
    assert code != 0
    # Its message is ours where a collective operation fails, and the coordination service's where heartbeats do.
    assert 'another host stopped' in errors or 'another task died' in errors, errors
    assert (tmp_path / 'metrics.jsonl').exists() and not (tmp_path / 'result.json').exists()

    with two_hosts(launch, tmp_path, *flags) as hosts:
        output, _ = map(output_of, hosts)
    correct = outcomes(tmp_path)
    assert correct.shape == (4, NUM_TEST)
    count = f'{correct[-1].sum()} of {NUM_TEST} correct'
    assert count in output
    assert count in output_of(launch(tmp_path, *flags, '--mode=eval'))
