"""Do JAX and PyTorch compute the same numbers? One table a network: logits, loss, gradients, statistics, trajectories.

python -m experiments.verify_torch --golden ../shared/golden       numbers that the PyTorch repositories produced
python -m experiments.verify_torch --torch_repo DIR --config configs/no_noise.py --config.model.num_filters=8
                                                                   your own clone of the audit or of the authors' answer
python -m experiments.verify_torch --peer [--num_cases N]          our independent PyTorch twin, random networks
python -m experiments.verify_torch --peer --config configs/no_noise.py    the twin, this network

In double precision (default) every value must agree to 1e-6, relative to max(1, |value|). With --float32 errors are
absolute and may be ten times PyTorch's own (the distance of its float32 results from its float64 ones); trajectories
that rounding tipped at a kink are rerun with images moved by rounding. Exit code 0 if all hold, 1 if not, 2 for wrong
input.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import importlib
import json
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from configs import default
from experiments.command import exit_code
from pnn_jax.convert import read_config
from pnn_jax.errors import InputError
from pnn_jax.models import create_model
from pnn_jax.optim import create_optimizer
from pnn_jax.pytorch import variables as torch_variables
from pnn_jax.pytorch.constructors import constructor_arguments, model_fields
from pnn_jax.pytorch.names import TABLES
from pnn_jax.pytorch.variables import Arrays, TorchTensors

TOLERANCE = 1e-6  # in double precision, relative to max(1, |value|)
NULL_GRADIENT = 1e-12  # a smaller gradient in double precision may be rounding
DECIDED_BY_ROUNDING = 1e-9  # an element that moves by more where such gradients are 0 owes its value to them
RERUNS = 8
FLOORS = 10  # in single precision, times PyTorch's own float32 error

AUDIT, ANSWER = 'michaelklachko/pnn.pytorch', 'juefeix/pnn.pytorch.update'


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its tensors, its batches, and how it is trained.

    Attributes:
        model: `config.model`.
        optimizers: name -> `config.optimizer` of a trajectory.
        tensors: the initial state.
        x, y: the batch of the forward and backward pass; float [b, c, h, w], int [b].
        xs, ys: the batches of the trajectories [steps, b, ...].
        null_gradients: parameters whose true gradient is known to be 0; left out of Adam's trajectory.
        evaluation_only: nothing else can be compared, because training draws random numbers (rrelu).
        quantities: those that are known of PyTorch; None is all.
    """

    name: str
    model: ml_collections.ConfigDict
    optimizers: Mapping[str, ml_collections.ConfigDict]
    tensors: TorchTensors
    x: np.ndarray
    y: np.ndarray
    xs: np.ndarray
    ys: np.ndarray
    null_gradients: frozenset[str] = frozenset()
    evaluation_only: bool = False
    quantities: frozenset[str] | None = None

    def compares(self, key: str) -> bool:
        return self.quantities is None or key.partition('/')[0] in self.quantities


@dataclasses.dataclass(frozen=True)
class Row:
    """The largest errors of one quantity over `values` numbers, `left_out` of which rounding decides (see
    jax_quantities). Relative is to max(1, |value|); the tolerance is of one of the two. `rerun` is not 0 where only a
    rerun agreed (see verify_float32)."""

    quantity: str
    values: int
    left_out: int
    max_abs_error: float
    max_rel_error: float
    where: str
    tolerance: float
    tolerance_of: str
    passed: bool
    rerun: int = 0


# --- JAX --------------------------------------------------------------------------------------------------------------


def jax_quantities(case: Case, dtype, reference: Mapping) -> Arrays:
    """All quantities of a case, in PyTorch's names and layouts: eval_logits, grad/<parameter>, sgd/<tensor>, ...

    Adam divides a gradient by its own size, so where the true gradient is 0 (a bias in front of a batch norm) it makes
    steps of full size of what rounding leaves. Such elements show in evaluation mode only. They are masked in what is
    returned, and take PyTorch's values before `adam_eval_logits` is computed. Which ones they are is measured: a second
    trajectory runs without the gradients below NULL_GRADIENT, and an element that it changes was decided by rounding.

    Args:
        reference: PyTorch's quantities.
    """
    num_classes = _num_classes(case)
    shapes = torch_variables.variable_shapes(case.model, num_classes, case.x.shape[-1], case.x.shape[1])
    tensors = TorchTensors(*(_floats(group, dtype) for group in (case.tensors.state_dict, case.tensors.noise_masks)))
    variables, steps_before = torch_variables.from_torch(tensors, case.model, shapes)
    fixed = jax.tree.map(jnp.asarray, variables)
    trained = {name: fixed.pop(name) for name in ('params', 'batch_stats')}
    predict, learn = _network(case.model.to_json(), num_classes)
    images = lambda batch: jnp.asarray(batch.transpose(0, 2, 3, 1), dtype)

    def named(parts, num_steps=None):
        total = None if num_steps is None or steps_before is None else steps_before + num_steps
        return torch_variables.to_torch(parts, case.model, num_steps=total, aliases=False).state_dict

    x, y = images(case.x), jnp.asarray(case.y, jnp.int32)
    result = {'eval_logits': predict(trained, fixed, x)}
    if case.evaluation_only:
        return jax.device_get(result)
    (loss, (logits, batch_stats)), gradients = learn(trained, fixed, x, y)
    result |= {'train_logits': logits, 'loss': loss}
    result |= _prefixed('grad', named({'params': gradients}))
    result |= _prefixed('bn1', named({'batch_stats': batch_stats}, 1))
    result['eval_logits_bn1'] = predict({**trained, 'batch_stats': batch_stats}, fixed, x)

    def trajectory(settings, smallest_gradient):
        optimizer, update = _optimizer(settings.to_json())
        params, batch_stats, losses = trained['params'], trained['batch_stats'], []
        opt_state = optimizer.init(params)
        for x_step, y_step in zip(case.xs, case.ys, strict=True):
            now = {'params': params, 'batch_stats': batch_stats}
            (loss, (_, batch_stats)), gradients = learn(now, fixed, images(x_step), jnp.asarray(y_step, jnp.int32))
            params, opt_state = update(gradients, opt_state, params, smallest_gradient)
            losses.append(loss)
        return {'params': params, 'batch_stats': batch_stats}, np.array(losses)

    for name, settings in case.optimizers.items():
        after, losses = trajectory(settings, 0.0)
        values = named(after, len(case.xs))
        if name == 'adam':
            null = NULL_GRADIENT if dtype == jnp.float64 else 0.0
            clean = named(trajectory(settings, null)[0], len(case.xs))
            values = {
                key: np.ma.masked_where(
                    (key in case.null_gradients) | (np.abs(value - clean[key]) > DECIDED_BY_ROUNDING), value
                )
                for key, value in values.items()
            }
            after = _fill_masked(after, values, _within(name, reference), case, shapes)
        result |= _prefixed(name, values)
        result |= {f'{name}_losses': losses, f'{name}_eval_logits': predict(after, fixed, x)}
    return {key: np.asanyarray(value) for key, value in result.items()}


@functools.lru_cache(maxsize=1)
def _network(model: str, num_classes: int) -> tuple[Callable, Callable]:
    """Compiled predict(trained, fixed, x) -> logits and learn(trained, fixed, x, y) -> ((loss, aux), gradients)."""
    network = create_model(ml_collections.ConfigDict(json.loads(model)), num_classes)

    @jax.jit
    def predict(trained, fixed, x):
        return network.apply({**trained, **fixed}, x, train=False)

    @jax.jit
    def learn(trained, fixed, x, y):
        def loss_of(params):
            collections = {**trained, 'params': params, **fixed}
            logits, updates = network.apply(collections, x, train=True, mutable=['batch_stats'])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, (logits, updates['batch_stats'])

        return jax.value_and_grad(loss_of, has_aux=True)(trained['params'])

    return predict, learn


@functools.lru_cache(maxsize=2)
def _optimizer(settings: str) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer, and its compiled step without the gradients below a size."""
    settings = ml_collections.ConfigDict(json.loads(settings))
    optimizer = create_optimizer(settings, lambda step: settings.learning_rate)

    @jax.jit
    def update(gradients, opt_state, params, smallest_gradient):
        gradients = jax.tree.map(lambda g: jnp.where(jnp.abs(g) < smallest_gradient, 0, g), gradients)
        changes, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, changes), opt_state

    return optimizer, update


def _fill_masked(parts, values: Mapping[str, np.ma.MaskedArray], reference: Mapping, case: Case, shapes) -> dict:
    """The variables `parts`, whose tensors are `values`, with the reference's in the place of what is masked."""
    complete = torch_variables.to_torch(parts, case.model)
    owners = {id(tensor): key for key, tensor in reversed(complete.state_dict.items())}
    filled = {}
    for key, tensor in complete.state_dict.items():
        owner = owners[id(tensor)]
        filled[key] = np.where(np.ma.getmaskarray(values[owner]), reference.get(owner, tensor), tensor)
        filled[key] = filled[key].astype(tensor.dtype)
    noise_masks = complete.noise_masks
    wanted = {name: shapes[name] for name in parts}
    return jax.tree.map(
        jnp.asarray, torch_variables.from_torch(TorchTensors(filled, noise_masks), case.model, wanted)[0]
    )


def _floats(arrays: Arrays, dtype) -> Arrays:
    return {key: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a for key, a in arrays.items()}


def _num_classes(case: Case) -> int:
    key = 'linear2.bias' if case.model.name in ('lenet', 'cifarnet') else 'linear.bias'
    if key not in case.tensors.state_dict:
        raise InputError(f'{case.name}: {key} is missing')
    return len(case.tensors.state_dict[key])


def _prefixed(prefix: str, arrays: Mapping) -> dict:
    return {f'{prefix}/{key}': value for key, value in arrays.items()}


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def torch_quantities(network, case: Case, dtype: str) -> Arrays:
    """The same quantities from a PyTorch network that holds the case's tensors; leaves its weights as they were."""
    import torch

    network = copy.deepcopy(network).to(getattr(torch, dtype))
    images = lambda batch: torch.as_tensor(batch, dtype=getattr(torch, dtype))
    x, y = images(case.x), torch.as_tensor(case.y, dtype=torch.long)
    initial = copy.deepcopy(network.state_dict())

    def predict():
        network.eval()
        with torch.no_grad():
            return network(x)

    def learn(x, y):
        network.train()
        network.zero_grad()
        logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        return logits.detach(), loss.detach()

    result = {'eval_logits': predict()}
    if case.evaluation_only:
        return {key: value.numpy() for key, value in result.items()}
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    statistics = {name: b for name, b in network.named_buffers() if not name.endswith('.noise')}
    logits, loss = learn(x, y)
    result |= {'train_logits': logits, 'loss': loss}
    result |= _prefixed('grad', {name: p.grad.clone() for name, p in parameters.items()})
    result |= _prefixed('bn1', copy.deepcopy(statistics))
    result['eval_logits_bn1'] = predict()
    for name, settings in case.optimizers.items():
        network.load_state_dict(initial)
        optimizer = TORCH_OPTIMIZERS[name](torch.optim, list(parameters.values()), settings)
        losses = []
        for x_step, y_step in zip(case.xs, case.ys, strict=True):
            losses.append(learn(images(x_step), torch.as_tensor(y_step, dtype=torch.long))[1])
            optimizer.step()
        result |= _prefixed(name, copy.deepcopy(parameters | statistics))
        result |= {f'{name}_losses': torch.stack(losses), f'{name}_eval_logits': predict()}
    return {key: value.detach().numpy() for key, value in result.items()}


TORCH_OPTIMIZERS: dict[str, Callable] = {
    'sgd': lambda optim, parameters, settings: optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    ),
    'adam': lambda optim, parameters, settings: optim.Adam(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    ),
    'rmsprop': lambda optim, parameters, settings: optim.RMSprop(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    ),
}


def tensors_of(network) -> TorchTensors:
    """A network's tensors as numpy arrays. Noise that the state_dict lacks is taken from the modules that hold it."""
    state_dict = {key: value.detach().numpy().copy() for key, value in network.state_dict().items()}
    held = {f'{name}.noise': getattr(module, 'noise', None) for name, module in network.named_modules()}
    noise_masks = {
        key: value.numpy().copy() for key, value in held.items() if value is not None and key not in state_dict
    }
    return TorchTensors(state_dict, noise_masks)


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(case: Case, expected: Mapping, actual: Mapping, floors: Mapping[str, float] | None) -> list[Row]:
    """A row a quantity, worst element first in it.

    Args:
        floors: PyTorch's own float32 error of every quantity, or None in double precision.

    Raises:
        InputError: names a value that only one side has.
    """
    actual = {key: value for key, value in actual.items() if case.compares(key)}
    if lacking := sorted(set(actual) ^ set(expected)):
        side = 'PyTorch' if lacking[0] in actual else 'JAX'
        raise InputError(f'{case.name}: {lacking[0]} is missing on the side of {side}')
    rows: dict[str, list] = {}
    for key in expected:
        ours, theirs = np.ma.asarray(actual[key], np.float64), np.asarray(expected[key], np.float64)
        if ours.shape != theirs.shape:
            raise InputError(f'{case.name}: {key} has shape {list(theirs.shape)}, expected {list(ours.shape)}')
        left_out = np.ma.getmaskarray(ours)
        error = np.where(left_out, 0, np.abs(ours.data - theirs))
        error = np.where(np.isfinite(error), error, np.inf)
        relative = error / np.maximum(1, np.abs(theirs))
        found = (error.max(initial=0), relative.max(initial=0), key, error.size, left_out.sum())
        rows.setdefault(key.partition('/')[0], []).append(found)
    table = []
    for quantity in sorted(rows, key=QUANTITIES.index):
        absolute, _, where, _, _ = max(rows[quantity])
        relative = max(row[1] for row in rows[quantity])
        size, left_out = (sum(row[column] for row in rows[quantity]) for column in (3, 4))
        tolerance = TOLERANCE if floors is None else FLOORS * floors[quantity]
        passed = bool((relative if floors is None else absolute) <= tolerance)
        kind = 'relative' if floors is None else 'absolute'
        table.append(
            Row(quantity, int(size), int(left_out), float(absolute), float(relative), where, tolerance, kind, passed)
        )
    return table


def verify_float32(case: Case, expected: Mapping, floors: Mapping[str, float]) -> list[Row]:
    """Compares in single precision, and reruns trajectories that disagree.

    Where an activation is within rounding of a ReLU's kink, or two within rounding of a tie in a max pool, rounding
    decides where the gradient goes. PyTorch's own error does not cover that: it was measured where nothing tipped. What
    tells it from a defect is to move the images of the trajectory by float32's rounding (6e-8 of their values), up to
    RERUNS times: a defect disagrees every time.
    """
    rows = compare(case, expected, jax_quantities(case, jnp.float32, expected), floors)
    for rerun in range(1, RERUNS + 1):
        failed = {name for name in case.optimizers if not all(row.passed for row in rows if _of(name, row))}
        if not failed:
            break
        rng = np.random.default_rng(rerun)
        moved = (case.xs * (1 + 6e-8 * rng.standard_normal(case.xs.shape))).astype(np.float32)
        again = dataclasses.replace(case, xs=moved)
        other = compare(case, expected, jax_quantities(again, jnp.float32, expected), floors)
        agree = {name for name in failed if all(row.passed for row in other if _of(name, row))}
        rows = [
            dataclasses.replace(new, rerun=rerun) if any(_of(name, old) for name in agree) else old
            for old, new in zip(rows, other, strict=True)
        ]
    return rows


def _of(optimizer: str, row: Row) -> bool:
    return row.quantity.split('_')[0] == optimizer


QUANTITIES = [
    'eval_logits',
    'train_logits',
    'loss',
    'grad',
    'bn1',
    'eval_logits_bn1',
    *(name + suffix for name in TORCH_OPTIMIZERS for suffix in ('_losses', '', '_eval_logits')),
]


# --- golden files -----------------------------------------------------------------------------------------------------

GOLDEN_FIELDS = frozenset(
    'name ref net_type dataset seed K batch args opt torch images aliases trainable frozen n_trainable n_masks '
    'random_in_train null_gradient_params image_seed conditioning noise_floor thinned'.split()
)
GOLDEN_OPTIMIZERS = {
    'sgd': lambda lr, momentum, weight_decay, nesterov: {
        'learning_rate': lr,
        'momentum': momentum,
        'weight_decay': weight_decay,
    },
    'adam': lambda lr, betas, weight_decay: {
        'learning_rate': lr,
        'beta1': betas[0],
        'beta2': betas[1],
        'weight_decay': weight_decay,
    },
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """A case with what a PyTorch repository computed for it, and how far its own float32 was from that."""

    case: Case
    expected: Arrays
    floors: dict[str, float]


def read_golden(path: pathlib.Path) -> Golden:
    """Reads NAME.npz and the NAME.json beside it.

    Raises:
        InputError: a file is missing or damaged, or a field or key is missing or unknown.
    """
    arrays = _read_npz(path)
    try:
        facts = json.loads(path.with_suffix('.json').read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{path.with_suffix(".json")} cannot be read: {error}') from None
    if unknown := sorted(set(facts) - GOLDEN_FIELDS):
        raise InputError(f'{path.with_suffix(".json")}: unknown field {unknown[0]!r}')
    try:
        origin = facts['ref'].partition('@')[0]
        if origin not in (AUDIT, ANSWER):
            raise InputError(f'{path.with_suffix(".json")}: ref={facts["ref"]!r}; known are {AUDIT} and {ANSWER}')
        quantities = frozenset(facts.get('thinned', QUANTITIES))
        model = default.get_config().model
        model.update(model_fields(facts['net_type'], facts['args'], authors_answer=origin == ANSWER))
        case = Case(
            name=facts['name'],
            model=model,
            optimizers={
                name: _optimizer_config(path, name, facts['opt'][name]) for name in facts['opt'] if name in quantities
            },
            tensors=TorchTensors(_within('sd', arrays), _within('mask', arrays)),
            x=arrays['x'],
            y=arrays['y'],
            xs=arrays['xs'] if 'sgd' in quantities else arrays['x'][None, :0],
            ys=arrays['ys'] if 'sgd' in quantities else arrays['y'][None, :0],
            null_gradients=frozenset(facts['null_gradient_params']),
            evaluation_only=facts['random_in_train'] or quantities == {'eval_logits'},
            quantities=quantities,
        )
        floors = {name: entry['max_abs_diff'] for name, entry in facts['noise_floor'].items()}
    except KeyError as error:
        key = error.args[0]
        file = path if key in ('x', 'y', 'xs', 'ys') else path.with_suffix('.json')
        raise InputError(f'{file}: {key} is missing') from None
    expected = {key: value for key, value in arrays.items() if key.partition('/')[0] in QUANTITIES}
    return Golden(case, expected, floors)


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f'{path} is no readable npz file: {error}') from None


def _within(prefix: str, arrays: Mapping) -> Arrays:
    return {key.removeprefix(prefix + '/'): value for key, value in arrays.items() if key.startswith(prefix + '/')}


def _optimizer_config(path: pathlib.Path, name: str, settings: Mapping) -> ml_collections.ConfigDict:
    config = default.get_config().optimizer
    try:
        config.update({'name': name, **GOLDEN_OPTIMIZERS[name](**settings)})
    except (KeyError, TypeError) as error:
        raise InputError(f'{path.with_suffix(".json")}: optimizer {name!r} with {dict(settings)}: {error}') from None
    return config


def verify_golden(golden: Golden, *, float32: bool = False) -> list[Row]:
    """Compares all that the golden file has."""
    if float32:
        return verify_float32(golden.case, golden.expected, golden.floors)
    with jax.enable_x64(True):
        return compare(golden.case, golden.expected, jax_quantities(golden.case, jnp.float64, golden.expected), None)


def golden_files(paths: Sequence[str]) -> list[pathlib.Path]:
    """The npz files that are named, and those in the folders that are named."""
    files = []
    for path in map(pathlib.Path, paths):
        found = sorted(path.glob('*.npz')) if path.is_dir() else [path]
        if not found:
            raise InputError(f'{path} holds no npz file')
        files += found
    return files


# --- the user's clone -------------------------------------------------------------------------------------------------

WORKAROUNDS = (
    'residual sums out of place (in place they overwrite what the activation saved for its gradient)',
    'noise of noiseresnet kept as a plain tensor (on a CPU it is a Parameter, which their own code then cannot set)',
)


def load_repository(path: str):
    """The `models` module of a clone and the name of its repository, with the two workarounds applied from outside.

    Raises:
        InputError: no models.py, or one that is not of the two repositories.
    """
    import torch

    folder = pathlib.Path(path).resolve()
    if not (folder / 'models.py').is_file():
        raise InputError(f'--torch_repo={path} has no models.py; give a clone of {AUDIT} or {ANSWER}')
    hidden = {name: sys.modules.pop(name, None) for name in ('models', 'utils')}
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        models = importlib.import_module('models')
        noise_layer, block = models.NoiseLayer, models.PerturbBasicBlock
    except (ImportError, SyntaxError, AttributeError) as error:
        raise InputError(f'models.py of --torch_repo is not that of {AUDIT} or {ANSWER}: {error}') from None
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_bytecode
        sys.modules.update({name: module for name, module in hidden.items() if module is not None})
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


def build_from_repository(models, origin: str, model_config, num_classes: int, image_size: int):
    """The clone's network of a config.

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


# --- peers ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a network sees: `channels` x `image_size` x `image_size` images, `batch_size` of them, of `num_classes`."""

    num_classes: int
    image_size: int
    channels: int
    batch_size: int


def randomise_constants(network, seed: int) -> None:
    """Moves what constructors leave at a constant (batch norms, prelu's slopes) a little: swapping two must show."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    draw = lambda like: 0.1 * torch.randn(like.shape, generator=generator)
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            module.weight.data.add_(draw(module.weight))
        elif hasattr(module, 'running_var'):
            module.weight.data.add_(draw(module.weight))
            module.bias.data.add_(draw(module.bias))
            module.running_mean.add_(draw(module.running_mean))
            module.running_var.mul_(torch.exp(draw(module.running_var)))


def verify_network(
    name: str, network, config, shape: Shape, *, num_steps: int = 3, seed: int = 0, float32: bool = False
) -> list[Row]:
    """Compares a PyTorch network with the JAX one of the same config, tensors and batches of random images.

    Args:
        network: in PyTorch, with its tensors; on the CPU. Its noise must have been drawn.
        config: `config.model` and `config.optimizer`, of which sgd and adam are both run.
        num_steps: of the trajectories; 0 for none.
        float32: JAX in single precision against PyTorch in double, with ten times PyTorch's own error allowed.
    """
    rng = np.random.default_rng(seed)
    images = (num_steps, shape.batch_size, shape.channels, shape.image_size, shape.image_size)
    case = Case(
        name=name,
        model=config.model,
        optimizers={kind: _like(config.optimizer, kind) for kind in ('sgd', 'adam')} if num_steps else {},
        tensors=tensors_of(network),
        x=rng.standard_normal(images[1:]).astype(np.float32),
        y=rng.integers(shape.num_classes, size=shape.batch_size),
        xs=rng.standard_normal(images).astype(np.float32),
        ys=rng.integers(shape.num_classes, size=images[:2]),
        evaluation_only=any(type(module).__name__ == 'RReLU' for module in network.modules()),
    )
    expected = torch_quantities(network, case, 'float64')
    if not float32:
        with jax.enable_x64(True):
            return compare(case, expected, jax_quantities(case, jnp.float64, expected), None)
    single = torch_quantities(network, case, 'float32')
    floors: dict[str, float] = {}
    for key, value in expected.items():
        quantity = key.partition('/')[0]
        error = np.abs(single[key] - value).max(initial=0)
        floors[quantity] = max(floors.get(quantity, 0), float(error))
    return verify_float32(case, expected, floors)


def _like(optimizer, name: str):
    changed = copy.deepcopy(optimizer)
    changed.name = name
    return changed


def random_config(rng: np.random.Generator) -> tuple[ml_collections.ConfigDict, Shape]:
    """A small random network of any kind, with odd image sizes, batches of two and every option that PyTorch has."""
    config = default.get_config()
    pick = lambda *values: values[rng.integers(len(values))]
    channels = pick(1, 3)
    config.optimizer.learning_rate = 1e-3
    config.model.update(
        name=pick(*(name for name in TABLES if not name.endswith(('101', '152')))),
        num_filters=int(channels * pick(1, 2)) if channels == 3 else pick(2, 3),
        layer=pick('perturbation', 'perturbation', 'conv'),
        kernel_size=pick(1, 3),
        stem_layer=pick('perturbation', 'conv'),
        stem_kernel_size=pick(3, 7),
        freeze_stem=pick(True, False),
        num_masks=pick(1, 2, 3),
        share_masks=pick(True, False),
        trainable_masks=pick(True, False),
        mix_channels=pick(True, False),
        noise_type=pick('uniform', 'normal'),
        stem_noise_scale=pick(1.0, 2.0),
        activate_after_noise=pick(True, False),
        activation=pick('relu', 'relu', 'lrelu', 'prelu', 'rrelu', 'elu', 'selu', 'tanh', 'sigmoid'),
        pooling=pick('max', 'avg'),
        dropout_rate=0.0,
    )
    if config.model.name.startswith('noise_resnet'):
        config.model.update(noise_type='uniform', trainable_masks=False)
    return config, Shape(
        num_classes=pick(3, 10), image_size=pick(16, 17, 19, 20), channels=channels, batch_size=pick(2, 3)
    )


# --- command line -----------------------------------------------------------------------------------------------------


def print_table(name: str, rows: Sequence[Row]) -> None:
    table = Table(
        'quantity', 'values', 'left out', 'max abs error', 'max rel error', 'tolerance', 'verdict', title=name
    )
    for row in rows:
        table.add_row(
            row.quantity,
            str(row.values),
            str(row.left_out),
            f'{row.max_abs_error:.1e}',
            f'{row.max_rel_error:.1e}',
            f'{row.tolerance:.1e} {row.tolerance_of}',
            f'FAILS at {row.where}' if not row.passed else f'holds in rerun {row.rerun}' if row.rerun else 'holds',
        )
    Console(width=120).print(table)


def config_of(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    given = read_config(arguments)
    if not given.named:
        raise InputError('--config=FILE is missing')
    return given.config


def data_shape(config, batch_size: int) -> Shape:
    """Images as the config's data set has them."""
    channels = len(config.data.mean)
    size = config.data.image_size or (28 if channels == 1 else 32)
    return Shape(100 if config.data.name == 'cifar100' else 10, size, channels, batch_size)


def verify_goldens(args, arguments: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    if arguments:
        raise InputError(f'unexpected argument {arguments[0]!r}')
    for path in golden_files(args.golden):
        golden = read_golden(path)
        yield golden.case.name, verify_golden(golden, float32=args.float32)


def verify_repository(args, arguments: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    import torch

    models, origin = load_repository(args.torch_repo)
    config = config_of(arguments)
    shape = data_shape(config, args.batch_size)
    torch.manual_seed(args.seed)
    network = build_from_repository(models, origin, config.model, shape.num_classes, shape.image_size)
    network.eval()
    with torch.no_grad():
        network(torch.zeros(2, shape.channels, shape.image_size, shape.image_size))  # draws the noise of noiseresnet
    randomise_constants(network, args.seed)
    for workaround in WORKAROUNDS:
        print(f'worked around: {workaround}')
    options = {'num_steps': args.num_steps, 'seed': args.seed, 'float32': args.float32}
    yield f'{config.model.name} of {origin}', verify_network(origin, network, config, shape, **options)


def verify_peers(args, arguments: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    import torch

    from experiments.torch_twin import build_twin

    rng = np.random.default_rng(args.seed)
    if arguments:
        config = config_of(arguments)
        cases = [(config, data_shape(config, args.batch_size))]
    else:
        cases = (random_config(rng) for _ in range(args.num_cases))
    options = {'num_steps': args.num_steps, 'seed': args.seed, 'float32': args.float32}
    for number, (config, shape) in enumerate(cases, start=1):
        torch.manual_seed(args.seed)
        network = build_twin(config.model, shape.num_classes, shape.image_size, shape.channels)
        randomise_constants(network, args.seed)
        name = f'twin {number}: {config.model.name}, {shape.image_size}x{shape.image_size}x{shape.channels}'
        yield name, verify_network(name, network, config, shape, **options)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m experiments.verify_torch', description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument('--golden', nargs='+', metavar='FILE', help='golden npz files, or folders of them')
    mode.add_argument('--torch_repo', metavar='DIR', help=f'a clone of {AUDIT} or {ANSWER}; needs --config')
    mode.add_argument('--peer', action='store_true', help='our PyTorch twin: random networks, or that of --config')
    parser.add_argument(
        '--float32', action='store_true', help="single precision, ten times PyTorch's own error allowed"
    )
    parser.add_argument('--num_cases', type=int, default=10, help='of --peer without --config')
    parser.add_argument('--num_steps', type=int, default=5, help='training steps with each optimizer; 0 for none')
    parser.add_argument('--batch_size', type=int, default=2, help='of --torch_repo, and of --peer with --config')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', metavar='FILE', help='write the tables there')
    args, arguments = parser.parse_known_args(argv)
    for name, minimum in {'num_cases': 1, 'num_steps': 0, 'batch_size': 1}.items():
        if getattr(args, name) < minimum:
            raise InputError(f'--{name}={getattr(args, name)}: must be at least {minimum}')
    verify = verify_goldens if args.golden else verify_repository if args.torch_repo else verify_peers
    results = {}
    for name, rows in verify(args, arguments):
        print_table(name, rows)
        results[name] = rows
    failed = [name for name, rows in results.items() if not all(row.passed for row in rows)]
    if args.json:
        write_json(pathlib.Path(args.json), args.float32, results)
    print(
        f'{len(results) - len(failed)} of {len(results)} networks agree'
        + ''.join(f'\nFAILS: {name}' for name in failed)
    )
    return 1 if failed else 0


def write_json(path: pathlib.Path, float32: bool, results: Mapping[str, Sequence[Row]]) -> None:
    content = {
        'precision': 'float32' if float32 else 'float64',
        'versions': {name: metadata.version(name) for name in ('jax', 'flax', 'optax', 'torch', 'numpy')},
        'cases': {name: [dataclasses.asdict(row) for row in rows] for name, rows in results.items()},
    }
    try:
        path.write_text(json.dumps(content, indent=1) + '\n')
    except OSError as error:
        raise InputError(f'--json={path} cannot be written: {error.strerror}') from None


if __name__ == '__main__':
    sys.exit(exit_code(main))
