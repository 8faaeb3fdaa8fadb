"""Two real processes of two devices each, over loopback: the same run as one process."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pnn_jax.hosts import LOST_HOST_SECONDS
from pnn_jax.run.load import load_run

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
NUM_TEST = 1003  # divides by no number of devices or batches
# Few steps, because rounding grows from step to step; the last batch of an epoch has 8 images.
FEW = ('--config.data.train_examples=40', '--config.batch_size=16', '--config.num_epochs=2')


def save_images(path, num_test):
    """Random images whose class is their brightest quarter."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (('train', 1000), ('test', num_test)):
        pixels = rng.integers(0, 200, (count, 8, 8, 1), dtype=np.uint8)
        labels = rng.integers(0, 4, count).astype(np.int32)
        for image, label in zip(pixels, labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 50
        arrays |= {f'{split}_images': pixels, f'{split}_labels': labels}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp('images') / 'images.npz', NUM_TEST)


def launch(images, workdir, *flags, devices=1):
    command = [
        *(sys.executable, '-m', 'pnn_jax.main', '--config=configs/quickstart.py', f'--workdir={workdir}'),
        *('--config.data.source=npz', f'--config.data.path={images}', '--config.data.image_size=0'),
        *('--config.batch_size=8', '--config.eval_batch_size=100', '--config.num_epochs=4'),
        *(
            '--config.model.num_filters=4',
            '--config.model.num_masks=2',
            '--config.log.tensorboard=False',
            '--config.log.plots=False',
        ),
        *('--config.optimizer.name=sgd', '--config.optimizer.learning_rate=0.001', '--config.log.every_steps=5'),
        *flags,
    ]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def launch_two(images, workdir, *flags):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        coordinator = f'--coordinator=127.0.0.1:{free.getsockname()[1]}'
    return [
        launch(images, workdir, coordinator, '--num_processes=2', f'--process_id={index}', *flags, devices=2)
        for index in range(2)
    ]


def finish(process):
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


def parameters(workdir):
    return load_run(workdir).variables


@pytest.fixture(scope='module')
def one(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('one')
    finish(launch(images, workdir, *FEW))
    return workdir


def outcomes(workdir):
    with np.load(workdir / 'outcomes.npz') as stored:
        return stored['correct']


def test_two_processes_train_and_count_as_one(images, one, tmp_path):
    first, second = map(finish, launch_two(images, tmp_path, *FEW))
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
    assert count in finish(launch(images, tmp_path, *FEW, '--mode=eval'))


def test_a_host_that_dies_ends_the_others_and_the_run_goes_on(tmp_path):
    images = save_images(tmp_path / 'images.npz', 10_000)
    workdir = tmp_path / 'run'
    flags = (*FEW, '--config.num_epochs=40', '--config.eval_batch_size=1000', f'--compilation_cache={tmp_path}/cache')
    survivor, victim = launch_two(images, workdir, *flags)
    while not (workdir / 'metrics.jsonl').exists():
        assert survivor.poll() is None and victim.poll() is None
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    # Its message is ours where a collective operation fails, and the coordination service's where heartbeats do.
    _, errors = survivor.communicate(timeout=2 * LOST_HOST_SECONDS)
    victim.communicate()
    assert survivor.returncode != 0
    assert 'another host stopped' in errors or 'another task died' in errors, errors
    assert not (workdir / 'result.json').exists()

    output, _ = map(finish, launch_two(images, workdir, *flags))
    correct = outcomes(workdir)
    assert correct.shape == (40, 10_000)
    count = f'{correct[-1].sum()} of 10000 correct'
    assert count in output
    assert count in finish(launch(images, workdir, *flags, '--mode=eval'))
