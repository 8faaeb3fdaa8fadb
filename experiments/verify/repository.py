"""Networks of a clone of one of the two PyTorch repositories, imported from its models.py."""

from __future__ import annotations

import importlib
import pathlib
import sys
import types

import torch

from experiments.verify.cases import ANSWER, AUDIT
from pnn_jax.errors import InputError, one_line
from pnn_jax.paths import local_path
from pnn_jax.pytorch.constructors import constructor_arguments

WORKAROUNDS = (
    'residual sums out of place (in place they overwrite what the activation saved for its gradient)',
    'noise of noiseresnet kept as a plain tensor (on a CPU it is a Parameter, which their own code then cannot set)',
)


def load_repository(path: str):
    """Imports models.py of a clone and applies the two WORKAROUNDS to it; files of the clone are not changed.

    Returns:
        The module, and AUDIT or ANSWER.

    Raises:
        InputError: there is no models.py, or it is not that of the two repositories.
    """
    folder = local_path(path, '--torch_repo')
    if not (folder / 'models.py').is_file():
        raise InputError(f'--torch_repo={path} has no models.py; give a clone of {AUDIT} or {ANSWER}')
    models = _imported(folder)
    try:
        noise_layer, block = models.NoiseLayer, models.PerturbBasicBlock
    except AttributeError as error:
        raise InputError(f'models.py of --torch_repo is not that of {AUDIT} or {ANSWER}: {one_line(error)}') from None
    models.device = torch.device('cpu')
    construct = noise_layer.__init__

    def construct_without_parameter(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        del self.noise
        self.noise = torch.Tensor(0)

    def forward_out_of_place(self, x):
        bypass = self.shortcut(x) if self.shortcut else x
        return torch.nn.functional.relu(self.layers(x) + bypass)

    noise_layer.__init__, block.forward = construct_without_parameter, forward_out_of_place
    return models, ANSWER if hasattr(models, 'PerturbLayerFirst') else AUDIT


def _imported(folder: pathlib.Path) -> types.ModuleType:
    """models.py of a folder, without writing __pycache__ and whatever else is named models or utils."""
    hidden = {name: sys.modules.pop(name, None) for name in ('models', 'utils')}
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module('models')
    except (ImportError, SyntaxError) as error:
        raise InputError(f'models.py of --torch_repo is not that of {AUDIT} or {ANSWER}: {one_line(error)}') from None
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_bytecode
        sys.modules.update({name: module for name, module in hidden.items() if module is not None})


def build_from_repository(models, origin: str, model_config, num_classes: int, image_size: int):
    """The network of `config.model`, made by the constructor of the clone.

    Args:
        models, origin: from `load_repository`.

    Raises:
        InputError: the network is in the other repository, or in neither.
    """
    name = model_config.name
    needs = ANSWER if name == 'answer_resnet18' or (name == 'noise_resnet18' and model_config.freeze_stem) else AUDIT
    if needs != origin and name not in ('resnet18', 'lenet', 'cifarnet'):
        raise InputError(f'model.name={name!r} as configured is a network of {needs}, the clone is of {origin}')
    theirs = {'answer_resnet18': 'perturb_resnet18'}.get(name, name.replace('noise_resnet', 'noiseresnet'))
    if not hasattr(models, theirs):
        raise InputError(f'model.name={name!r} is not in {origin}')
    arguments = constructor_arguments(model_config, num_classes, image_size)
    if name == 'noise_resnet18':
        arguments['first_filter_size'] = model_config.stem_kernel_size
    return getattr(models, theirs)(**arguments)
