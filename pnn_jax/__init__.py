"""Perturbative Neural Networks in JAX: the perturbation layer, exact evaluation, every network of the debate.

The names below are loaded when they are first used, so that importing the package stays cheap: no data set, checkpoint
or plot library is loaded for a layer.

    layer in a model of your own    PerturbationLayer, PerturbationUnit, perturb_combine
    a network of the debate         create_model, init_variables
    exact evaluation                evaluate_exactly, make_evaluate, Evaluation
    historical ways of counting     smoothed_accuracy, mean_batch_accuracy, floored_batch_accuracy, exact_accuracy
    intervals                       wilson_interval
    runs                            load_config, train_and_evaluate, load_run, Run
    errors                          InputError, RunError, StoppedEarly
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pnn_jax.accounting import exact_accuracy, floored_batch_accuracy, mean_batch_accuracy, smoothed_accuracy
    from pnn_jax.config_flag import load_config
    from pnn_jax.errors import InputError, RunError, StoppedEarly
    from pnn_jax.evaluate import Evaluation, evaluate_exactly, make_evaluate
    from pnn_jax.models.registry import create_model
    from pnn_jax.models.variables import init_variables
    from pnn_jax.nn.perturbation import PerturbationLayer, PerturbationUnit
    from pnn_jax.ops import perturb_combine
    from pnn_jax.run.load import Run, load_run
    from pnn_jax.stats import wilson_interval
    from pnn_jax.train import train_and_evaluate

__version__ = '0.1.0'  # the only place; pyproject.toml reads it

# name -> module that defines it
_MODULES = {
    'Evaluation': 'evaluate',
    'InputError': 'errors',
    'PerturbationLayer': 'nn.perturbation',
    'PerturbationUnit': 'nn.perturbation',
    'Run': 'run.load',
    'RunError': 'errors',
    'StoppedEarly': 'errors',
    'create_model': 'models.registry',
    'evaluate_exactly': 'evaluate',
    'exact_accuracy': 'accounting',
    'floored_batch_accuracy': 'accounting',
    'init_variables': 'models.variables',
    'load_config': 'config_flag',
    'load_run': 'run.load',
    'make_evaluate': 'evaluate',
    'mean_batch_accuracy': 'accounting',
    'perturb_combine': 'ops',
    'smoothed_accuracy': 'accounting',
    'train_and_evaluate': 'train',
    'wilson_interval': 'stats',
}

__all__ = ['__version__', *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(__name__):
            raise
        raise ModuleNotFoundError(
            f"pnn_jax.{name} needs {error.name}, which training brings: pip install 'pnn-jax[train]'", name=error.name
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
