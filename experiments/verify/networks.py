"""A PyTorch network against the JAX one of the same config, tensors and batches."""

from __future__ import annotations

import copy

import numpy as np
import torch

from experiments.verify.cases import Case, Shape
from experiments.verify.compare import Row, verify
from experiments.verify.quantities_torch import torch_quantities
from pnn_jax.pytorch.variables import Arrays, TorchTensors


def tensors_of(network) -> TorchTensors:
    """A network's tensors as NumPy arrays. Noise that is not in the state_dict is taken from the modules."""
    state_dict = {key: value.detach().numpy().copy() for key, value in network.state_dict().items()}
    held = {f'{name}.noise': getattr(module, 'noise', None) for name, module in network.named_modules()}
    noise_masks = {
        key: value.numpy().copy() for key, value in held.items() if value is not None and key not in state_dict
    }
    return TorchTensors(state_dict, noise_masks)


def randomise_constants(network, seed: int) -> None:
    """Adds noise to what constructors set to a constant (batch norms, slopes of prelu).

    Otherwise a scale that is converted to the wrong batch norm would not change any output.
    """
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
        seed: of the images and labels.
        float32: compare JAX in single precision with PyTorch in double; ten times PyTorch's own error is allowed.
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
    return verify(case, expected, _floors(expected, torch_quantities(network, case, 'float32')) if float32 else None)


def _floors(double: Arrays, single: Arrays) -> dict[str, float]:
    """PyTorch's own float32 error of every quantity."""
    floors: dict[str, float] = {}
    for key, value in double.items():
        quantity = key.partition('/')[0]
        floors[quantity] = max(floors.get(quantity, 0), float(np.abs(single[key] - value).max(initial=0)))
    return floors


def _like(optimizer, name: str):
    changed = copy.deepcopy(optimizer)
    changed.name = name
    return changed
