"""Log writers: which ones a run has, what they are told, and that none of them can fail a run."""

import struct
import sys
import types
from types import SimpleNamespace

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from configs import default
from pnn_jax.errors import InputError
from pnn_jax.run import log
from pnn_jax.run.writers.base import FinishedRun, LogWriter
from pnn_jax.run.writers.mlflow import MlflowWriter
from pnn_jax.run.writers.tensorboard import TensorBoardWriter
from pnn_jax.run.writers.wandb import WandbWriter


def epoch(number: int) -> dict:
    return {'epoch': number, 'step': 4 * number, 'train_loss': 1 / number, 'test_correct': number}


def finished_run() -> FinishedRun:
    result = {'final_test_accuracy': 0.5, 'device': '1 x cpu'}
    return FinishedRun([epoch(1), epoch(2)], result, None, (), None, None, None, None)


@pytest.fixture
def workdir(tmp_path):
    """A workdir with two plots."""
    (tmp_path / 'run' / 'plots').mkdir(parents=True)
    for name in ('curves', 'plots/masks'):
        Image.new('RGB', (3, 2), (9, 8, 7)).save(tmp_path / 'run' / f'{name}.png')
    return SimpleNamespace(path=tmp_path / 'run', history=[])


def names(config) -> list[str]:
    return [writer.__name__.removesuffix('Writer') for writer in log.WRITERS if log.is_on(writer, config)]


def test_config_chooses_the_writers():
    config = default.get_config()
    assert names(config) == ['Console', 'Text', 'Curves', 'Plots', 'TensorBoard']
    config.log.wandb, config.log.plots, config.log.tensorboard = True, False, False
    assert names(config) == ['Console', 'Text', 'Curves', 'Wandb']
    for field in log.ADDED_SWITCHES:  # as in the config.json of an old run
        del config.log[field]
    assert names(config) == ['Console', 'Text', 'Curves']


def test_every_switch_is_a_field_of_the_config():
    switches = {writer.switch for writer in log.WRITERS if writer.switch}
    assert switches == set(default.get_config().log) - {'every_steps'}


def test_writer_whose_library_is_missing_is_refused_before_the_run(tmp_path, monkeypatch):
    """Also where the current folder has a folder of that name, as Weights & Biases makes one."""

    class Writer(LogWriter):
        switch, library = 'wandb', 'a_library_that_is_missing'

    monkeypatch.setattr(log, 'WRITERS', (Writer,))
    config = default.get_config()
    log.check_writers(config)
    config.log.wandb = True
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError) as error:
            log.check_writers(config)
        library = Writer.library
        assert str(error.value) == f"config.log.wandb=True needs {library}: pip install 'pnn-jax[{library}]'"
        (tmp_path / library).mkdir(exist_ok=True)


def test_writer_that_fails_is_dropped_with_a_note(monkeypatch):
    lines, epochs, closed = [], [], []

    class Good(LogWriter):
        say = staticmethod(lines.append)
        epoch = staticmethod(epochs.append)

    class Bad(LogWriter):
        def epoch(self, metrics):
            raise OSError('the disk\nis full')

        def close(self):
            closed.append(self)

    monkeypatch.setattr(log, 'WRITERS', (Bad, Good))
    with log.RunLog(None, default.get_config(), primary=True) as run_log:
        run_log.epoch(epoch(1))
        run_log.epoch(epoch(2))
    assert lines == ['note: Bad failed and is not used for the rest of the run (the disk is full)']
    assert epochs == [epoch(1), epoch(2)] and len(closed) == 1
    assert log.RunLog(None, default.get_config(), primary=False).writers == []


def test_tensorboard_gets_numbers_and_plots(workdir):
    writer = TensorBoardWriter(workdir, default.get_config())
    writer.epoch(epoch(1) | {'images_per_second': None})  # an epoch that an earlier process trained
    writer.finish(finished_run())
    writer.close()
    values = []
    (path,) = workdir.path.glob('events.out.tfevents*')
    data, offset = path.read_bytes(), 0
    while offset < len(data):  # 8 bytes length, 4 bytes checksum, the event, 4 bytes checksum
        (size,) = struct.unpack_from('<Q', data, offset)
        event = Event.FromString(data[offset + 12 : offset + 12 + size])
        values += [(event.step, value) for value in event.summary.value]
        offset += size + 16
    assert [(step, value.tag) for step, value in values] == [
        (4, 'train_loss'),
        (4, 'test_correct'),
        (8, 'curves'),
        (8, 'masks'),
    ]
    assert (values[-1][1].image.height, values[-1][1].image.width) == (2, 3)


class Recorder:
    """Stands for a library or its objects: remembers every call, and answers with itself or what was prepared."""

    def __init__(self, **answers):
        self.calls, self.answers = [], answers

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self.answers.get(name, self)

        return call

    def options(self, wanted: str) -> list[dict]:
        return [options for name, _, options in self.calls if name == wanted]

    def arguments(self, wanted: str) -> list[tuple]:
        return [arguments for name, arguments, _ in self.calls if name == wanted]


@pytest.fixture
def wandb(monkeypatch):
    library = Recorder(setup=SimpleNamespace(settings=SimpleNamespace(api_key=None)), Image='an image')
    monkeypatch.setitem(sys.modules, 'wandb', library)
    for name in ('WANDB_PROJECT', 'WANDB_MODE'):
        monkeypatch.delenv(name, raising=False)
    return library


def report(writer, *numbers: int, finish: bool) -> None:
    for number in numbers:
        writer.epoch(epoch(number))
    if finish:
        writer.finish(finished_run())
    writer.close()


def test_wandb_gets_config_numbers_result_and_plots_and_resumes_the_same_run(wandb, workdir, monkeypatch):
    config = default.get_config()
    WandbWriter(workdir, config).close()
    assert wandb.calls == []  # nothing begins before an epoch is done
    report(WandbWriter(workdir, config), 1, finish=False)
    (begun,) = wandb.options('init')
    assert (begun['project'], begun['name'], begun['dir'], begun['mode']) == ('pnn_jax', 'run', workdir.path, 'offline')
    assert begun['config']['model.num_filters'] == 128
    assert wandb.options('finish') == [{'exit_code': 1}]

    monkeypatch.setenv('WANDB_PROJECT', 'mine')
    wandb.answers['setup'].settings.api_key = 'a key'
    summary = wandb.__dict__['summary'] = {}
    report(WandbWriter(workdir, config), 2, finish=True)
    again = wandb.options('init')[1]
    assert (again['project'], again['mode'], again['resume']) == ('mine', None, 'allow')
    assert again['id'] == begun['id'] == (workdir.path / 'wandb_id').read_text()
    numbers = {'train_loss': 0.5, 'test_correct': 2, 'epoch': 2}
    assert wandb.arguments('log')[1:] == [(numbers,), ({'curves': 'an image', 'masks': 'an image'},)]
    assert [options.get('step') for options in wandb.options('log')] == [4, 8, None]
    assert summary == {'final_test_accuracy': 0.5}
    assert wandb.options('finish')[1] == {'exit_code': 0}


@pytest.fixture
def mlflow(monkeypatch):
    """The client, with the library around it."""
    client = Recorder(get_experiment_by_name=None, create_experiment='7')
    client.answers['create_run'] = SimpleNamespace(info=SimpleNamespace(run_id='the run'))
    library, entities = types.ModuleType('mlflow'), types.ModuleType('mlflow.entities')
    library.MlflowClient = lambda: client
    entities.Metric = lambda name, value, milliseconds, step: (name, value, step)
    entities.Param = lambda name, value: (name, value)
    monkeypatch.setitem(sys.modules, 'mlflow', library)
    monkeypatch.setitem(sys.modules, 'mlflow.entities', entities)
    monkeypatch.delenv('MLFLOW_EXPERIMENT_NAME', raising=False)
    return client


def test_mlflow_gets_config_numbers_and_plots_and_resumes_the_same_run(mlflow, workdir):
    config = default.get_config()
    report(MlflowWriter(workdir, config), 1, finish=False)
    assert mlflow.arguments('create_run') == [('7',)]
    params, numbers = mlflow.options('log_batch')
    assert ('model.num_filters', '128') in params['params']
    assert numbers['metrics'] == [('train_loss', 1.0, 4), ('test_correct', 1, 4)]
    assert mlflow.arguments('set_terminated') == [('the run', 'KILLED')]

    report(MlflowWriter(workdir, config), 2, finish=True)
    assert len(mlflow.arguments('create_run')) == 1
    assert mlflow.options('update_run') == [{'status': 'RUNNING'}] * 2
    assert [path for _, path, _ in mlflow.arguments('log_artifact')] == [
        str(workdir.path / 'curves.png'),
        str(workdir.path / 'plots' / 'masks.png'),
    ]
    assert mlflow.arguments('set_terminated')[1] == ('the run', 'FINISHED')
