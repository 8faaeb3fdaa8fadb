"""What `load_run` refuses is one line, which names the folder as a user of the library knows it."""

import json

import pytest

from pnn_jax import load_run
from pnn_jax.errors import InputError
from pnn_jax.run.load import read_run_config


@pytest.mark.parametrize('load', [load_run, read_run_config])
def test_a_folder_without_a_run_is_one_line(tmp_path, load):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text(json.dumps({'num_seeds': 2}))
    (tmp_path / 'file').write_text('')
    for name, expected in (
        ('nothing', 'there is no such folder'),
        ('file', 'there is no such folder'),
        ('run', 'there is no checkpoint to load'),
    ):
        with pytest.raises(InputError) as error:
            load(tmp_path / name)
        assert str(error.value) == f'{tmp_path / name}: {expected}'
    for seed in ('seed_1', 'seed_0'):
        (tmp_path / 'run' / seed).mkdir()
    with pytest.raises(InputError, match='of several seeds, name the folder of one: seed_0, seed_1$'):
        load(tmp_path / 'run')
    with pytest.raises(InputError, match='^workdir=gs://bucket/run: URLs are not read'):
        load('gs://bucket/run')


def test_a_checkpoint_that_has_no_meaning_is_refused(tmp_path):
    with pytest.raises(InputError, match="^checkpoint='last': must be 'latest', 'best' or a step"):
        load_run(tmp_path, 'last')
