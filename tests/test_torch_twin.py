"""The PyTorch twin against the numbers that the PyTorch repositories produced, and its own contracts."""

import os
import pathlib

import numpy as np
import pytest
import torch

from experiments.verify import torch_twin
from experiments.verify.golden import read_golden

# Six of the 23 golden cases are in tests/data. With PNN_SHARED=DIR, those of DIR/golden are checked too.
DATA = pathlib.Path(__file__).parent / 'data'
SHARED = os.environ.get('PNN_SHARED')
FOLDERS = [DATA] if SHARED is None else [DATA, pathlib.Path(SHARED, 'golden')]
FILES = sorted({path.name: path for folder in FOLDERS for path in folder.glob('*.npz')}.values())

torch.set_num_threads(1)


def build(golden):
    """The twin of a golden case with the case's tensors, in evaluation mode and double precision."""
    case = golden.case
    num_classes = golden.expected['eval_logits'].shape[1]
    network = torch_twin.build_twin(case.model, num_classes, case.x.shape[-1], case.x.shape[1])
    tensors = {key: torch.tensor(value) for key, value in case.tensors.state_dict.items()}
    network.load_state_dict(tensors, strict=True)
    torch_twin.load_noise_buffers(network, {key: torch.tensor(v) for key, v in case.tensors.noise_masks.items()})
    return network.eval().double()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_golden_loads_strictly_and_gives_its_logits(path):
    golden = read_golden(path)
    with torch.no_grad():
        logits = build(golden)(torch.tensor(golden.case.x).double()).numpy()
    np.testing.assert_allclose(logits, golden.expected['eval_logits'], rtol=1e-6, atol=1e-6)


def test_no_golden_file_is_left_out():
    assert len(FILES) == (6 if SHARED is None else 23)
