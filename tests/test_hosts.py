"""Two real processes of two devices each, over loopback: the same run as one process."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.trained import load_trained

ROOT = pathlib.Path(__file__).parent.parent
NUM_TEST = 1003  # divides by no number of devices or batches
# Few steps, because rounding grows from step to step; the last batch of an epoch has 4 images.
FEW = ('--config.data.train_examples=100', '--config.num_epochs=2')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A file of random images whose class is their brightest quarter."""
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


def launch(images, workdir, *flags, devices=1):
    command = [
        *(sys.executable, '-m', 'pnn_jax.main', '--config=configs/quickstart.py', f'--workdir={workdir}'),
        *('--config.data.source=npz', f'--config.data.path={images}', '--config.data.image_size=0'),
        *('--config.batch_size=8', '--config.eval_batch_size=100', '--config.num_epochs=4'),
        *('--config.model.num_filters=4', '--config.model.num_masks=2', '--config.log.tensorboard=False'),
        *('--config.optimizer.name=sgd', '--config.optimizer.learning_rate=0.01', '--config.log.every_steps=5'),
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
    return jax.device_get(load_trained(workdir, (8, 8, 1), 4)[1])


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
        # Measured: 2.6e-4, in a running variance.
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-3)
    correct = outcomes(tmp_path)
    assert correct.shape == (2, NUM_TEST)
    # An example on the border of two classes may fall to either side.
    assert (correct != outcomes(one)).mean() < 0.005
    count = f'{correct[-1].sum()} of {NUM_TEST} correct'
    assert count in first and 'correct' not in second  # process 0 alone reports
    # Restored on another number of devices and hosts, counted exactly alike.
    assert count in finish(launch(images, tmp_path, *FEW, '--mode=eval'))
