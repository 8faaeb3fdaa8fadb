"""README's Python runs as it stands, also where only the mandatory dependencies are installed; public names exist."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import pnn_jax

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ('README.md',)  # tests/test_docs.py runs those of docs/
# What training needs and a layer does not.
TRAINING = (
    *('absl', 'ml_collections', 'orbax', 'rich', 'PIL', 'sklearn', 'matplotlib', 'tensorboardX'),
    *('tensorflow_datasets', 'array_record', 'torch', 'pandas'),
)


def programs(page: str) -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_readme_has_a_short_program():
    (first, *_) = programs('README.md')
    assert 'PerturbationLayer' in first and 'evaluate_exactly' in first
    assert len([line for line in first.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize('page, number', [(page, i) for page in PAGES for i in range(len(programs(page)))])
def test_programs_run(page, number, capsys):
    exec(compile(programs(page)[number], f'{page}, program {number}', 'exec'), {'__name__': page})


BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Missing())
"""


def run_without_training_libraries(program: str) -> subprocess.CompletedProcess:
    """flax itself imports orbax and rich where they are installed; here they may not be."""
    source = BLOCK.format(blocked=set(TRAINING) - {'orbax', 'rich', 'absl'}) + program
    return subprocess.run(
        [sys.executable, '-c', source], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_program_needs_no_training_library():
    done = run_without_training_libraries(programs('README.md')[0])
    assert done.returncode == 0, done.stderr
    assert re.search(r'\d+ of \d+', done.stdout)


@pytest.mark.slow
def test_what_needs_training_libraries_names_the_extra():
    done = run_without_training_libraries('import pnn_jax\npnn_jax.load_run')
    assert done.returncode == 1
    message = "pnn_jax.load_run needs ml_collections, which training brings: pip install 'pnn-jax[train]'"
    assert done.stderr.splitlines()[-1] == f'ModuleNotFoundError: {message}'


@pytest.mark.slow
def test_importing_the_package_loads_no_library_of_training():
    program = 'import sys, flax.linen\nbefore = set(sys.modules)\nfrom pnn_jax import PerturbationLayer\n'
    program += 'from pnn_jax import evaluate_exactly, perturb_combine, smoothed_accuracy, wilson_interval\n'
    program += 'print(*{name.split(".")[0] for name in set(sys.modules) - before})'
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(TRAINING), done.stdout


def test_public_names_exist_and_have_docstrings():
    for name in pnn_jax.__all__:
        value = getattr(pnn_jax, name)
        assert name == '__version__' or value.__doc__, name
    with pytest.raises(AttributeError, match='no attribute'):
        pnn_jax.no_such_name  # noqa: B018


def test_the_readme_says_what_every_report_says():
    """The reports are made from records; so is the first of these headlines here, but not the others."""
    reports = sorted((ROOT / 'experiments/results').glob('*/report/report.md'))
    headlines = [line for path in reports for line in path.read_text().splitlines() if line.startswith('> ')]
    assert len(headlines) == len(reports) >= 2
    text = (ROOT / 'README.md').read_text()
    assert all(line in text for line in headlines)
