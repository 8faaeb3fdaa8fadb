"""What the repository says about itself is true: workflows call targets that exist, versions agree, and more."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import pnn_jax

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
FORMS = sorted(path for path in (ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*.yml') if path.stem != 'config')


def jobs(workflow: Path) -> dict:
    return yaml.safe_load(workflow.read_text())['jobs']


@pytest.mark.parametrize('workflow', WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist_and_pin_what_they_use(workflow):
    makefile = (ROOT / 'Makefile').read_text().replace('$(VENV)', '.venv')
    steps = [step for job in jobs(workflow).values() for step in job['steps']]
    used = [step['uses'] for step in steps if 'uses' in step]
    assert used and all(re.fullmatch(r'actions/[\w-]+@v\d+', name) for name in used)
    called = [step['run'].split()[1] for step in steps if step.get('run', '').startswith('make ')]
    assert called and all(re.search(rf'^{re.escape(target)}:', makefile, re.MULTILINE) for target in called)


def test_the_oldest_and_the_newest_jax_and_python_are_tested():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    (jax,) = (name for name in project['dependencies'] if name.startswith('jax>'))
    oldest, after = re.fullmatch(r'jax>=0\.(\d+),<0\.(\d+)', jax).groups()
    matrix = jobs(ROOT / '.github/workflows/tests.yml')['fast']['strategy']['matrix']['include']
    assert [entry['jax'] for entry in matrix] == [f'0.{oldest}.*', f'0.{int(after) - 1}.*']
    assert project['requires-python'] == f'>={matrix[0]["python"]}'


def test_one_version_everywhere():
    version = pnn_jax.__version__
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == version
    assert f'\n## {version}\n' in (ROOT / 'CHANGELOG.md').read_text()


@pytest.mark.parametrize('form', FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_for_the_result(form):
    content = yaml.safe_load(form.read_text())
    fields = [field for field in content['body'] if 'result.json' in field['attributes']['label']]
    assert len(fields) == 1 and fields[0]['validations']['required']
    assert {'name', 'description', 'body'} <= content.keys()


SCRIPT = ROOT / 'experiments' / 'schedulers' / 'grid.sbatch'


def run_script(*arguments: str, path: str = '/usr/bin:/bin') -> subprocess.CompletedProcess:
    environment = {'PATH': path, 'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_JOB_ID': '12', 'PYTHON': 'python'}
    return subprocess.run(['bash', SCRIPT, *arguments], capture_output=True, text=True, env=environment)


def test_a_job_without_a_shared_folder_is_one_line(tmp_path):
    done = run_script(str(tmp_path / 'none'), '10', '--grid=smoke')
    assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1
    assert done.stderr.startswith(f'error: {tmp_path}/none: is not a folder on node ')
    assert run_script().returncode == 2


@pytest.mark.parametrize('code, requeued', [(0, False), (1, False), (75, True), (137, False), (143, True)])
def test_a_task_that_saved_its_state_is_requeued_alone(code, requeued, tmp_path):
    """With stand-ins for Slurm's commands, which write down their arguments."""
    for name, exit_code in (('srun', code), ('scontrol', 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\nexit {exit_code}\n')
        (tmp_path / name).chmod(0o755)
    done = run_script(str(tmp_path), '10', '--grid=smoke', path=f'{tmp_path}:/usr/bin:/bin')
    assert done.returncode == code, done.stderr
    first, *rest = (tmp_path / 'calls').read_text().splitlines()
    folders = f'--output={tmp_path}/runs --results={tmp_path}/results'
    assert first == f'srun python -m experiments.ablation --shard=3/10 {folders} --grid=smoke'
    assert rest == (['scontrol requeue 12_3'] if requeued else [])
