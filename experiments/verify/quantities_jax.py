"""All quantities of a case in JAX, in PyTorch's names and layouts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.verify.cases import Case, prefixed, within
from pnn_jax.errors import InputError
from pnn_jax.models import create_model
from pnn_jax.optim import create_optimizer
from pnn_jax.pytorch.variables import Arrays, TorchTensors, from_torch, to_torch, variable_shapes

NULL_GRADIENT = 1e-12  # a smaller gradient in double precision may be rounding
DECIDED_BY_ROUNDING = 1e-9  # an element of Adam's trajectory that such gradients move further is theirs


def jax_quantities(case: Case, dtype, reference: Mapping) -> Arrays:
    """eval_logits, grad/<parameter>, sgd/<tensor>, ... (see cases.QUANTITIES).

    Adam divides a gradient by its own size. Where the true gradient is 0 (a bias in front of a batch norm), it makes
    steps of full size out of rounding errors. Such elements only change what evaluation computes. They are masked in
    the result and take PyTorch's values before `adam_eval_logits` is computed. Which ones they are is measured: a
    second trajectory runs without the gradients below NULL_GRADIENT, and an element that ends elsewhere is one of them.

    Args:
        reference: PyTorch's quantities.
    """
    network = JaxCase(case, dtype)
    x, y = network.images(case.x), jnp.asarray(case.y, jnp.int32)
    result = {'eval_logits': network.predict(network.trained, x)}
    if case.evaluation_only:
        return jax.device_get(result)
    (loss, (logits, batch_stats)), gradients = network.learn(network.trained, x, y)
    result |= {'train_logits': logits, 'loss': loss}
    result |= prefixed('grad', network.named({'params': gradients}))
    result |= prefixed('bn1', network.named({'batch_stats': batch_stats}, 1))
    result['eval_logits_bn1'] = network.predict({**network.trained, 'batch_stats': batch_stats}, x)
    for name, settings in case.optimizers.items():
        after, losses = network.trajectory(settings, 0.0)
        values = network.named(after, len(case.xs))
        if name == 'adam':
            # In single precision rounding is as large as small gradients, so there only the case itself names them.
            null = NULL_GRADIENT if dtype == jnp.float64 else 0.0
            clean = network.named(network.trajectory(settings, null)[0], len(case.xs)) if null else values
            values = {
                key: np.ma.masked_where(
                    (key in case.null_gradients) | (np.abs(value - clean[key]) > DECIDED_BY_ROUNDING), value
                )
                for key, value in values.items()
            }
            after = network.with_masked_from(within(name, reference), after, values)
        result |= prefixed(name, values)
        result |= {f'{name}_losses': losses, f'{name}_eval_logits': network.predict(after, x)}
    return {key: np.asanyarray(value) for key, value in result.items()}


class JaxCase:
    """The JAX network of a case with the case's tensors.

    Attributes:
        trained: collections that training changes, `params` and `batch_stats`, at the start.
    """

    def __init__(self, case: Case, dtype):
        self.case, self.dtype = case, dtype
        num_classes = _num_classes(case)
        self._shapes = variable_shapes(case.model, num_classes, case.x.shape[-1], case.x.shape[1])
        tensors = TorchTensors(
            *(_floats(group, dtype) for group in (case.tensors.state_dict, case.tensors.noise_masks))
        )
        variables, self._steps_before = from_torch(tensors, case.model, self._shapes)
        self._fixed = jax.tree.map(jnp.asarray, variables)
        self.trained = {name: self._fixed.pop(name) for name in ('params', 'batch_stats')}
        self._predict, self._learn = _network(case.model.to_json(), num_classes)

    def images(self, batch: np.ndarray) -> jax.Array:
        """[b, c, h, w] -> [b, h, w, c]."""
        return jnp.asarray(batch.transpose(0, 2, 3, 1), self.dtype)

    def predict(self, trained, x: jax.Array) -> jax.Array:
        """Logits in evaluation mode."""
        return self._predict(trained, self._fixed, x)

    def learn(self, trained, x: jax.Array, y: jax.Array):
        """((loss, (logits, new batch_stats)), gradients) in training mode."""
        return self._learn(trained, self._fixed, x, y)

    def named(self, parts: Mapping, num_steps: int | None = None) -> Arrays:
        """Collections in PyTorch's names; `num_steps` have been made since the start."""
        total = None if num_steps is None or self._steps_before is None else self._steps_before + num_steps
        return to_torch(parts, self.case.model, num_steps=total, aliases=False).state_dict

    def trajectory(self, settings: ml_collections.ConfigDict, smallest_gradient: float):
        """What training leaves of `trained` after a step for each batch of the case, and the losses."""
        optimizer, update = _optimizer(settings.to_json())
        params, batch_stats, losses = self.trained['params'], self.trained['batch_stats'], []
        opt_state = optimizer.init(params)
        for x, y in zip(self.case.xs, self.case.ys, strict=True):
            now = {'params': params, 'batch_stats': batch_stats}
            (loss, (_, batch_stats)), gradients = self.learn(now, self.images(x), jnp.asarray(y, jnp.int32))
            params, opt_state = update(gradients, opt_state, params, smallest_gradient)
            losses.append(loss)
        return {'params': params, 'batch_stats': batch_stats}, np.array(losses)

    def with_masked_from(self, reference: Mapping, parts: Mapping, values: Mapping[str, np.ma.MaskedArray]) -> dict:
        """The collections `parts`, whose tensors are `values`, with `reference` in the place of what is masked."""
        complete = to_torch(parts, self.case.model)
        owners = {id(tensor): key for key, tensor in reversed(complete.state_dict.items())}
        filled = {}
        for key, tensor in complete.state_dict.items():
            owner = owners[id(tensor)]
            filled[key] = np.where(np.ma.getmaskarray(values[owner]), reference.get(owner, tensor), tensor)
            filled[key] = filled[key].astype(tensor.dtype)
        shapes = {name: self._shapes[name] for name in parts}
        variables, _ = from_torch(TorchTensors(filled, complete.noise_masks), self.case.model, shapes)
        return jax.tree.map(jnp.asarray, variables)


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
    """The optimizer, and its compiled step that leaves out gradients below a size."""
    settings = ml_collections.ConfigDict(json.loads(settings))
    optimizer = create_optimizer(settings, lambda step: settings.learning_rate)

    @jax.jit
    def update(gradients, opt_state, params, smallest_gradient):
        gradients = jax.tree.map(lambda g: jnp.where(jnp.abs(g) < smallest_gradient, 0, g), gradients)
        changes, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, changes), opt_state

    return optimizer, update


def _floats(arrays: Arrays, dtype) -> Arrays:
    return {key: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a for key, a in arrays.items()}


def _num_classes(case: Case) -> int:
    key = 'linear2.bias' if case.model.name in ('lenet', 'cifarnet') else 'linear.bias'
    if key not in case.tensors.state_dict:
        raise InputError(f'{case.name}: {key} is missing')
    return len(case.tensors.state_dict[key])
