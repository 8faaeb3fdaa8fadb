"""What all commands share: output that cannot fail them, options, and folders that are not emptied by mistake."""

import io
import os
import subprocess
import sys

import pytest

from experiments import command
from experiments.processes import start_process
from pnn_jax.errors import InputError, RunError, StoppedEarly


class FailingStream(io.StringIO):
    """A stream behind which the disk is full, or nobody reads."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    flush = lambda self: self.write('')


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), BrokenPipeError(), ValueError('closed')])
@pytest.mark.parametrize('name', ['stdout', 'stderr'])
def test_a_stream_that_fails_does_not_change_the_exit_code(error, name, monkeypatch):
    done = []

    def main(argv):
        for stream in (sys.stdout, sys.stderr):
            print('something', file=stream, flush=True)
        done.append(1)

    monkeypatch.setattr(sys, name, FailingStream(error))
    assert command.exit_code(main) == 0 and done == [1]


def test_characters_that_a_terminal_cannot_show_are_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', terminal)
    assert command.exit_code(lambda argv: print('class кошка')) == 0
    assert terminal.buffer.getvalue() == b'class \\u043a\\u043e\\u0448\\u043a\\u0430\n'


SCRIPT = """
import sys
from experiments.command import exit_code
def main(argv):
    for line in range(20000):
        print('a line of output')
    open(sys.argv[1], 'w').write('result')
sys.exit(exit_code(main))
"""


@pytest.mark.slow
@pytest.mark.parametrize('where', ['a full disk', 'a closed pipe'])
def test_a_real_process_ends_as_if_it_had_been_heard(where, tmp_path):
    process = [sys.executable, '-c', SCRIPT, str(tmp_path / 'result')]
    if where == 'a full disk':
        with open('/dev/full', 'w') as full:
            done = subprocess.run(process, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(process, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'result').read_text() == 'result'


@pytest.mark.parametrize(
    'error, code, shown',
    [
        (InputError('--x=1: must be 2'), 2, 'error: --x=1: must be 2\n'),
        (RunError('the disk is full'), 1, 'error: the disk is full\n'),
        (StoppedEarly('received SIGTERM'), 75, ''),
    ],
)
def test_exit_codes(error, code, shown, capsys):
    def main(argv):
        raise error

    assert command.exit_code(main) == code
    assert capsys.readouterr().err == shown


def parse(*argv: str):
    parser = command.Parser('experiments.test', 'A test.')
    parser.add_path('--out', default='runs/x')
    parser.add_path('--run', action='append', default=[])
    parser.add_argument('--trials', type=command.whole_number(2), default=5)
    parser.add_argument('--rows', type=command.some_of([1, 2, 10]), default=[])
    return parser.parse_args(argv)


def test_options(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = parse('--run=~/a', '--run=b', '--rows=10,1')
    assert options.out == tmp_path / 'runs/x' and options.run == [tmp_path / 'a', tmp_path / 'b']
    assert (options.trials, options.rows) == (5, [10, 1])
    assert parse('--rows=').rows == []


@pytest.mark.parametrize(
    'option, names',
    [
        ('--trials=1', '2 or more'),
        ('--trials=²', "'²'"),
        ('--rows=1,3', "'3'"),
        ('--out=s3://bucket/x', '--out=s3://bucket/x'),
        ('--run=https://x.org/y', '--run=https://x.org/y'),
        ('--out=', '--out is empty'),
        ('--outt=x', '--outt=x'),
        ('--ou=x', '--ou=x'),
    ],
)
def test_wrong_options_are_one_line(option, names):
    with pytest.raises(InputError) as error:
        parse(option)
    assert names in str(error.value) and '\n' not in str(error.value)


def test_only_folders_of_the_command_are_emptied(tmp_path):
    out = tmp_path / 'out'
    command.empty_folder(out, '--out')
    (out / 'trial').mkdir()
    (out / 'trial/file').write_text('old')
    command.empty_folder(out, '--out')
    assert [path.name for path in out.iterdir()] == [command.OWNED]

    photos = tmp_path / 'photos'
    photos.mkdir()
    command.empty_folder(photos, '--out')  # empty: nothing can be lost
    (photos / command.OWNED).unlink()
    (photos / 'holiday.jpg').touch()
    with pytest.raises(InputError, match='--out=.*photos: has content'):
        command.empty_folder(photos, '--out')
    assert (photos / 'holiday.jpg').exists()


def test_files_and_folders_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(RunError, match='No such file or directory'):
        command.write_file(tmp_path / 'none/a.json', '{}')
    with pytest.raises(InputError, match='--out=.*file'):
        command.make_folder(tmp_path / 'file', '--out')
    with pytest.raises(InputError, match='No such file'):
        command.replace_section(tmp_path / 'none', 'results', '')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InputError, match='is not a text file'):
        command.replace_section(tmp_path / 'binary', 'results', '')


def tell_environment(connection, name):
    connection.send(os.environ.get(name))


@pytest.mark.slow
def test_a_process_has_its_environment_and_leaves_ours_alone(monkeypatch):
    monkeypatch.delenv('PNN_TEST', raising=False)
    process, connection = start_process(tell_environment, 'PNN_TEST', environment={'PNN_TEST': 'yes'})
    assert connection.recv() == 'yes' and 'PNN_TEST' not in os.environ
    with pytest.raises(EOFError):
        connection.recv()
    process.join()
