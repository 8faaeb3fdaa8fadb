"""Whatever was run in a workdir before: an accepted command gives its own result, a refused one changes no byte.

Random sequences of commands share one workdir. Every accepted command is compared with the same command in a workdir
of its own, which nothing disturbed.
"""

import functools
import json
import pathlib
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import share_programs, tree_of

from configs import quickstart
from pnn_jax.data import Dataset, Split
from pnn_jax.errors import InputError, StoppedEarly
from pnn_jax.evaluate_run import evaluate_checkpoint
from pnn_jax.run import log
from pnn_jax.run.checkpoints import has_checkpoints
from pnn_jax.train import train_and_evaluate
from pnn_jax.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH = 3
TIMINGS = ('seconds', 'images_per_second', 'command')


class Command(NamedTuple):
    """What a user asks for.

    Attributes:
        data: which of two data sets.
        num_masks: of the network.
        seed: of the run.
        epochs: config.num_epochs.
        free: fields that change nothing of what is computed.
        stop_after: how often the run asks whether to stop before it is told so; None for never.
        mode: as the flag.
    """

    data: int
    num_masks: int
    seed: int
    epochs: int
    free: tuple[tuple[str, int | str], ...] = ()
    stop_after: int | None = None
    mode: str = 'train'

    @property
    def identity(self) -> tuple:
        """What a workdir is bound to."""
        return self.data, self.num_masks, self.seed

    def config(self):
        config = quickstart.get_config()
        config.seed, config.num_epochs, config.batch_size, config.eval_batch_size = self.seed, self.epochs, 8, 8
        config.model.num_filters, config.model.num_masks = 2, self.num_masks
        config.schedule.milestones = (1,)
        config.log.tensorboard = config.log.plots = False
        config.update_from_flattened_dict(dict(self.free))
        return config


COMMANDS = st.builds(
    Command,
    # Mostly the same run: otherwise nearly all commands would be refused.
    data=st.sampled_from([0, 0, 0, 0, 1]),
    num_masks=st.sampled_from([1, 1, 1, 1, 2]),
    seed=st.sampled_from([0, 0, 0, 0, 1]),
    epochs=st.integers(1, 3),
    free=st.sampled_from(
        [
            (),
            (('eval_batch_size', 4),),
            (('checkpoint.every_steps', 2), ('log.every_steps', 1)),
            (('checkpoint.keep', 1), ('data.path', 'elsewhere')),
        ]
    ),
    stop_after=st.sampled_from([None, None, 0, 1, 2, 3, 4, 5, 6, 8, 10, 12]),
    mode=st.sampled_from(['train', 'train', 'train', 'eval']),
)


@functools.cache
def dataset(number: int) -> Dataset:
    rng = np.random.default_rng(number)
    split = lambda n: Split(
        images=rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8), labels=rng.integers(0, 3, n).astype(np.int32)
    )
    train, test = split(8 * STEPS_PER_EPOCH), split(12)
    return Dataset(name='random', train=train, test=test, class_names=('a', 'b', 'c'), digest=f'digest {number}')


@pytest.fixture(scope='module', autouse=True)
def shared_programs():
    """Every network is compiled once, and drawn once for a seed; no plots are drawn."""
    init, drawn = Trainer.init, {}

    def init_once(trainer, seed, mask_seed):
        key = trainer.config.model.to_json(), seed, mask_seed
        if key not in drawn:
            drawn[key] = init(trainer, seed, mask_seed)
        state, fixed = drawn[key]
        return jax.tree.map(lambda leaf: leaf.copy(), state), fixed  # a training step donates the state's buffers

    with pytest.MonkeyPatch.context() as patch:
        share_programs(patch)
        patch.setattr(Trainer, 'init', init_once)
        patch.setattr(log, 'WRITERS', tuple(writer for writer in log.WRITERS if writer is not log.CurvesWriter))
        yield


def execute(command: Command, workdir: pathlib.Path) -> dict:
    """Runs a command; returns its result. Raises InputError or StoppedEarly as the program does."""
    data = dataset(command.data)
    if command.mode == 'eval':
        return evaluate_checkpoint(command.config(), workdir, dataset=data)
    asked = 0

    def should_stop():
        nonlocal asked
        asked += 1
        return 'enough' if command.stop_after is not None and asked > command.stop_after else ''

    return train_and_evaluate(command.config(), workdir, should_stop=should_stop, dataset=data)


class Left(NamedTuple):
    """What a finished run left, without timings."""

    result: dict
    lines: list[dict]
    outcomes: list[list[bool]]


def read(workdir: pathlib.Path) -> Left:
    without = lambda line: {name: value for name, value in line.items() if name not in TIMINGS}
    lines = [without(json.loads(line)) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    with np.load(workdir / 'outcomes.npz') as stored:
        outcomes = stored['correct'].tolist()
    return Left(without(json.loads((workdir / 'result.json').read_text())), lines, outcomes)


@functools.cache
def undisturbed(data: int, num_masks: int, seed: int, epochs: int) -> Left:
    """What a command leaves in a workdir of its own."""
    with tempfile.TemporaryDirectory() as folder:
        execute(Command(data, num_masks, seed, epochs), pathlib.Path(folder) / 'run')
        return read(pathlib.Path(folder) / 'run')


def assert_same(left: Left, expected: Left) -> None:
    """Equal, but for the rounding of a mean loss: batches of another size sum it in another order."""
    assert left.result.pop('final_test_loss') == pytest.approx(expected.result['final_test_loss'], rel=1e-5)
    assert left.result == {name: value for name, value in expected.result.items() if name != 'final_test_loss'}
    for line, other in zip(left.lines, expected.lines, strict=True):
        assert line.pop('test_loss') == pytest.approx(other['test_loss'], rel=1e-5)
        assert line == {name: value for name, value in other.items() if name != 'test_loss'}
    assert left.outcomes == expected.outcomes


def check(command: Command, workdir: pathlib.Path, earlier: list[Command]) -> None:
    """Runs a command after those that were accepted `earlier`, and adds it to them if it is."""
    before, existed = tree_of(workdir), workdir.exists()
    lines = workdir / 'metrics.jsonl'
    epochs_done = len(lines.read_text().splitlines()) if lines.exists() else 0
    another_run = has_checkpoints(workdir / 'checkpoints') and command.identity != earlier[0].identity
    try:
        result = execute(command, workdir)
        accepted = True
    except StoppedEarly:
        result, accepted = None, True
    except InputError:
        result, accepted = None, False
    if command.mode == 'eval':
        assert tree_of(workdir) == before and workdir.exists() == existed
        if accepted and result['step'] % STEPS_PER_EPOCH == 0 and command.identity == earlier[0].identity:
            epochs = result['step'] // STEPS_PER_EPOCH
            expected = undisturbed(*command.identity, epochs).result
            assert result['final_test_correct'] == expected['final_test_correct']
            assert result['per_class'] == expected['per_class']
        return
    if not accepted:
        assert tree_of(workdir) == before and workdir.exists() == existed
        assert another_run or command.epochs < max(earlier_command.epochs for earlier_command in earlier)
        return
    assert not another_run and command.epochs >= epochs_done
    earlier.append(command)
    if result is not None:
        assert_same(read(workdir), undisturbed(*command.identity, command.epochs))
        assert result == json.loads((workdir / 'result.json').read_text())


@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(commands=st.lists(COMMANDS, min_size=2, max_size=3))
def test_accepted_commands_give_their_own_result_and_refused_ones_change_nothing(commands):
    with tempfile.TemporaryDirectory() as folder:
        earlier: list[Command] = []
        for command in commands:
            check(command, pathlib.Path(folder) / 'run', earlier)


def test_refused_and_interrupted_commands_between_two_of_the_same_run():
    """The sequence that is reported most: more epochs with other data, more epochs interrupted, the first again."""
    original = Command(data=0, num_masks=1, seed=0, epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        earlier: list[Command] = []
        for command in (
            original,
            original._replace(data=1),
            original._replace(data=1, epochs=3),
            original._replace(epochs=3, stop_after=0),
            original,
            original._replace(mode='eval'),
            original._replace(epochs=3),
            original._replace(epochs=2),
        ):
            check(command, pathlib.Path(folder) / 'run', earlier)
        assert earlier == [original, original._replace(epochs=3, stop_after=0), original, original._replace(epochs=3)]
