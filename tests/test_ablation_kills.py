"""A grid that is killed or stopped, or loses a worker, ends with the same results as one that was not disturbed."""

import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command_line import start, wait

from experiments.ablation import records
from experiments.robustness.kill_test import Kill

pytestmark = pytest.mark.slow

ROW = 'no_noise'


class Grid(NamedTuple):
    """A grid that was started: its process and the file with what it prints."""

    process: int
    shown: Path

    def finish(self) -> tuple[int, str]:
        """The exit code, and what was printed, with single spaces."""
        return wait(self.process), ' '.join(self.shown.read_text().split())


def start_grid(folder: Path, *flags, setup: str = '') -> Grid:
    """Starts the runs of two seeds of ROW. `setup` is code that the process runs first."""
    folder.mkdir(exist_ok=True)
    flags = ('--grid=smoke', f'--arms={ROW}', f'--output={folder}/runs', f'--results={folder}/results', *flags)
    shown = folder / f'shown{len(list(folder.glob("shown*")))}'
    return Grid(start(*flags, stdout=shown, stderr=shown, setup=setup, program='experiments.ablation'), shown)


def reproducible(path) -> dict:
    """A record without its timings."""
    content = json.loads(path.read_text())
    content.pop('sha256')
    content['summary'].pop('seconds')
    for line in content['history']:
        del line['seconds'], line['images_per_second']
    return content


def test_killed_grid_resumes_to_the_same_results(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    code, shown = start_grid(whole).finish()
    assert code == 0, shown
    assert ROW in shown and '2 of 2 runs done' in shown
    names = sorted(path.name for path in (whole / 'results/smoke').iterdir())
    assert names == [f'{ROW}_seed{seed}.json' for seed in (0, 1)]

    rng = np.random.default_rng()  # any instant must do
    kill = Kill('recording', int(rng.integers(1, 3)), float(rng.uniform(0, 0.5)))
    setup = f'from experiments.robustness.kill_test import Kill, arm; arm(Kill(*{tuple(kill)}))'
    code, shown = start_grid(killed, setup=setup).finish()
    assert code == -signal.SIGKILL, (kill, shown)
    code, shown = start_grid(killed).finish()
    assert code == 0, (kill, shown)
    for name in names:
        assert reproducible(killed / 'results/smoke' / name) == reproducible(whole / 'results/smoke' / name), kill

    record = records.read_record(whole / f'results/smoke/{ROW}_seed0.json')
    assert [int(epoch.sum()) for epoch in record.correct] == [line['test_correct'] for line in record.history]
    assert str(tmp_path) not in (whole / f'results/smoke/{ROW}_seed0.json').read_text()


def worker_of(folder: Path, seed: int, known: set[int]) -> int:
    """Waits until a new process works on a run, and returns its id."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for log in (folder / 'runs/smoke').glob('worker*.log'):
            for line in log.read_text().splitlines():
                words = line.split()
                if words[:1] == ['process'] and words[-1] == f'{ROW}_seed{seed}' and int(words[1][:-1]) not in known:
                    return int(words[1][:-1])
        time.sleep(0.02)
    raise AssertionError(f'nobody works on seed {seed} in {folder}')


def wait_until_gone(process: int) -> None:
    """Waits until a process has ended (it may stay as a zombie where nobody collects it)."""
    stat = Path(f'/proc/{process}/stat')
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(')')[2].split()[0] == 'Z':
                return
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError(f'process {process} is still there')


def test_killed_and_stopped_workers_resume_to_the_same_results(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    code, shown = start_grid(whole, '--jobs=2').finish()  # as many as below: rounding depends on the cores
    assert code == 0 and '2 of 2 runs done' in shown, shown

    # A worker is killed: its run fails, the other one is done.
    grid = start_grid(killed, '--jobs=2')
    known = {worker_of(killed, 1, set())}
    os.kill(*known, signal.SIGKILL)
    code, shown = grid.finish()
    assert code == 1 and 'SIGKILL' in shown and 'error: 1 run failed' in shown, shown
    assert [path.name for path in (killed / 'results/smoke').iterdir()] == [f'{ROW}_seed0.json']

    # The parent is asked to stop: the worker saves its run.
    grid = start_grid(killed, '--jobs=2')
    known.add(worker_of(killed, 1, known))
    os.kill(grid.process, signal.SIGTERM)
    code, shown = grid.finish()
    assert code == 75 and 'stopped: received SIGTERM' in shown, shown

    # The parent is killed: the worker ends.
    grid = start_grid(killed, '--jobs=2')
    worker = worker_of(killed, 1, known)
    os.kill(grid.process, signal.SIGKILL)
    wait_until_gone(worker)
    grid.finish()

    code, shown = start_grid(killed, '--jobs=2').finish()
    assert code == 0, shown
    for seed in (0, 1):
        name = f'results/smoke/{ROW}_seed{seed}.json'
        assert reproducible(killed / name) == reproducible(whole / name)
