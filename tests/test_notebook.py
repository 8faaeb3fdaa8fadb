"""docs/notebook.ipynb runs from its first to its last cell, and says what a kernel lacks in one line."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / 'docs' / 'notebook.ipynb'


def read_notebook():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook, folder: Path) -> None:
    """Runs the cells in a kernel of this interpreter, in an empty folder."""
    from nbclient import NotebookClient

    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    client = NotebookClient(notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(folder)}})
    client.execute(env=os.environ | {'PYTHONPATH': path})


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = read_notebook()
    execute(notebook, tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 4
    text = ''.join(output.text for output in outputs if output.output_type == 'stream' and output.name == 'stdout')
    assert text.count(' of 360') == 4 and 'last epoch: exact' in text


@pytest.mark.slow
def test_a_kernel_without_plots_is_one_line(tmp_path):
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell

    notebook = read_notebook()
    first = next(cell for cell in notebook.cells if cell.cell_type == 'code')
    notebook.cells = [new_code_cell("import sys\nsys.modules['matplotlib'] = None"), first]
    with pytest.raises(CellExecutionError):
        execute(notebook, tmp_path)
    (error,) = first.outputs
    assert len(error.traceback) == 1 and 'this kernel has no matplotlib; run: pip install' in error.traceback[0]


def test_stored_outputs_are_small():
    assert NOTEBOOK.stat().st_size < 200_000
